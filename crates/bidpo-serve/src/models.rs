//! Names of models: the model itself, the model with vectors (`M@flowery`, `M@flowery:1.5,honest:-2`), and aliases of these.

use super::vectors::{ScaleSpec, SteerSpec};

/// Between a model and its vectors.
const AT: char = '@';

/// What some clients put behind every model's name (Ollama).
const LATEST: &str = ":latest";

/// A name that stands for the model under some steering.
#[derive(Debug, Clone, PartialEq)]
pub struct Alias {
    /// The name.
    pub name: String,
    /// What it stands for.
    pub steering: Vec<SteerSpec>,
}

/// All names under which clients may ask for the one model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelNames {
    /// The unsteered model's.
    pub base: String,
    /// Others.
    pub aliases: Vec<Alias>,
}

/// An `--alias` that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AliasError {
    /// Two names for the model itself.
    #[error(
        "--alias {first} and --alias {second} both name the model: give one of them, and others as NAME=MODEL@VECTOR:SCALE"
    )]
    TwoNames {
        /// The first.
        first: String,
        /// The second.
        second: String,
    },
    /// The name is empty, taken, or could be read in two ways.
    #[error("--alias {name:?} cannot be used: {reason}")]
    Name {
        /// The name.
        name: String,
        /// The reason.
        reason: &'static str,
    },
    /// The right side names no model of the server.
    #[error("--alias {name}={target}: {target:?} is neither {base:?} nor {base}@VECTOR:SCALE")]
    Target {
        /// The alias.
        name: String,
        /// What it is to stand for.
        target: String,
        /// The model.
        base: String,
    },
    /// The steering cannot be applied.
    #[error("--alias {name}: {reason}")]
    Steering {
        /// The alias.
        name: String,
        /// The reason, which names the vectors there are.
        reason: String,
    },
}

impl ModelNames {
    /// From the values of `--alias`: `NAME` names the model itself (`default` otherwise), `NAME=MODEL@VECTOR:SCALE,...` a
    /// steered one; MODEL may be left out.
    ///
    /// # Errors
    /// [`AliasError`], but for vectors, which are not looked up here.
    pub fn parse(values: &[String], default: &str) -> Result<Self, AliasError> {
        let mut base: Option<&str> = None;
        for name in values.iter().filter(|v| !v.contains('=')) {
            if let Some(first) = base {
                return Err(AliasError::TwoNames { first: first.into(), second: name.clone() });
            }
            base = Some(name);
        }
        let mut names = Self { base: base.unwrap_or(default).to_owned(), aliases: Vec::new() };
        if names.base.trim().is_empty() {
            return Err(AliasError::Name { name: names.base, reason: "it is empty" });
        }
        for (name, target) in values.iter().filter_map(|v| v.split_once('=')) {
            let (name, target) = (name.trim(), target.trim());
            let unusable = |reason| AliasError::Name { name: name.to_owned(), reason };
            if name.is_empty() {
                return Err(unusable("it is empty"));
            }
            if name.contains(AT) {
                return Err(unusable("a name with @ would be read as a model with vectors"));
            }
            if names.find(name).is_some() {
                return Err(unusable("another model has this name"));
            }
            let whole = if target.starts_with(AT) { format!("{}{target}", names.base) } else { target.to_owned() };
            let Some(steering) = names.find(&whole) else {
                let base = names.base.clone();
                return Err(AliasError::Target { name: name.into(), target: target.into(), base });
            };
            names.aliases.push(Alias { name: name.to_owned(), steering });
        }
        Ok(names)
    }

    /// The steering that a name stands for; `None` for a name of no model. Vectors are not looked up.
    pub fn find(&self, name: &str) -> Option<Vec<SteerSpec>> {
        name.strip_suffix(LATEST).and_then(|name| self.find_exact(name)).or_else(|| self.find_exact(name))
    }

    fn find_exact(&self, name: &str) -> Option<Vec<SteerSpec>> {
        let bare = |name: &str| {
            let alias = || self.aliases.iter().find(|a| a.name == name).map(|a| a.steering.clone());
            // Some clients know the file's name.
            let is_base = name == self.base || name.strip_suffix(".gguf") == Some(&self.base);
            if is_base { Some(Vec::new()) } else { alias() }
        };
        if let Some(steering) = bare(name) {
            return Some(steering);
        }
        // A model's own name may hold an @ itself: every one of them is tried.
        name.match_indices(AT).find_map(|(at, _)| {
            let mut steering = bare(&name[..at])?;
            steering.extend(specs(&name[at + 1..])?);
            Some(steering)
        })
    }

