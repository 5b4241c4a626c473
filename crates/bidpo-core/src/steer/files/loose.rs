//! From the tensors of a file to directions: which layer each belongs to, and what is left out.

use super::MAX_N_EMBD;
use crate::layers::Layers;
use std::collections::BTreeMap;
use std::path::Path;

/// A tensor of a file.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tensor {
    /// Its name in the file; empty where the file has one tensor without a name.
    pub(super) name: String,
    /// The last dimension is contiguous.
    pub(super) shape: Vec<usize>,
    pub(super) values: Vec<f32>,
}

/// What was done with a file that its reader should be told.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileRemark {
    /// A direction for layer 0 was left out.
    Layer0,
    /// The file names no layer; it was taken from the file's name.
    LayerOfFileName(usize),
    /// The file names no layers; they were given (`--layers`).
    LayersGiven(Layers),
    /// Entries that are no tensors were passed over.
    NotTensors(Vec<String>),
}

impl std::fmt::Display for FileRemark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Layer0 => f.write_str(
                "its direction for layer 0 is left out: llama.cpp counts blocks from 0 and steers from 1 on",
            ),
            Self::LayerOfFileName(layer) => write!(f, "it names no layer: layer {layer}, by the name of the file"),
            Self::LayersGiven(layers) => write!(f, "it names no layer: {}, as given", layers.labelled()),
            Self::NotTensors(names) => write!(f, "passed over, since they are no tensors: {}", names.join(", ")),
        }
    }
}

/// The directions of a file.
pub(super) struct Directions {
    pub(super) by_layer: BTreeMap<usize, Vec<f32>>,
    pub(super) remarks: Vec<FileRemark>,
}

/// Sorts tensors by layer. Names decide (`direction.15`, `layers.15`, `15`); a single tensor without one belongs to the layers
/// that are `given`, or to the layer in the file's name.
pub(super) fn by_layer(tensors: Vec<Tensor>, path: &Path, given: Option<&Layers>) -> Result<Directions, String> {
    let mut tensors = tensors.into_iter();
    let first = match (tensors.next(), tensors.len()) {
        (None, _) => return Err("it holds no direction".into()),
        (Some(one), 0) if layer_in(&one.name).is_none() => return unnamed(one, path, given),
        (Some(first), _) => first,
    };
    let mut directions = BTreeMap::new();
    for tensor in std::iter::once(first).chain(tensors) {
        let name = &tensor.name;
        let layer = layer_in(name).ok_or_else(|| not_a_direction(name))?;
        check_shape(name, &tensor.shape)?;
        if tensor.shape.iter().filter(|&&n| n != 1).count() > 1 {
            return Err(format!("{name} has the shape {:?}, a direction must have one dimension", tensor.shape));
        }
        if directions.insert(layer, tensor.values).is_some() {
            return Err(format!("it holds two directions for layer {layer}"));
        }
    }
    without_layer_0(directions, given.filter(|l| l.contains(&0)))
}

/// The refusal of a tensor whose name says no layer.
pub(super) fn not_a_direction(name: &str) -> String {
    format!("tensor {name:?} is no direction: a control vector holds direction.N, N a layer from 1")
}

fn check_shape(name: &str, shape: &[usize]) -> Result<(), String> {
    let n = shape.iter().max().copied().unwrap_or(0);
    if n == 0 || shape.contains(&0) || shape.iter().any(|&d| d > MAX_N_EMBD) {
        let name = if name.is_empty() { "the tensor" } else { name };
        return Err(format!("{name} has the shape {shape:?}, expected 1 to {MAX_N_EMBD} values a layer"));
    }
    Ok(())
}

