//! A condition as the manifest records it: a typed kind, with keys that this version does not know kept as they are.

use crate::layers::Layers;
use serde::de::Error as _;
use serde::ser::{Error as _, SerializeMap};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

/// One condition of a run. On disk it is one flat object: `name`, `kind`, `control_sha256`, the fields of the kind.
#[derive(Debug, Clone, PartialEq)]
pub struct ConditionFacts {
    /// Name of the condition, unique within the run: `unsteered`, `steered`, ...
    pub name: String,
    /// Kind of the condition, with all that defines it.
    pub kind: ConditionKind,
    /// SHA-256 of the vectors that are added, layer numbers included; absent where nothing is added.
    pub control_sha256: Option<String>,
    /// Keys that this version does not know.
    pub other: Map<String, Value>,
}

/// Kinds of conditions. The tags are those of results files and never change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind")]
pub enum ConditionKind {
    /// The model without a vector.
    #[serde(rename = "unsteered")]
    Unsteered,
    /// The model with the vector under test.
    #[serde(rename = "steered")]
    Steered {
        /// The vector files that were combined.
        #[serde(default)]
        vectors: Vec<VectorFacts>,
        /// Layers at which something is added.
        #[serde(default)]
        layers: Option<Layers>,
        /// Where the configuration was chosen, for the test run of a sweep.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        chosen_on: Option<ChosenOn>,
    },
    /// The steered model's vector times -1.
    #[serde(rename = "flipped")]
    Negated,
    /// A random vector with the steered vector's norm at each layer.
    #[serde(rename = "random")]
    Random {
        /// Seed of the rotation.
        seed: u64,
    },
    /// Another vector file at the same layers.
    #[serde(rename = "other vector")]
    OtherVector {
        /// File name.
        file: String,
        /// SHA-256 of the file.
        sha256: String,
        /// Factor on the vector; absent where it is rescaled to the steered vector's norm.
        scale: Option<f64>,
        /// The norm that it has, in words.
        length: String,
    },
    /// The mean difference of activations (contrastive activation addition), with the steered vector's norm.
    #[serde(rename = "caa")]
    MeanDifference {
        /// Training items that the mean was taken over.
        training_items: usize,
    },
    /// A system prompt, no vector.
    #[serde(rename = "system")]
    System {
        /// Text of the system prompt.
        system: String,
        /// Where it was chosen among several; absent where it was not.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        chosen_on: Option<ChosenOn>,
    },
    /// Solved training items in the prompt, no vector.
    #[serde(rename = "shots")]
    FewShot {
        /// Number of few-shot examples.
        shots: usize,
        /// Their indices in the data file, from 0.
        shot_items: Vec<usize>,
        /// Why they are not more; absent in files of 0.2.0 and before.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        limited_by: Option<ShotLimit>,
    },
    /// The options without the question, no vector.
    #[serde(rename = "hidden")]
    ChoicesOnly,
    /// The options without the question, with the vector under test.
    #[serde(rename = "hidden-steered")]
    ChoicesOnlySteered,
    /// Each item's answers under the question of another item, no vector.
    #[serde(rename = "swapped")]
    Swapped {
        /// Seed of the derangement.
        seed: u64,
    },
    /// Each item's answers under the question of another item, with the vector under test.
    #[serde(rename = "swapped-steered")]
    SwappedSteered {
        /// Seed of the derangement.
        seed: u64,
    },
    /// One configuration (layers, scale) of a sweep.
    #[serde(rename = "point")]
    Point {
        /// Steered layers.
        layers: Layers,
        /// Signed norm of what is added, in percent of the median residual norm at the layer.
        percent: f64,
        /// Factor on the vector's direction.
        factor: f64,
        /// The layer that the direction was made for, if it is another one.
        moved_from: Option<usize>,
    },
    /// One scale of a swept LoRA adapter.
    #[serde(rename = "adapter-point")]
    AdapterPoint {
        /// The scale.
        factor: f64,
    },
    /// A vector that the one under test is compared with, at another scale. Without `chosen_on` and `equal_kl` it is one
    /// of the scales that were tried for it.
    #[serde(rename = "rescaled")]
    Rescaled {
        /// Name of the condition that has this vector with the steered vector's norm.
        of: String,
        /// Steered layers.
        layers: Layers,
        /// Signed norm of what is added, in percent of the median residual norm at the layer.
        percent: f64,
        /// Where the scale was chosen, for the vector's own best scale.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        chosen_on: Option<ChosenOn>,
        /// Divergences, for the scale at which the vector costs as much as the one under test.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        equal_kl: Option<EqualKl>,
    },
    /// Steered answers compared with those of another condition by a judge.
    #[serde(rename = "match")]
    Match {
        /// Name of the other condition.
        against: String,
        /// SHA-256 of all that is judged.
        answers_sha256: String,
    },
    /// A kind of a later version; its fields are among [`ConditionFacts::other`].
    #[serde(skip)]
    Unknown(String),
}

