//! Vector and model files.

use super::{file, shown};
use bidpo_core::layers::Layers;
use bidpo_core::steer::SteeringVector;
use ggml_grad::llama::GgufFile;

/// Reads a vector file with and without given layers. What is accepted has finite numbers and survives a file of our own.
fn vector(name: &str, bytes: &[u8]) -> bool {
    let path = file(name, bytes);
    let mut accepted = false;
    for layers in [None, Some(&Layers::one(3))] {
        match SteeringVector::open(&path, layers) {
            Err(error) => shown(&error.to_string()),
            Ok(loaded) => {
                accepted = true;
                loaded.remarks.iter().for_each(|remark| shown(&remark.to_string()));
                let vector = loaded.vector;
                assert!(vector.directions.values().flatten().all(|x| x.is_finite()), "a number that is not finite");
                let ours = path.with_file_name("ours.gguf");
                match vector.save(&ours) {
                    // Metadata of another tool may not fit into a GGUF.
                    Err(error) => shown(&error.to_string()),
                    Ok(()) => {
                        let again = SteeringVector::load(&ours).expect("a vector that was written is read");
                        assert_eq!(again.directions, vector.directions);
                        assert_eq!((&again.rows, &again.scope), (&vector.rows, &vector.scope));
                    }
                }
            }
        }
    }
    accepted
}

pub(super) fn gguf(bytes: &[u8]) -> bool {
    vector("v.gguf", bytes)
}

pub(super) fn safetensors(bytes: &[u8]) -> bool {
    vector("v.safetensors", bytes)
}

pub(super) fn npy(bytes: &[u8]) -> bool {
    vector("v.npy", bytes)
}

pub(super) fn npz(bytes: &[u8]) -> bool {
    vector("v.npz", bytes)
}

pub(super) fn torch(bytes: &[u8]) -> bool {
    vector("v.pt", bytes)
}

/// The header of a model: what is checked before llama.cpp loads it.
pub(super) fn model(bytes: &[u8]) -> bool {
    let path = file("m.gguf", bytes);
    match GgufFile::open(&path) {
        Ok(_) => {
            if let Err(error) = GgufFile::weight_bytes(&path) {
                shown(&error.to_string());
            }
            true
        }
        Err(error) => {
            shown(&error.to_string());
            false
        }
    }
}
