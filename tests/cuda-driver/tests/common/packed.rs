//! Products with packed weights on the emulated device, beside those of the reference.

use tramontane_kernels::cases::{MatmulCase, Numbers};
use tramontane_kernels::cpu::pack::pack;
use tramontane_kernels::cuda::{self, Element, Input, Launch, Packed, Target};
use tramontane_kernels::formats::{Dense, Matrix};
use tramontane_kernels::memory::Arena;
use tramontane_kernels::packed::Format as PackedFormat;
use tramontane_kernels::{Isa, Pool, reference};

use crate::common::Gpu;

/// A packed matrix, and the very weights that it stands for.
pub(crate) fn pack_as(format: Packed, w: &[f32], rows: usize, cols: usize) -> (Vec<u8>, Vec<f32>) {
    let format = match format {
        Packed::Q8 => PackedFormat::Q8,
        Packed::Q4 => PackedFormat::Q4,
    };
    let matrix = Matrix::new(rows, cols, Dense::F32(w));
    let packed =
        pack(Isa::portable(), &Pool::new(1), format, &matrix, &mut Arena::new()).expect("memory");
    (packed.bytes().to_vec(), reference::unpack(&packed))
}

/// The product of a case on the device, on the reference, and how far the two may be apart.
#[allow(dead_code, reason = "not every test needs it")]
pub(crate) fn matmul_on(
    gpu: &Gpu<'_>,
    case: MatmulCase,
    format: Packed,
) -> (Vec<f32>, Vec<f32>, f32) {
    let MatmulCase { n, rows, cols } = case;
    let mut numbers = Numbers::new(case.seed());
    let (bytes, w) = pack_as(format, &numbers.normal(rows * cols), rows, cols);
    let x = numbers.normal(n * cols);
    let mut want = vec![0.0; n * rows];
    reference::matmul(&w, rows, cols, &x, &mut want);
    let mut tolerance = case.tolerance();
    let at = gpu.floats(&x);
    let room = cuda::rounded_bytes(Element::F16, n, cols);
    let rounded = gpu.empty(room);
    if room > 0 {
        // Weights and inputs lose half a unit of 11 bits.
        tolerance += 10.0 / 2048.0 * (cols as f32).sqrt();
        gpu.run(&[cuda::round(Element::F16, at, rounded, n * cols)]);
    }
    let (w, out) = (gpu.bytes(&bytes), gpu.empty(4 * want.len()));
    let input = Input { x: at, rounded, n, cols };
    gpu.run(&cuda::matmul_packed(format, input, &[Target { w, out, rows }]));
    (gpu.read(out, want.len()), want, tolerance)
}

/// How a matrix lies in memory.
#[allow(dead_code, reason = "not every test needs it")]
#[derive(Clone, Copy, Debug)]
pub(crate) enum Layout {
    Dense(Element),
    Packed(Packed),
}

#[allow(dead_code, reason = "not every test needs it")]
pub(crate) const PACKED: [Layout; 2] = [Layout::Packed(Packed::Q8), Layout::Packed(Packed::Q4)];

#[allow(dead_code, reason = "not every test needs it")]
impl Layout {
    /// To what `n` inputs are rounded, where they are.
    pub(crate) fn rounding(self, n: usize, cols: usize) -> Option<Element> {
        let element = match self {
            Self::Dense(element) => element,
            Self::Packed(_) => Element::F16,
        };
        (cuda::rounded_bytes(element, n, cols) > 0).then_some(element)
    }

    /// A matrix on the device.
    pub(crate) fn matrix(self, gpu: &Gpu<'_>, w: &[f32], rows: usize, cols: usize) -> u64 {
        match self {
            Self::Dense(element) => gpu.elements(element, w),
            Self::Packed(format) => gpu.bytes(&pack_as(format, w, rows, cols).0),
        }
    }

    pub(crate) fn matmul(self, input: Input, targets: &[Target]) -> Vec<Launch> {
        match self {
            Self::Dense(element) => cuda::matmul(element, input, targets),
            Self::Packed(format) => cuda::matmul_packed(format, input, targets),
        }
    }
}