/// A vector file that a condition uses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VectorFacts {
    /// File name.
    pub file: String,
    /// SHA-256 of the file.
    pub sha256: String,
    /// Factor on the vector.
    pub scale: f64,
    /// Norm of what is added in percent of the median residual norm; absent where the file does not tell that norm.
    pub percent_of_residual_norm: Option<f64>,
    /// Training losses as the vector file holds them: `[[step, training loss, validation loss or null], ...]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub training_curve: Option<Value>,
    /// Layer convention of the file, where it is not `output`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub convention: Option<String>,
    /// Keys that this version does not know.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// Why a few-shot prompt holds no more few-shot examples.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ShotLimit {
    /// The model's context is full.
    Context,
    /// So many were asked for.
    Asked,
    /// The vector was trained on so many pairs.
    TrainingPairs,
    /// There are no more training items.
    TrainingItems,
}

/// Items on which a configuration or a system prompt was chosen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChosenOn {
    /// Part of the split: `valid`.
    pub part: String,
    /// Number of items.
    pub items: usize,
    /// Number of configurations that were compared.
    pub settings: usize,
    /// The rule that chose a scale; absent where the best value did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<ChoiceRule>,
    /// Keys that this version does not know.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// Divergences of two vectors of equal price, KL(unsteered || steered) in nats a token on the same text.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct EqualKl {
    /// That of this condition, as it was measured.
    pub kl: f64,
    /// That of the steered model, which it should have.
    pub target: f64,
}

/// Rule by which the scale of a vector is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChoiceRule {
    /// The smallest scale whose value is within one standard error of the best one: the rule by which Breiman, Friedman,
    /// Olshen and Stone (1984, section 3.4.3) choose the size of a tree.
    OneStandardError,
    /// The best value among the scales whose KL(unsteered || steered) on text is small enough.
    Budget {
        /// Largest KL allowed, nats a token.
        kl: f64,
    },
}

impl ConditionKind {
    /// The tag in results files and in JSON reports.
    pub fn name(&self) -> &str {
        match self {
            Self::Unsteered => "unsteered",
            Self::Steered { .. } => "steered",
            Self::Negated => "flipped",
            Self::Random { .. } => "random",
            Self::OtherVector { .. } => "other vector",
            Self::MeanDifference { .. } => "caa",
            Self::System { .. } => "system",
            Self::FewShot { .. } => "shots",
            Self::ChoicesOnly => "hidden",
            Self::ChoicesOnlySteered => "hidden-steered",
            Self::Swapped { .. } => "swapped",
            Self::SwappedSteered { .. } => "swapped-steered",
            Self::Point { .. } => "point",
            Self::AdapterPoint { .. } => "adapter-point",
            Self::Rescaled { .. } => "rescaled",
            Self::Match { .. } => "match",
            Self::Unknown(kind) => kind,
        }
    }

    /// True where the item's own question is not shown: a task of another kind than that of the other conditions.
    pub fn changes_the_question(&self) -> bool {
        matches!(
            self,
            Self::ChoicesOnly | Self::ChoicesOnlySteered | Self::Swapped { .. } | Self::SwappedSteered { .. }
        )
    }

    /// True for a configuration of a sweep.
    pub fn is_point(&self) -> bool {
        matches!(self, Self::Point { .. } | Self::AdapterPoint { .. })
    }

