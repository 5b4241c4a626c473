//! The sum of scaled vectors, as the buffer that llama.cpp adds to the residual stream.

use super::architecture::{Match, match_architecture};
use super::conditional::Steer;
use super::{Change, Conditional, GateMemory, SteerError, SteeringVector, identity};
use crate::adapter::Adapters;
use crate::layers::Layers;
use ggml_grad::files::sha256_of_bytes;
use ggml_grad::llama::{Context, LlamaError, Model};
use std::sync::{Arc, Mutex};

/// The largest sum of a control vector's norms over its layers. Norms of residual streams are below 1e6: beyond a 2^24th
/// of what is added, nothing of the model's own activations is left in f32, and far beyond, their squares overflow.
const MOST_NORM: f64 = 1e12;

/// A vector with the scale it is used at.
#[derive(Debug, Clone)]
pub struct ScaledVector {
    /// The name that the user gives it (the file's name without its extension).
    pub name: String,
    /// The vector.
    pub vector: Arc<SteeringVector>,
    /// Factor; a negative one reverses the direction, 0 switches the vector off.
    pub scale: f32,
}

impl ScaledVector {
    /// What to say of a scale beyond the measured range, or beyond [`SteeringVector::safe_scale`] where none was measured;
    /// `layers` are those that are steered where not all are.
    pub fn strength_note(&self, layers: Option<&Layers>) -> Option<String> {
        let all = self.vector.layers();
        let kept = all.iter().filter(|&&l| layers.is_none_or(|kept| kept.contains(&l))).count();
        let scale = f64::from(self.scale);
        // A range was measured with all layers.
        if let Some(range) = self.vector.measured_range().filter(|_| kept == all.len()) {
            return (!range.contains(scale)).then(|| {
                format!(
                    "scale {} is beyond {}, the measured range in which KL(unsteered || steered) on neutral text is at most {} \
                     nats a token",
                    self.scale,
                    range.in_words(),
                    range.budget
                )
            });
        }
        let safe = self.vector.safe_scale()? * all.len() as f64 / kept.max(1) as f64;
        (kept > 0 && scale.abs() > safe * (1.0 + 1e-6)).then(|| {
            format!(
                "scale {} adds {:.1} % of the residual norm{}; text may fall apart beyond {} % (scale {safe:.2}), a rule of thumb",
                self.scale,
                SteeringVector::STRONG_PERCENT * scale.abs() / safe,
                if kept > 1 { format!(" over {kept} layers") } else { String::new() },
                SteeringVector::STRONG_PERCENT
            )
        })
    }
}

/// The vectors that are added to the residual stream of one model, layer by layer.
#[derive(Debug, Clone, PartialEq)]
pub struct ControlVector {
    /// `[n_layer - 1, n_embd]`: row i belongs to layer i + 1; zero where nothing is added.
    pub data: Vec<f32>,
    /// Lowest steered layer.
    pub first: usize,
    /// Highest steered layer.
    pub last: usize,
    /// Changes that differ from row to row.
    pub conditional: Vec<Conditional>,
    /// LoRA adapters, which change matrices at every position.
    pub adapters: Adapters,
}

impl ControlVector {
    /// SHA-256 of what is added, layer numbers included, lower-case hex.
    pub fn sha256(&self) -> String {
        let mut bytes = format!("{}-{}:", self.first, self.last).into_bytes();
        bytes.extend(self.data.iter().flat_map(|x| x.to_le_bytes()));
        bytes.extend(self.conditional.iter().flat_map(Conditional::bytes));
        bytes.extend(self.adapters.bytes());
        sha256_of_bytes(&bytes)
    }

