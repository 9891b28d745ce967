//! Weights in main memory: packed for the kernels, or, where only single rows are ever read, as the checkpoint has them.

use std::sync::{Arc, Mutex, PoisonError};

use half::f16;
use safetensors::Dtype;
use tramontane_kernels::cpu::pack::{copy, pack, unpack_rows};
use tramontane_kernels::formats::{Dense, Matrix};
use tramontane_kernels::memory::{Arena, OutOfMemory};
use tramontane_kernels::packed::{Format as PackedFormat, Packed};
use tramontane_kernels::{Isa, Pool};

use crate::checkpoint::{Bytes, TensorData};
use crate::error::{Error, ErrorKind, Result};
use crate::ops::Format;

/// Bytes of a checkpoint, as the kernels hold them.
struct Mapped(Bytes);

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// A weight matrix `[rows, cols]`.
pub enum CpuWeight {
    /// In the order in which the kernels read it, in memory of its own.
    Packed(Packed),
    /// Where the checkpoint has it: an embedding, of which a token reads one row.
    Table(TensorData),
}

impl CpuWeight {
    /// Packs a matrix of the checkpoint, and lets go of the mapped pages it came from.
    pub(super) fn pack(
        isa: Isa,
        pool: &Pool,
        arena: &Mutex<Arena>,
        tensor: &TensorData,
        format: Format,
    ) -> Result<Self> {
        let tensor = &aligned(tensor);
        let dense = dense(tensor)?;
        let format = packed_format(tensor, format);
        if format == PackedFormat::F16 {
            check_f16(tensor, &dense)?;
        }
        let matrix = Matrix::new(tensor.shape[0], tensor.shape[1], dense);
        // A panic of another thread while packing leaves the arena as it was before.
        let mut arena = arena.lock().unwrap_or_else(PoisonError::into_inner);
        let packed = pack(isa, pool, format, &matrix, &mut arena).map_err(no_memory)?;
        tensor.bytes.release();
        Ok(Self::Packed(packed))
    }

    /// A matrix that was packed before, copied, because memory is read faster than a mapped file; lets go of the mapped
    /// pages.
    pub(super) fn copied(
        pool: &Pool,
        arena: &Mutex<Arena>,
        tensor: &TensorData,
        format: Format,
        shape: [usize; 2],
    ) -> Result<Self> {
        let mapped = Self::mapped(tensor, format, shape)?;
        let mut arena = arena.lock().unwrap_or_else(PoisonError::into_inner);
        let copied = copy(pool, mapped.packed()?, &mut arena).map_err(no_memory)?;
        tensor.bytes.release();
        Ok(Self::Packed(copied))
    }

    /// A matrix that was packed before, where the checkpoint has it.
    pub(super) fn mapped(tensor: &TensorData, format: Format, shape: [usize; 2]) -> Result<Self> {
        let format = packed_format(tensor, format);
        let (owner, range) = (Arc::new(Mapped(tensor.bytes.clone())), 0..tensor.bytes.len());
        let packed = Packed::new(format, shape[0], shape[1], owner, range);
        let packed = packed.map_err(|e| tensor.error(format!("`{}`: {e}", tensor.name)))?;
        Ok(Self::Packed(packed))
    }

    /// A matrix of which only rows are read.
    pub(super) fn table(tensor: &TensorData) -> Result<Self> {
        let tensor = aligned(tensor);
        dense(&tensor)?;
        Ok(Self::Table(tensor))
    }

    /// The packed matrix.
    ///
    /// # Errors
    ///
    /// If this is a table.
    pub(super) fn packed(&self) -> Result<&Packed> {
        match self {
            Self::Packed(packed) => Ok(packed),
            Self::Table(tensor) => Err(tensor.error(format!(
                "`{}` was loaded for its rows, expected a matrix to multiply with",
                tensor.name
            ))),
        }
    }

    /// Writes the rows `ids` to `out`, `[ids, cols]`.
    pub(super) fn rows(&self, isa: Isa, pool: &Pool, ids: &[u32], out: &mut [f32]) -> Result<()> {
        match self {
            Self::Packed(packed) => {
                unpack_rows(isa, pool, packed, ids, &mut out[..ids.len() * packed.cols()])
            }
            Self::Table(tensor) => {
                let cols = tensor.shape[1];
                let matrix = Matrix::new(tensor.shape[0], cols, dense(tensor)?);
                for (id, out) in ids.iter().zip(out.chunks_exact_mut(cols)) {
                    matrix.row(isa, *id as usize, out);
                }
            }
        }
        Ok(())
    }
}

