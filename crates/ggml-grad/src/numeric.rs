//! Little-endian bytes, as ggml, GGUF and safetensors store tensors, read as numbers. Bytes after the last whole number are
//! ignored.

use half::{bf16, f16};

/// Little-endian `f32`, 4 bytes each.
pub fn f32_from_le(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// Little-endian `f16`, 2 bytes each, as `f32`.
pub fn f16_from_le(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect()
}

/// Little-endian `bf16`, 2 bytes each, as `f32`.
pub fn bf16_from_le(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect()
}

/// Little-endian `f64`, 8 bytes each.
pub fn f64_from_le(bytes: &[u8]) -> Vec<f64> {
    bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect()
}

/// Little-endian `i32`, 4 bytes each.
pub fn i32_from_le(bytes: &[u8]) -> Vec<i32> {
    bytes.as_chunks().0.iter().map(|b| i32::from_le_bytes(*b)).collect()
}

/// Little-endian `i64`, 8 bytes each.
pub fn i64_from_le(bytes: &[u8]) -> Vec<i64> {
    bytes.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_numbers_are_read_and_a_rest_is_ignored() {
        let bytes = [1.5f32, -0.0].iter().flat_map(|x| x.to_le_bytes()).chain([7, 7]).collect::<Vec<_>>();
        assert_eq!(f32_from_le(&bytes), [1.5, -0.0]);
        assert_eq!(f64_from_le(&2.25f64.to_le_bytes()), [2.25]);
        assert_eq!(f16_from_le(&[0x00, 0x3e, 0x00, 0x80, 9]), [1.5, -0.0]);
        assert_eq!(bf16_from_le(&[0xc0, 0x3f]), [1.5]);
        assert_eq!(i32_from_le(&(-2i32).to_le_bytes()), [-2]);
        assert_eq!(i64_from_le(&(1i64 << 40).to_le_bytes()), [1 << 40]);
        assert!(f64_from_le(&bytes[..4]).is_empty());
    }
}