    /// A control vector for a residual stream of width `n_embd`, its `data` checked.
    ///
    /// # Errors
    /// [`SteerError::Mismatch`] for numbers that are not finite, and for norms that add up to more than 1e12.
    pub fn bounded(data: Vec<f32>, first: usize, last: usize, n_embd: usize) -> Result<Self, SteerError> {
        let mut total = 0.0;
        for (i, row) in data.chunks(n_embd.max(1)).enumerate() {
            let norm = row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
            if !norm.is_finite() {
                return Err(SteerError::Mismatch(format!(
                    "the sum at layer {} is not finite: the scales are too large",
                    i + 1
                )));
            }
            total += norm;
        }
        if total > MOST_NORM {
            return Err(SteerError::Mismatch(format!(
                "the scales are too large: the norms of what they add to the residual stream sum up to {total:.1e}, and at \
                 most {MOST_NORM:e} is allowed (nothing of the model's own activations is left there)"
            )));
        }
        Ok(Self::constant(data, first, last))
    }

    /// Constant vectors, `[n_layer - 1, n_embd]`, at layers `first..=last`.
    pub fn constant(data: Vec<f32>, first: usize, last: usize) -> Self {
        Self { data, first, last, conditional: Vec::new(), adapters: Adapters::default() }
    }

    /// Adapters alone: nothing is added to the residual stream of `n_layer` blocks of width `n_embd`, at no layer.
    pub fn of_adapters(adapters: Adapters, n_layer: usize, n_embd: usize) -> Self {
        let data = vec![0.0; n_layer.saturating_sub(1) * n_embd];
        Self { adapters, ..Self::constant(data, 1, 0) }
    }

    /// True where something is added to the residual stream, beside what adapters change.
    pub fn has_vectors(&self) -> bool {
        self.first <= self.last
    }

    /// The constant vector added at a layer, `[n_embd]`.
    pub(super) fn added(&self, layer: usize, n_embd: usize) -> &[f32] {
        self.data.get((layer - 1) * n_embd..layer * n_embd).unwrap_or(&[])
    }

    /// Sets it on a context and clears the KV cache (K and V were computed under the old vector). Where rows are changed one by
    /// one, batches have to say where prompts end ([`ggml_grad::llama::Batch::set_prompt`]) if
    /// [`ControlVector::depends_on_prompt`].
    ///
    /// # Errors
    /// [`LlamaError::ControlVector`] for a context of another model.
    pub fn apply(&self, ctx: &mut Context) -> Result<(), LlamaError> {
        self.apply_with_memory(ctx).map(|_| ())
    }

    /// As [`ControlVector::apply`]; returns what the gates of the context will have decided.
    ///
    /// # Errors
    /// As [`ControlVector::apply`].
    pub fn apply_with_memory(&self, ctx: &mut Context) -> Result<Arc<Mutex<GateMemory>>, LlamaError> {
        let memory = Arc::<Mutex<GateMemory>>::default();
        self.adapters.put_on(ctx)?;
        if !self.has_vectors() {
            ctx.set_row_change(None);
            ctx.clear_control_vector();
            return Ok(memory);
        }
        if self.conditional.is_empty() {
            ctx.set_row_change(None);
            ctx.set_control_vector(&self.data, self.first, self.last)?;
            return Ok(memory);
        }
        let n_embd = ctx.model().n_embd();
        if self.data.len() != (ctx.model().n_layer() - 1) * n_embd {
            return Err(LlamaError::ControlVector(format!(
                "a steering of {} numbers on a model of {} layers of {n_embd} dimensions",
                self.data.len(),
                ctx.model().n_layer()
            )));
        }
        // The gates read the stream as it arrives: the constant part is added after them, in the same place.
        ctx.clear_control_vector();
        ctx.set_row_change(Some(Box::new(Steer { control: self.clone(), memory: Arc::clone(&memory), n_embd })));
        Ok(memory)
    }
}

/// Sums `scale * direction` for each layer, in f32 and in the order given, as llama.cpp's
/// `common_control_vector_load` does. `layers` restricts it to some layers. `None` when nothing is to be
/// added: no vectors, or all at scale 0.
///
/// # Errors
/// [`SteerError::Mismatch`] for another width, a layer the model does not have (in the vector or in `layers`),
/// `layers` that leave nothing of a vector, and a scale or a sum that is not finite or
/// is beyond [`ControlVector::bounded`].
pub fn combine(
    vectors: &[ScaledVector],
    layers: Option<&Layers>,
    model: &Model,
) -> Result<Option<ControlVector>, SteerError> {
    sum(vectors, layers, model.n_layer(), model.n_embd())
}

