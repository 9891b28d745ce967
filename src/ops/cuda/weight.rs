//! Weights on a GPU: streamed from the mapped file where they are kept as they are stored, else converted on the way.

use std::sync::Arc;

use half::{bf16, f16};
use safetensors::Dtype;
use tramontane_kernels::cuda::{Element, Packed};

use super::driver::{Gpu, Memory};
use crate::checkpoint::TensorData;
use crate::error::Result;
use crate::ops::cpu::overflows_f16;
use crate::ops::{Cpu, Format};

/// Values that go to the device in one copy, bytes.
const PIECE: usize = 16 << 20;

/// A weight matrix `[rows, cols]` on the device.
pub struct CudaWeight {
    pub(super) memory: Memory,
    pub(super) layout: Layout,
    pub(super) rows: usize,
    pub(super) cols: usize,
}

/// How a matrix lies in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// Row after row.
    Dense(Element),
    /// In panels of 16 rows.
    Packed(Packed),
}

impl Layout {
    /// How `tensor` is kept in `format`.
    fn of(tensor: &TensorData, format: Format) -> Self {
        match format {
            Format::Auto => Self::Dense(stored(tensor)),
            Format::F32 => Self::Dense(Element::F32),
            Format::Bf16 => Self::Dense(Element::Bf16),
            Format::F16 => Self::Dense(Element::F16),
            Format::Q8 => Self::Packed(Packed::Q8),
            Format::Q4 => Self::Packed(Packed::Q4),
        }
    }
}

/// The type in which a tensor is stored; F32 for those that are converted to it.
fn stored(tensor: &TensorData) -> Element {
    if tensor.dtype == Dtype::BF16 {
        Element::Bf16
    } else if tensor.dtype == Dtype::F16 {
        Element::F16
    } else {
        Element::F32
    }
}

impl CudaWeight {
    /// Takes a matrix of the checkpoint to the device, and lets go of the mapped pages it came from; `host` packs it.
    pub(super) fn upload(
        gpu: &Arc<Gpu>,
        host: &Cpu,
        tensor: &TensorData,
        format: Format,
    ) -> Result<Self> {
        let layout = Layout::of(tensor, format);
        let (rows, cols) = (tensor.shape[0], tensor.shape[1]);
        let memory = match layout {
            Layout::Dense(element) => {
                let memory = gpu.alloc(rows * cols * element.bytes())?;
                upload_dense(gpu, tensor, element, &memory)?;
                memory
            }
            Layout::Packed(_) => upload_bytes(gpu, host.panels(tensor, format)?.bytes())?,
        };
        tensor.bytes.release();
        Ok(Self { memory, layout, rows, cols })
    }

    /// Takes a matrix `[rows, cols]` that was packed before: in its panels where the kernels read those, else row
    /// after row.
    pub(super) fn upload_packed(
        gpu: &Arc<Gpu>,
        host: &Cpu,
        tensor: &TensorData,
        format: Format,
        [rows, cols]: [usize; 2],
    ) -> Result<Self> {
        let packed = host.mapped(tensor, format, [rows, cols])?;
        let layout = Layout::of(tensor, format);
        let memory = match layout {
            Layout::Packed(_) => upload_bytes(gpu, packed.bytes())?,
            Layout::Dense(element) => {
                let memory = gpu.alloc(rows * cols * element.bytes())?;
                upload_as(gpu, host.unpack(&packed), element, tensor, &memory)?;
                memory
            }
        };
        tensor.bytes.release();
        Ok(Self { memory, layout, rows, cols })
    }
}

/// Memory of the device with these bytes.
fn upload_bytes(gpu: &Arc<Gpu>, bytes: &[u8]) -> Result<Memory> {
    let memory = gpu.alloc(bytes.len())?;
    stream(gpu, bytes, &memory)?;
    Ok(memory)
}

/// Copies `bytes`, a piece at a time.
fn stream(gpu: &Gpu, bytes: &[u8], to: &Memory) -> Result<()> {
    let mut pieces = bytes.chunks(PIECE).enumerate();
    pieces.try_for_each(|(i, piece)| gpu.upload(piece, to, i * PIECE))
}

/// Takes the values of a tensor to the device as `element`: as they lie in the file where that is their type.
fn upload_dense(gpu: &Gpu, tensor: &TensorData, element: Element, to: &Memory) -> Result<()> {
    let is_float = element != Element::F32 || tensor.dtype == Dtype::F32;
    if element == stored(tensor) && is_float && cfg!(target_endian = "little") {
        stream(gpu, &tensor.bytes, to)
    } else {
        upload_as(gpu, tensor.to_f32()?, element, tensor, to)
    }
}

/// Takes the values of `tensor` to the device as elements of another type.
fn upload_as(
    gpu: &Gpu,
    values: Vec<f32>,
    element: Element,
    tensor: &TensorData,
    to: &Memory,
) -> Result<()> {
    match element {
        Element::F32 => gpu.upload(&values, to, 0),
        Element::F16 => {
            if let Some(x) =
                values.iter().find(|x| x.is_finite() && f16::from_f32(**x).is_infinite())
            {
                return Err(overflows_f16(tensor, *x));
            }
            let values: Vec<u16> = values.into_iter().map(|v| f16::from_f32(v).to_bits()).collect();
            gpu.upload(&values, to, 0)
        }
        Element::Bf16 => {
            let values: Vec<u16> =
                values.into_iter().map(|v| bf16::from_f32(v).to_bits()).collect();
            gpu.upload(&values, to, 0)
        }
    }
}
