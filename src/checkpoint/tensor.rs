//! One tensor of a checkpoint: its bytes where they are, and the ways to read them as numbers.

use std::sync::Arc;

use bytemuck::AnyBitPattern;
use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use safetensors::Dtype;

use super::Bytes;
use crate::error::{Error, Result};

/// A named tensor as it is stored: little-endian values, the last dimension fastest.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct TensorData {
    /// The name in the checkpoint.
    pub name: String,
    /// How a value is stored.
    pub dtype: Dtype,
    /// The length of each dimension, the slowest first.
    pub shape: Vec<usize>,
    /// The stored values: as many bytes as `shape` and `dtype` take.
    pub bytes: Bytes,
    /// The file it came from, as messages name it.
    pub file: Arc<str>,
}

impl TensorData {
    /// The number of values.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there is no value at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The values as f32, in a copy of their own.
    ///
    /// # Errors
    ///
    /// If the values are not F32, F16 or BF16.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        let bytes = &*self.bytes;
        if self.dtype == Dtype::F32 {
            Ok(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
        } else if self.dtype == Dtype::F16 {
            Ok(bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect())
        } else if self.dtype == Dtype::BF16 {
            Ok(bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect())
        } else {
            Err(self.refused_dtype())
        }
    }

    /// Checks that the values are plain floats: F32, F16 or BF16.
    ///
    /// # Errors
    ///
    /// If they are not; the message says what such values may mean.
    pub fn check_is_float(&self) -> Result<()> {
        match [Dtype::F32, Dtype::F16, Dtype::BF16].contains(&self.dtype) {
            true => Ok(()),
            false => Err(self.refused_dtype()),
        }
    }

    /// The values where they are, if they are F32 and aligned for it.
    #[must_use]
    pub fn as_f32(&self) -> Option<&[f32]> {
        self.view(Dtype::F32)
    }

    /// The values where they are, if they are F16 and aligned for it.
    #[must_use]
    pub fn as_f16(&self) -> Option<&[f16]> {
        self.view(Dtype::F16)
    }

    /// The values where they are, if they are BF16 and aligned for it.
    #[must_use]
    pub fn as_bf16(&self) -> Option<&[bf16]> {
        self.view(Dtype::BF16)
    }

    /// The bytes as values of `T`, which is how `dtype` is stored on a little-endian machine.
    fn view<T: AnyBitPattern>(&self, dtype: Dtype) -> Option<&[T]> {
        if self.dtype != dtype || cfg!(target_endian = "big") {
            return None;
        }
        bytemuck::try_cast_slice(&self.bytes).ok()
    }

    /// A candle tensor on the CPU with a copy of the values, in the stored dtype.
    ///
    /// # Errors
    ///
    /// If the values are not F32, F16 or BF16.
    pub fn tensor(&self) -> Result<Tensor> {
        let dtype = if self.dtype == Dtype::F32 {
            DType::F32
        } else if self.dtype == Dtype::F16 {
            DType::F16
        } else if self.dtype == Dtype::BF16 {
            DType::BF16
        } else {
            return Err(self.refused_dtype());
        };
        Ok(Tensor::from_raw_buffer(&self.bytes, dtype, &self.shape, &Device::Cpu)?)
    }

    /// An error about this tensor, which names its file.
    #[must_use]
    pub fn error(&self, what: impl Into<String>) -> Error {
        Error::bad_model(what).at(&self.file)
    }

    /// The error for values that are not plain floating point weights.
    fn refused_dtype(&self) -> Error {
        let (name, dtype) = (&self.name, self.dtype);
        let what = format!("`{name}` is stored as {dtype:?}, expected F32, F16 or BF16");
        let error = Error::not_supported(what).at(&self.file);
        match format!("{dtype:?}").as_bytes() {
            [b'F', b'8' | b'6' | b'4', b'_', ..] | b"F4" => {
                error.so("such small values mean nothing without their scales")
            }
            [b'I' | b'U', ..] => error
                .so("integer weights belong to a checkpoint that was quantised beforehand (AWQ, GPTQ)")
                .hint("the original 16-bit model; --format q8 or q4 makes it small at load"),
            _ => error.hint("converting the weights to BF16"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(dtype: Dtype, bytes: impl Into<Bytes>) -> TensorData {
        let bytes = bytes.into();
        let shape = vec![bytes.len() * 8 / dtype.bitsize()];
        TensorData { name: "t".to_owned(), dtype, shape, bytes, file: "t.safetensors".into() }
    }

    #[test]
    fn the_three_float_types_are_read() {
        let f32s = tensor(Dtype::F32, [1.5_f32, -2.0].map(f32::to_le_bytes).concat());
        let f16s = tensor(Dtype::F16, [1.5, -2.0].map(|x| f16::from_f32(x).to_le_bytes()).concat());
        let bf16s =
            tensor(Dtype::BF16, [1.5, -2.0].map(|x| bf16::from_f32(x).to_le_bytes()).concat());
        for tensor in [f32s, f16s, bf16s] {
            assert_eq!(tensor.to_f32().unwrap(), [1.5, -2.0]);
            let candle = tensor.tensor().unwrap();
            assert_eq!(candle.dims(), [2]);
            assert_eq!(candle.to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap(), [1.5, -2.0]);
        }
    }

    #[test]
    fn misaligned_values_are_copied() {
        let mut bytes = vec![0_u8; 16];
        let start = bytes.as_ptr().align_offset(4) + 1;
        bytes[start..start + 8].copy_from_slice(&[1.5_f32, -2.0].map(f32::to_le_bytes).concat());
        let odd = tensor(Dtype::F32, Bytes::from(bytes).slice(start..start + 8).unwrap());
        assert_eq!(odd.as_f32(), None);
        assert_eq!(odd.to_f32().unwrap(), [1.5, -2.0]);
        assert_eq!(odd.tensor().unwrap().to_vec1::<f32>().unwrap(), [1.5, -2.0]);
    }

    #[test]
    fn a_view_has_the_stored_type() {
        let mut bytes = vec![0_u8; 16];
        let start = bytes.as_ptr().align_offset(4);
        bytes[start + 3] = 0x40;
        let tensor = tensor(Dtype::F32, Bytes::from(bytes).slice(start..start + 8).unwrap());
        assert_eq!(tensor.as_f32(), Some(&[2.0, 0.0][..]));
        assert_eq!((tensor.as_f16(), tensor.as_bf16()), (None, None));
    }

    #[test]
    fn other_types_are_refused_by_name() {
        for (dtype, words) in [
            (Dtype::I32, "AWQ, GPTQ"),
            (Dtype::U8, "quantised"),
            (Dtype::F8_E4M3, "scales"),
            (Dtype::F64, "BF16"),
            (Dtype::BOOL, "BF16"),
        ] {
            let tensor = tensor(dtype, vec![0; 8]);
            for message in
                [tensor.to_f32().unwrap_err(), tensor.tensor().unwrap_err()].map(|e| e.to_string())
            {
                assert!(
                    message.contains(&format!("{dtype:?}")) && message.contains(words),
                    "{message}"
                );
                assert!(message.contains("`t`") && message.contains("t.safetensors"), "{message}");
            }
        }
    }
}