fn sum(
    vectors: &[ScaledVector],
    layers: Option<&Layers>,
    n_layer: usize,
    n_embd: usize,
) -> Result<Option<ControlVector>, SteerError> {
    let mismatch = |text: String| Err(SteerError::Mismatch(text));
    let top = n_layer.saturating_sub(1);
    if let Some(list) = layers.filter(|list| list.iter().any(|&l| l < 1 || l > top)) {
        return mismatch(format!("{} cannot be steered: this model takes 1-{top}", list.labelled()));
    }
    let mut data = vec![0.0f32; top * n_embd]; // [n_layer - 1, n_embd]
    let mut touched: Option<(usize, usize)> = None;
    let mut conditional = Vec::new();
    let mut adapters = Adapters::default();
    for ScaledVector { name, vector, scale } in vectors {
        if let Some(adapter) = &vector.adapter {
            adapters.add(adapter, *scale).map_err(|e| SteerError::Mismatch(format!("adapter {name}: {e}")))?;
            continue;
        }
        if vector.n_embd() != n_embd {
            return mismatch(format!(
                "vector {name} has {} dimensions, the model's residual stream has {n_embd}: it was made for another model",
                vector.n_embd()
            ));
        }
        if let Some(layer) = vector.layers().into_iter().find(|&l| l < 1 || l > top) {
            return mismatch(format!(
                "vector {name} has a direction for layer {layer}, this model takes layers 1-{top}: it was made for another \
                 model"
            ));
        }
        if !scale.is_finite() {
            return mismatch(format!("the scale of vector {name} is {scale}: it must be a finite number"));
        }
        if *scale == 0.0 {
            continue;
        }
        let wanted = |l: &usize| layers.is_none_or(|list| list.contains(l));
        let inside: Vec<usize> = vector.layers().into_iter().filter(wanted).collect();
        let (Some(&first), Some(&last)) = (inside.first(), inside.last()) else {
            return mismatch(format!(
                "vector {name} steers {}, none of them in {}: it would have no effect",
                Layers::new(vector.layers()).map_or_else(|_| "no layer".to_owned(), |own| own.labelled()),
                layers.map_or_else(|| format!("layers 1-{top}"), Layers::labelled)
            ));
        };
        if let Some(rows) = &vector.rows {
            rows.spec
                .check_layer(rows.layer, n_layer)
                .map_err(|e| SteerError::Mismatch(format!("vector {name}: {e}")))?;
            let scaled = rows.scaled(f64::from(*scale))?;
            conditional.push(Conditional {
                name: name.clone(),
                layer: rows.layer,
                change: Change::rows(scaled.rows()?, scaled.wide()),
                scope: vector.scope.clone(),
            });
        }
        for (layer, direction) in vector.directions.iter().filter(|(l, _)| wanted(l)) {
            if !vector.scope.is_all() {
                conditional.push(Conditional {
                    name: name.clone(),
                    layer: *layer,
                    change: Change::Constant(direction.iter().map(|d| scale * d).collect()),
                    scope: vector.scope.clone(),
                });
                continue;
            }
            let row = &mut data[(layer - 1) * n_embd..layer * n_embd]; // [n_embd]
            for (x, d) in row.iter_mut().zip(direction) {
                *x += scale * d;
            }
        }
        touched = Some(touched.map_or((first, last), |(a, b)| (a.min(first), b.max(last))));
    }
    for c in &conditional {
        if !c.is_bounded(MOST_NORM) {
            return mismatch(format!("the scale of {} is too large: what it adds would not be finite", c.name));
        }
    }
    let bounded = touched.map(|(first, last)| ControlVector::bounded(data, first, last, n_embd)).transpose()?;
    Ok(match bounded {
        Some(constant) => Some(ControlVector { conditional, adapters, ..constant }),
        None if adapters.is_empty() => None,
        None => Some(ControlVector::of_adapters(adapters, n_layer, n_embd)),
    })
}