    /// True for a tag that this version reads.
    fn is_known(tag: &str) -> bool {
        const TAGS: [&str; 16] = [
            "unsteered",
            "steered",
            "flipped",
            "random",
            "other vector",
            "caa",
            "system",
            "shots",
            "hidden",
            "hidden-steered",
            "swapped",
            "swapped-steered",
            "point",
            "adapter-point",
            "rescaled",
            "match",
        ];
        TAGS.contains(&tag)
    }

    /// The tag and the fields, in the order in which they stand on disk.
    fn fields(&self) -> Result<Map<String, Value>, serde_json::Error> {
        if let Self::Unknown(kind) = self {
            return Ok(Map::from_iter([("kind".to_owned(), kind.as_str().into())]));
        }
        match serde_json::to_value(self)? {
            Value::Object(fields) => Ok(fields),
            _ => Ok(Map::new()),
        }
    }
}

impl ConditionFacts {
    /// A condition that adds no vector.
    pub fn new(name: impl Into<String>, kind: ConditionKind) -> Self {
        Self { name: name.into(), kind, control_sha256: None, other: Map::new() }
    }
}

impl Serialize for ConditionFacts {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let mut fields = self.kind.fields().map_err(S::Error::custom)?;
        let mut map = s.serialize_map(None)?;
        map.serialize_entry("name", &self.name)?;
        map.serialize_entry("kind", &fields.shift_remove("kind"))?;
        if let Some(sha256) = &self.control_sha256 {
            map.serialize_entry("control_sha256", sha256)?;
        }
        for (key, value) in fields.iter().chain(&self.other) {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for ConditionFacts {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let mut map = Map::deserialize(d)?;
        let mut text = |key: &'static str| match map.shift_remove(key) {
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(D::Error::custom(format!("a condition's {key} is {other}, not a text"))),
            None => Ok(None),
        };
        let name = text("name")?.ok_or_else(|| D::Error::missing_field("name"))?;
        let tag = text("kind")?.ok_or_else(|| D::Error::custom(format!("condition {name:?} has no kind")))?;
        let control_sha256 = text("control_sha256")?;
        if !ConditionKind::is_known(&tag) {
            return Ok(Self { name, kind: ConditionKind::Unknown(tag), control_sha256, other: map });
        }
        map.insert("kind".into(), tag.as_str().into());
        let kind = ConditionKind::deserialize(&Value::Object(map.clone()))
            .map_err(|e| D::Error::custom(format!("condition {name:?} of kind {tag:?}: {e}")))?;
        let known = kind.fields().map_err(D::Error::custom)?;
        map.retain(|key, _| !known.contains_key(key));
        Ok(Self { name, kind, control_sha256, other: map })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A condition kind by its tag, with any values.
    pub(crate) fn kind(tag: &str) -> ConditionKind {
        let facts = |fields: &str| serde_json::from_str(&format!("{{\"kind\":{tag:?}{fields}}}")).unwrap();
        match tag {
            "random" | "swapped" | "swapped-steered" => facts(r#","seed":0"#),
            "other vector" => facts(r#","file":"o.gguf","sha256":"y","scale":null,"length":"the steered vector's""#),
            "caa" => facts(r#","training_items":4"#),
            "system" => facts(r#","system":"Be plain.""#),
            "shots" => facts(r#","shots":1,"shot_items":[7]"#),
            "point" => facts(r#","layers":"1","percent":5.0,"factor":1.0,"moved_from":null"#),
            "adapter-point" => facts(r#","factor":0.5"#),
            "match" => facts(r#","against":"unsteered","answers_sha256":"z""#),
            _ => facts(""),
        }
    }

    /// Lines of the manifests that bidpo 0.1.0 wrote.
    const OLD: [&str; 12] = [
        r#"{"name":"unsteered","kind":"unsteered"}"#,
        r#"{"name":"steered","kind":"steered","control_sha256":"ab","vectors":[{"file":"v.gguf","sha256":"cd","scale":1.0,"percent_of_residual_norm":3.57,"training_curve":[[8,0.69,null],[16,0.6,0.61]],"convention":"generator"}],"layers":"10-12","chosen_on":{"part":"valid","items":50,"settings":8}}"#,
        r#"{"name":"steered","kind":"steered","vectors":[{"file":"v.gguf","sha256":"cd","scale":0.0,"percent_of_residual_norm":null}],"layers":null}"#,
        r#"{"name":"sign flipped","kind":"flipped","control_sha256":"ab"}"#,
        r#"{"name":"random vector","kind":"random","control_sha256":"ab","seed":18446744073709551615}"#,
        r#"{"name":"dpo","kind":"other vector","control_sha256":"ab","file":"o.gguf","sha256":"cd","scale":null,"length":"the steered vector's"}"#,
        r#"{"name":"mean difference (CAA)","kind":"caa","control_sha256":"ab","training_items":100}"#,
        r#"{"name":"system prompt","kind":"system","system":"Be \"plain\"."}"#,
        r#"{"name":"2 solved examples","kind":"shots","shots":2,"shot_items":[3,9]}"#,
        r#"{"name":"question hidden","kind":"hidden"}"#,
        r#"{"name":"layer 15, +5 %","kind":"point","control_sha256":"ab","layers":"15","percent":5.0,"factor":0.1234567890123,"moved_from":null}"#,
        r#"{"name":"steered against unsteered","kind":"match","against":"unsteered","answers_sha256":"ef"}"#,
    ];

    #[test]
    fn files_of_0_1_0_round_trip_byte_for_byte() {
        for line in OLD {
            let condition: ConditionFacts = serde_json::from_str(line).unwrap();
            assert_eq!(serde_json::to_string(&condition).unwrap(), line);
            assert!(condition.other.is_empty() && ConditionKind::is_known(condition.kind.name()), "{condition:?}");
            assert_eq!(condition.kind.fields().unwrap()["kind"], condition.kind.name());
        }
    }

    #[test]
    fn later_kinds_round_trip() {
        for line in [
            r#"{"name":"question hidden, steered","kind":"hidden-steered","control_sha256":"ab"}"#,
            r#"{"name":"another item's question","kind":"swapped","seed":7}"#,
            r#"{"name":"another item's question, steered","kind":"swapped-steered","control_sha256":"ab","seed":7}"#,
            r#"{"name":"dpo at layer 15, +5 %","kind":"rescaled","control_sha256":"ab","of":"dpo","layers":"15","percent":5.0}"#,
            r#"{"name":"dpo, own best scale (+5 %)","kind":"rescaled","control_sha256":"ab","of":"dpo","layers":"15","percent":5.0,"chosen_on":{"part":"valid","items":50,"settings":8,"rule":"one-standard-error"}}"#,
            r#"{"name":"dpo, equal KL (+7.46 %)","kind":"rescaled","control_sha256":"ab","of":"dpo","layers":"15","percent":7.46,"equal_kl":{"kl":0.0401,"target":0.041}}"#,
            r#"{"name":"scale +0.5","kind":"adapter-point","control_sha256":"ab","factor":0.5}"#,
            r#"{"name":"system prompt","kind":"system","system":"Be plain.","chosen_on":{"part":"valid","items":50,"settings":6}}"#,
        ] {
            let condition: ConditionFacts = serde_json::from_str(line).unwrap();
            assert_eq!(serde_json::to_string(&condition).unwrap(), line);
            assert!(condition.other.is_empty() && ConditionKind::is_known(condition.kind.name()), "{condition:?}");
            assert_eq!(condition.kind.changes_the_question(), line.contains("question"));
        }
    }

    #[test]
    fn unknown_keys_and_kinds_are_kept() {
        for line in [
            r#"{"name":"a","kind":"unsteered","note":{"by":"hand"}}"#,
            r#"{"name":"a","kind":"lora","control_sha256":"ab","rank":8}"#,
        ] {
            let condition: ConditionFacts = serde_json::from_str(line).unwrap();
            assert_eq!((serde_json::to_string(&condition).unwrap().as_str(), condition.other.len()), (line, 1));
        }
    }

    #[test]
    fn a_condition_that_cannot_be_read_is_named() {
        for (line, expected) in [
            (r#"{"kind":"unsteered"}"#, "missing field `name`"),
            (r#"{"name":"a"}"#, "condition \"a\" has no kind"),
            (r#"{"name":"a","kind":7}"#, "a condition's kind is 7, not a text"),
            (r#"{"name":"a","kind":"point","layers":"1","factor":1.0}"#, "condition \"a\" of kind \"point\": missing"),
        ] {
            let error = serde_json::from_str::<ConditionFacts>(line).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}\n{expected}");
        }
    }
}