    /// The names that are listed: the model, one for each vector, the aliases.
    pub fn listed<'a>(&self, vectors: impl IntoIterator<Item = &'a str>) -> Vec<Alias> {
        let of_vector = |vector: &str| Alias {
            name: format!("{}{AT}{vector}", self.base),
            steering: vec![SteerSpec { vector: vector.to_owned(), scale: ScaleSpec::Factor(1.0), layers: None }],
        };
        let base = Alias { name: self.base.clone(), steering: Vec::new() };
        std::iter::once(base).chain(vectors.into_iter().map(of_vector)).chain(self.aliases.iter().cloned()).collect()
    }
}

/// `flowery:1.5,honest:-5%`; `None` where a part is empty.
fn specs(text: &str) -> Option<Vec<SteerSpec>> {
    let one = |part: &str| {
        let part = part.trim();
        let scaled = part.rsplit_once(':').and_then(|(name, scale)| Some((name.trim(), scale.parse().ok()?)));
        // A colon without a scale behind it belongs to the name.
        let (vector, scale) = scaled.unwrap_or((part, ScaleSpec::Factor(1.0)));
        (!vector.is_empty()).then(|| SteerSpec { vector: vector.to_owned(), scale, layers: None })
    };
    text.split(',').map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(vector: &str, scale: ScaleSpec) -> SteerSpec {
        SteerSpec { vector: vector.into(), scale, layers: None }
    }

    fn names(values: &[&str]) -> Result<ModelNames, AliasError> {
        ModelNames::parse(&values.iter().map(|v| (*v).to_owned()).collect::<Vec<_>>(), "m")
    }

    #[test]
    fn names_of_steered_models_are_read() {
        use ScaleSpec::{Factor, Percent};
        let names = names(&["a@b", "tea=@flowery:1.5", "both=a@b@x,y:-2"]).unwrap();
        for (name, want) in [
            ("a@b", vec![]),
            ("a@b:latest", vec![]),
            ("a@b.gguf", vec![]),
            ("a@b.gguf@x", vec![spec("x", Factor(1.0))]),
            ("a@b@flowery", vec![spec("flowery", Factor(1.0))]),
            ("a@b@flowery:latest", vec![spec("flowery", Factor(1.0))]),
            ("a@b@flowery:1.5,honest:-2", vec![spec("flowery", Factor(1.5)), spec("honest", Factor(-2.0))]),
            ("a@b@x: 5% , y", vec![spec("x", Percent(5.0)), spec("y", Factor(1.0))]),
            ("a@b@x:y", vec![spec("x:y", Factor(1.0))]),
            ("tea", vec![spec("flowery", Factor(1.5))]),
            ("tea@honest", vec![spec("flowery", Factor(1.5)), spec("honest", Factor(1.0))]),
            ("both", vec![spec("x", Factor(1.0)), spec("y", Factor(-2.0))]),
        ] {
            assert_eq!(names.find(name), Some(want), "{name}");
        }
        for name in ["", "m", "a@b@", "a@b@,x", "a", "coffee@x"] {
            assert_eq!(names.find(name), None, "{name}");
        }
        let listed: Vec<String> = names.listed(["x", "y"]).into_iter().map(|a| a.name).collect();
        assert_eq!(listed, ["a@b", "a@b@x", "a@b@y", "tea", "both"]);
    }

    #[test]
    fn aliases_that_cannot_be_used_say_why() {
        assert_eq!(names(&[]).unwrap().base, "m");
        assert!(matches!(names(&["a", "b"]), Err(AliasError::TwoNames { .. })));
        assert!(matches!(names(&[""]), Err(AliasError::Name { .. })));
        assert!(matches!(names(&["=m"]), Err(AliasError::Name { .. })));
        assert!(matches!(names(&["x@y=m"]), Err(AliasError::Name { .. })));
        assert!(matches!(names(&["x=m", "x=m@v"]), Err(AliasError::Name { .. })));
        assert!(matches!(names(&["x=other@v"]), Err(AliasError::Target { .. })));
        assert!(matches!(names(&["x="]), Err(AliasError::Target { .. })));
    }
}