/// That nothing tells whether `vector` was made for the architecture of `model`: its file names none that llama.cpp has, under no
/// name of it. `None` where the file names one, or says nothing at all.
pub fn architecture_note(vector: &SteeringVector, model: &Model) -> Option<String> {
    let (stated, architecture) = (vector.model_hint.as_str(), model.architecture());
    let unknown = match_architecture(stated, &architecture) == Match::Unknown && !stated.is_empty();
    unknown.then(|| {
        format!(
            "its architecture is given as {stated:?}; nothing tells whether it was made for this model ({architecture})"
        )
    })
}

/// Reasons to doubt that `vector` belongs to `model`: made for another architecture, or for another model file. Hashes
/// the model's file when nothing cheaper decides.
pub fn warnings(vector: &SteeringVector, model: &Model) -> Vec<String> {
    let architecture = model.architecture();
    if match_architecture(&vector.model_hint, &architecture) == Match::Different {
        return vec![format!(
            "it was made for the {} architecture, this model is {architecture}: do not expect it to work",
            vector.model_hint
        )];
    }
    let provenance = &vector.provenance;
    let (name, quantization) = (identity::name(model), identity::quantization(model));
    if let Some(made_for) = provenance.str("model_name").filter(|n| *n != name) {
        return vec![format!("it was trained on {made_for:?}, this model is {name:?}: do not expect the same effect")];
    }
    if let Some(made_for) = provenance.str("model_quantization").filter(|q| *q != quantization) {
        return vec![format!(
            "it was trained on the {made_for} quantization, this file is {quantization}: the effect may differ a little"
        )];
    }
    let Some(made_for) = provenance.str("model_sha256") else { return Vec::new() };
    match ggml_grad::files::sha256_of_file(model.path()) {
        Ok(hash) if hash == made_for => Vec::new(),
        Ok(hash) => vec![format!(
            "it was trained on another file of this model (SHA-256 {}..., this one is {}...): the effect may differ",
            made_for.get(..12).unwrap_or(made_for),
            &hash[..12]
        )],
        Err(error) => vec![format!("cannot tell whether it belongs to {}: {error}", model.path().display())],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scaled(layer: usize, d: &[f32], scale: f32) -> ScaledVector {
        let vector = Arc::new(SteeringVector::single(layer, d.to_vec(), "llama").unwrap());
        ScaledVector { name: format!("v{layer}"), vector, scale }
    }

    fn layers(list: &str) -> Layers {
        list.parse().unwrap()
    }

    #[test]
    fn a_strong_scale_is_noted_where_the_layers_add_up() {
        let dial = |list: &str, scale: f32| {
            let of = layers(list);
            let mut vector = SteeringVector::from_layers(&of, &vec![1.0; of.len()], "llama").unwrap();
            of.iter().for_each(|l| vector.provenance.set_float(&format!("residual_norm_median.{l}"), 10.0));
            ScaledVector { name: "v".into(), vector: Arc::new(vector), scale }
        };
        // Norm 1 is 10 percent of 10: one layer may have twice that, two layers once each.
        assert!((dial("3", 1.0).vector.safe_scale().unwrap() - 2.0).abs() < 1e-9);
        assert!((dial("3-4", 1.0).vector.safe_scale().unwrap() - 1.0).abs() < 1e-9);
        assert_eq!(dial("3", 2.0).strength_note(None), None);
        assert_eq!(dial("3-4", -2.0).strength_note(Some(&layers("3"))), None);
        assert_eq!(dial("3-4", -2.0).strength_note(Some(&layers("7"))), None);
        let note = dial("3-4", -2.0).strength_note(None).unwrap();
        assert!(note.starts_with("scale -2 adds 40.0 % of the residual norm over 2 layers;"), "{note}");
        assert!(note.contains("beyond 20 % (scale 1.00)"), "{note}");
        // A measured range stands in its place, where all layers are steered.
        let mut measured = dial("3-4", -1.5);
        let range = crate::steer::MeasuredRange { low: -1.25, high: 9.0, budget: 0.2 };
        range.record(&mut Arc::make_mut(&mut measured.vector).provenance);
        let note = measured.strength_note(None).unwrap();
        assert!(
            note.starts_with("scale -1.5 is beyond -1.25 to 9.00, the measured range") && note.contains("0.2 nats"),
            "{note}"
        );
        assert_eq!(measured.strength_note(Some(&layers("3"))), None);
        measured.scale = 8.0;
        assert_eq!(measured.strength_note(None), None);
        // Of a vector without the residual norm nothing is known.
        assert_eq!(scaled(1, &[1.0, 2.0], 100.0).strength_note(None), None);
    }

    #[test]
    fn a_gate_needs_the_rows_that_it_reads() {
        use crate::intervention::{Kind, KindSpec};
        let at = |layer: usize, mean: bool| {
            let spec = KindSpec { mean, ..Kind::PromptGate.into() };
            let mut vector = SteeringVector::single(layer, vec![0.0; 2], "llama").unwrap();
            vector.directions.clear();
            vector.rows = Some(crate::steer::RowChanges { spec, layer, n_embd: 2, theta: vec![1.0; 5] });
            sum(&[ScaledVector { name: "v".into(), vector: Arc::new(vector), scale: 1.0 }], None, 5, 2)
        };
        assert!(at(3, true).is_ok() && at(4, false).is_ok());
        let error = at(4, true).unwrap_err().to_string();
        assert!(error.contains("cannot be at layer 4") && error.contains("--decided-by last"), "{error}");
    }

    #[test]
    fn rows_start_at_layer_one_and_scales_add_up() {
        let vectors = [scaled(1, &[1.0, 2.0], 0.5), scaled(3, &[1.0, 0.0], -2.0), scaled(3, &[0.0, 4.0], 1.0)];
        let cv = sum(&vectors, None, 5, 2).unwrap().unwrap();
        assert_eq!(cv.data, [0.5, 1.0, 0.0, 0.0, -2.0, 4.0, 0.0, 0.0]);
        assert_eq!((cv.first, cv.last), (1, 3));
        let cv = sum(&vectors[1..], Some(&layers("2-4")), 5, 2).unwrap().unwrap();
        assert_eq!((cv.first, cv.last), (3, 3));
        assert_eq!(&cv.data[..4], [0.0; 4]);
    }

    #[test]
    fn nothing_to_add_is_none() {
        assert_eq!(sum(&[], None, 5, 2).unwrap(), None);
        assert_eq!(sum(&[scaled(1, &[1.0, 2.0], 0.0)], None, 5, 2).unwrap(), None);
        assert_eq!(sum(&[scaled(1, &[1.0, 2.0], -0.0)], Some(&layers("3-4")), 5, 2).unwrap(), None);
    }

    #[test]
    fn misfits_are_named() {
        let error =
            |vectors: &[ScaledVector], layers: Option<&Layers>| sum(vectors, layers, 5, 2).unwrap_err().to_string();
        assert!(error(&[scaled(1, &[1.0], 1.0)], None).contains("1 dimensions, the model's residual stream has 2"));
        assert!(error(&[scaled(5, &[1.0, 1.0], 1.0)], None).contains("layer 5, this model takes layers 1-4"));
        assert!(error(&[scaled(2, &[1.0, 1.0], f32::NAN)], None).contains("finite"));
        assert!(error(&[scaled(2, &[3e38, 1.0], 3e38)], None).contains("too large"));
        // Finite, but the squares of the residual stream overflow; and many layers add up.
        assert!(error(&[scaled(2, &[1.0, 1.0], 3e38)], None).contains("4.2e38, and at most 1e12"));
        let many: Vec<_> = (1..5).map(|l| scaled(l, &[3e11, 0.0], 1.0)).collect();
        assert!(sum(&many[1..], None, 5, 2).is_ok());
        assert!(error(&many, None).contains("1.2e12"));
        assert!(
            error(&[scaled(2, &[1.0, 1.0], 1.0)], Some(&layers("3-4")))
                .contains("v2 steers layer 2, none of them in layers 3-4")
        );
        for list in ["0-2", "1-5", "2,7"] {
            assert!(
                error(&[], Some(&layers(list)))
                    .contains(&format!("layers {list} cannot be steered: this model takes 1-4"))
            );
        }
    }
}