/// One tensor that names no layer: a direction, or the rows of several.
fn unnamed(tensor: Tensor, path: &Path, given: Option<&Layers>) -> Result<Directions, String> {
    let shape = &tensor.shape;
    check_shape(&tensor.name, shape)?;
    let long: Vec<usize> = shape.iter().copied().filter(|&n| n != 1).collect();
    // [n_layers, n_embd]; a single row is a direction.
    let (rows, width) = match long[..] {
        [] => (1, 1),
        [n] => (1, n),
        [rows, n] => (rows, n),
        _ => return Err(format!("it has the shape {shape:?}, expected [n_embd] or [n_layers, n_embd]")),
    };
    let of_name = || layer_in_file_name(path).filter(|_| rows == 1);
    let (layers, remark) = match (given, of_name()) {
        (Some(given), _) => (given.clone(), FileRemark::LayersGiven(given.clone())),
        (None, Some(layer)) => (Layers::one(layer), FileRemark::LayerOfFileName(layer)),
        (None, None) if rows == 1 => {
            return Err("it does not say which layer it steers: name it with --layers (15)".into());
        }
        (None, None) => {
            return Err(format!(
                "it holds {rows} rows ({shape:?}) and does not say which layers they steer: name them with --layers, lowest \
                 first (0-{}, if row 0 belongs to the output of block 0)",
                rows - 1
            ));
        }
    };
    if rows != layers.len() {
        return Err(format!("it holds {rows} directions ({shape:?}), {} were named: {layers}", layers.len()));
    }
    let directions = layers.iter().copied().zip(tensor.values.chunks_exact(width).map(<[f32]>::to_vec)).collect();
    let mut sorted = without_layer_0(directions, None)?;
    sorted.remarks.insert(0, remark);
    Ok(sorted)
}

/// Leaves the direction of layer 0 out, unless it was asked for.
pub(super) fn without_layer_0(
    mut by_layer: BTreeMap<usize, Vec<f32>>,
    asked: Option<&Layers>,
) -> Result<Directions, String> {
    let mut remarks = Vec::new();
    if by_layer.remove(&0).is_some() {
        if let Some(layers) = asked {
            return Err(format!(
                "--layers {layers}: layer 0 cannot be steered (llama.cpp counts blocks from 0 and starts at 1); leave it out"
            ));
        }
        if by_layer.is_empty() {
            return Err(
                "it holds a direction for layer 0 only, which cannot be steered: llama.cpp counts blocks from 0 and \
                        starts at 1"
                    .into(),
            );
        }
        remarks.push(FileRemark::Layer0);
    }
    Ok(Directions { by_layer, remarks })
}

/// The layer that a tensor's name states: the name is a number, or a number follows `direction`, `layer`, `layers`, `block` or
/// `blk`. `None` where there is none, or more than one.
pub(super) fn layer_in(name: &str) -> Option<usize> {
    let whole = name.trim();
    if !whole.is_empty() && whole.bytes().all(|b| b.is_ascii_digit()) {
        return number(whole);
    }
    let lower = name.to_ascii_lowercase();
    let mut found = None;
    for word in ["direction", "layers", "layer", "block", "blk"] {
        for (at, _) in lower.match_indices(word) {
            // `blocker.3`, `players.3`: only whole words.
            let before = lower[..at].chars().next_back();
            let after = &lower[at + word.len()..];
            let digits = after.strip_prefix(['.', '_', '-', ' ']).unwrap_or(after);
            let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
            if before.is_some_and(|c| c.is_ascii_alphabetic()) || end == 0 {
                continue;
            }
            let layer = number(&digits[..end])?;
            if found.is_some_and(|f| f != layer) {
                return None;
            }
            found = Some(layer);
        }
    }
    found
}

/// The same for a file: `layer_15.pt`, `vec_ep1_layer15.pt`, `vec_layer_13_Llama-2-7b.pt`.
fn layer_in_file_name(path: &Path) -> Option<usize> {
    let stem = path.file_stem()?.to_string_lossy().into_owned();
    if stem.bytes().all(|b| b.is_ascii_digit()) {
        return None; // `2.pt` may be the second of any kind
    }
    layer_in(&stem)
}