fn no_memory(e: OutOfMemory) -> Error {
    let what = format!("{} bytes of memory cannot be had for weights", e.bytes);
    Error::new(ErrorKind::NoMemory, what).hint("a smaller format (--format) or model")
}

/// The tensor itself, or a copy where its bytes do not begin at a multiple of an element: an odd header shifts them.
fn aligned(tensor: &TensorData) -> TensorData {
    let mut tensor = tensor.clone();
    if dense(&tensor).is_err() {
        tensor.bytes = Bytes::from(tensor.bytes.to_vec());
    }
    tensor
}

/// The values of a tensor where they are.
fn dense(tensor: &TensorData) -> Result<Dense<'_>> {
    if tensor.is_empty() {
        return Ok(Dense::F32(&[]));
    }
    let f32 = || tensor.as_f32().map(Dense::F32);
    let f16 = || tensor.as_f16().map(Dense::F16);
    let bf16 = || tensor.as_bf16().map(Dense::Bf16);
    f32().or_else(f16).or_else(bf16).ok_or_else(|| {
        Error::not_supported(format!(
            "`{}` is stored as {:?}, expected F32, F16 or BF16",
            tensor.name, tensor.dtype
        ))
    })
}

/// How the graph calls the format of a packed matrix.
pub(super) fn format_of(packed: &Packed) -> Format {
    match packed.format() {
        PackedFormat::F32 => Format::F32,
        PackedFormat::Bf16 => Format::Bf16,
        PackedFormat::F16 => Format::F16,
        PackedFormat::Q8 => Format::Q8,
        PackedFormat::Q4 => Format::Q4,
    }
}

fn packed_format(tensor: &TensorData, format: Format) -> PackedFormat {
    match format {
        Format::F32 => PackedFormat::F32,
        Format::Bf16 => PackedFormat::Bf16,
        Format::F16 => PackedFormat::F16,
        Format::Q8 => PackedFormat::Q8,
        Format::Q4 => PackedFormat::Q4,
        Format::Auto if tensor.dtype == Dtype::BF16 => PackedFormat::Bf16,
        Format::Auto if tensor.dtype == Dtype::F16 => PackedFormat::F16,
        Format::Auto => PackedFormat::F32,
    }
}

/// Refuses finite values that are infinite in f16.
fn check_f16(tensor: &TensorData, dense: &Dense<'_>) -> Result<()> {
    let overflows = |x: &f32| x.is_finite() && f16::from_f32(*x).is_infinite();
    let found = match dense {
        Dense::F16(_) => None,
        Dense::F32(values) => values.iter().copied().find(overflows),
        Dense::Bf16(values) => values.iter().map(|x| x.to_f32()).find(overflows),
    };
    match found {
        Some(x) => Err(overflows_f16(tensor, x)),
        None => Ok(()),
    }
}

/// The error for a finite value that is infinite in f16.
pub(crate) fn overflows_f16(tensor: &TensorData, x: f32) -> Error {
    Error::bad_model(format!("`{}` holds {x}, which overflows f16", tensor.name))
        .hint("--format bf16 or f32")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Checkpoint;
    use crate::files::ModelFiles;

    #[test]
    fn values_that_are_not_aligned_are_copied() {
        let checkpoint = Checkpoint::open(&ModelFiles::BuiltIn).unwrap();
        let stored = checkpoint.require("model.layers.0.self_attn.k_proj.weight").unwrap();
        let mut shifted = vec![0; 1];
        shifted.extend_from_slice(&stored.bytes);
        let mut tensor = stored.clone();
        tensor.bytes = Bytes::from(shifted).slice(1..stored.bytes.len() + 1).unwrap();
        assert!(dense(&tensor).is_err());
        assert_eq!(aligned(&tensor).as_bf16(), aligned(stored).as_bf16());
        assert!(aligned(&tensor).as_bf16().is_some());
    }
}
