//! Weights on a GPU: streamed from the mapped file where they are kept as they are stored, else converted on the way.

use std::sync::Arc;

use half::{bf16, f16};
use safetensors::Dtype;
use tramontane_kernels::cuda::Element;

use super::driver::{Gpu, Memory};
use super::no_format;
use crate::checkpoint::TensorData;
use crate::error::Result;
use crate::ops::Format;
use crate::ops::cpu::overflows_f16;

/// Values that go to the device in one copy, bytes.
const PIECE: usize = 16 << 20;

/// A weight matrix `[rows, cols]` on the device.
pub struct CudaWeight {
    pub(super) memory: Memory,
    pub(super) element: Element,
    pub(super) rows: usize,
    pub(super) cols: usize,
}

/// The type of the elements of weights in `format`; `None` where there are no kernels, or the checkpoint decides.
pub(super) fn element(format: Format) -> Option<Element> {
    match format {
        Format::F32 => Some(Element::F32),
        Format::Bf16 => Some(Element::Bf16),
        Format::F16 => Some(Element::F16),
        Format::Auto | Format::Q8 | Format::Q4 => None,
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
    /// Takes a matrix of the checkpoint to the device, and lets go of the mapped pages it came from.
    pub(super) fn upload(gpu: &Arc<Gpu>, tensor: &TensorData, format: Format) -> Result<Self> {
        let stored = stored(tensor);
        let element = if format == Format::Auto {
            stored
        } else {
            element(format).ok_or_else(|| no_format(format))?
        };
        let (rows, cols) = (tensor.shape[0], tensor.shape[1]);
        let memory = gpu.alloc(rows * cols * element.bytes())?;
        let as_it_is = element == stored && (element != Element::F32 || tensor.dtype == Dtype::F32);
        if as_it_is && cfg!(target_endian = "little") {
            for (i, piece) in tensor.bytes.chunks(PIECE).enumerate() {
                gpu.upload(piece, &memory, i * PIECE)?;
            }
        } else {
            upload_as(gpu, tensor, element, &memory)?;
        }
        tensor.bytes.release();
        Ok(Self { memory, element, rows, cols })
    }
}

/// Takes the values of a tensor to the device as elements of another type.
fn upload_as(gpu: &Gpu, tensor: &TensorData, element: Element, to: &Memory) -> Result<()> {
    let values = tensor.to_f32()?;
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