fn number(digits: &str) -> Option<usize> {
    // llama.cpp reads an int; no model has more blocks than that.
    digits.parse::<i32>().ok().map(|n| n as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_tensors_and_files() {
        for (name, layer) in [
            ("direction.15", 15),
            ("15", 15),
            ("layer_15", 15),
            ("layer15", 15),
            ("Layer-15", 15),
            ("model.layers.15.vec", 15),
            ("layers.15.layer.15", 15),
            ("blk.7", 7),
            ("vec_ep1_layer15", 15),
            ("vec_layer_13_Llama-2-7b-chat-hf", 13),
        ] {
            assert_eq!(layer_in(name), Some(layer), "{name}");
        }
        for name in ["", "direction", "direction.x", "vector", "players.3", "layer_1_layer_2", "x15", "-3", "layer.-3"]
        {
            assert_eq!(layer_in(name), None, "{name}");
        }
        assert_eq!(layer_in_file_name(Path::new("a/layer_9/7.pt")), None);
        assert_eq!(layer_in_file_name(Path::new("vec_ep20_layer9.pt")), Some(9));
    }

    fn tensor(name: &str, shape: &[usize]) -> Tensor {
        let n: usize = shape.iter().product();
        Tensor { name: name.into(), shape: shape.into(), values: (0..n).map(|i| i as f32).collect() }
    }

    #[test]
    fn rows_go_to_layers() {
        let sort = |tensors: &[Tensor], file: &str, given: Option<&str>| {
            let given: Option<Layers> = given.map(|l| l.parse().unwrap());
            by_layer(tensors.to_vec(), Path::new(file), given.as_ref())
                .map(|d| (d.by_layer.into_keys().collect::<Vec<_>>(), d.remarks))
        };
        let layers = |list: &str| -> Layers { list.parse().unwrap() };
        let named = [tensor("layer_2", &[1, 3]), tensor("layer_1", &[3])];
        assert_eq!(sort(&named, "x.pt", None).unwrap(), (vec![1, 2], vec![]));
        assert_eq!(sort(&named, "x.pt", Some("2")).unwrap(), (vec![1, 2], vec![]), "the file names them");
        let one = [tensor("", &[1, 1, 3])];
        assert_eq!(sort(&one, "vec_ep1_layer5.pt", None).unwrap().1, [FileRemark::LayerOfFileName(5)]);
        assert_eq!(sort(&one, "vec_ep1_layer5.pt", Some("4")).unwrap().0, [4]);
        assert!(sort(&one, "x.pt", None).unwrap_err().contains("--layers"));
        let stack = [tensor("", &[3, 2])];
        assert!(sort(&stack, "layer_5.pt", None).unwrap_err().contains("3 rows ([3, 2])"));
        let (found, remarks) = sort(&stack, "x.pt", Some("0-2")).unwrap();
        assert_eq!((found, remarks), (vec![1, 2], vec![FileRemark::LayersGiven(layers("0-2")), FileRemark::Layer0]));
        assert!(sort(&stack, "x.pt", Some("1-2")).unwrap_err().contains("3 directions ([3, 2]), 2 were named"));
        let zero = [tensor("direction.0", &[2]), tensor("direction.1", &[2])];
        assert_eq!(sort(&zero, "x", Some("1-2")).unwrap(), (vec![1], vec![FileRemark::Layer0]));
        assert!(sort(&zero, "x", Some("0-1")).unwrap_err().contains("layer 0 cannot be steered"));
        assert!(sort(&zero[..1], "x", None).unwrap_err().contains("layer 0 only"));
        assert!(sort(&[tensor("layer_1", &[2, 2])], "x", None).unwrap_err().contains("one dimension"));
        assert!(
            sort(&[tensor("a", &[2]), tensor("b", &[2])], "x", None).unwrap_err().contains("\"a\" is no direction")
        );
        assert!(sort(&[tensor("1", &[2]), tensor("layer1", &[2])], "x", None).unwrap_err().contains("two directions"));
        assert!(sort(&[tensor("1", &[0])], "x", None).is_err() && sort(&[], "x", None).is_err());
    }
}
