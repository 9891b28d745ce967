//! A mixture of experts on the emulated device, beside the one of the reference.

use tramontane_kernels::cases::{ExpertsCase, MatmulCase, Numbers, assert_close};
use tramontane_kernels::cuda::{self, Choice, Element, ExpertsMatmul, Pairs, Weights};
use tramontane_kernels::reference;

use crate::common::{Gpu, rounded};
use crate::packed::pack_as;

/// What the weights of a choice are multiplied by.
const FACTOR: f32 = 2.5;

/// Inputs of one case, and what the reference chooses.
pub(crate) struct Mixture {
    case: ExpertsCase,
    outputs: Vec<f32>,
    correction: Vec<f32>,
    pub(crate) chosen: Vec<u32>,
    pub(crate) weights: Vec<f32>,
}

/// The choice of a case; `correction` is its address or 0.
pub(crate) fn choice(case: &ExpertsCase, correction: u64) -> Choice {
    Choice {
        correction,
        n_experts: case.n_experts,
        n_active: case.n_active,
        groups: case.groups,
        softmax: case.softmax,
        normalised: case.normalised,
        factor: FACTOR,
    }
}

/// Room for the pairs of a case.
pub(crate) fn pairs(gpu: &Gpu<'_>, case: &ExpertsCase) -> Pairs {
    let ExpertsCase { n, n_active, n_experts, .. } = *case;
    let list = || gpu.empty(4 * n * n_active);
    Pairs {
        n,
        n_active,
        n_experts,
        chosen: list(),
        weights: list(),
        starts: gpu.empty(4 * (n_experts + 1)),
        order: list(),
        tokens: list(),
    }
}

impl Mixture {
    pub(crate) fn new(case: ExpertsCase) -> Self {
        let mut numbers = Numbers::new((case.n * 31 + case.n_experts) as u64);
        let mut outputs = numbers.normal(case.n * case.n_experts);
        // Some experts that most tokens like, and some that hardly any does.
        outputs.iter_mut().enumerate().for_each(|(i, x)| *x += (i % case.n_experts % 3) as f32);
        let scale = if case.softmax { 1.0 / case.n_experts as f32 } else { 0.3 };
        let correction: Vec<f32> =
            numbers.normal(case.n_experts).iter().map(|c| c * scale).collect();
        let correction = if case.correction { correction } else { Vec::new() };
        let rows = outputs.chunks_exact(case.n_experts);
        let pairs = rows.flat_map(|row| reference::route(&case, row, &correction, FACTOR));
        let (chosen, weights) = pairs.map(|(e, w)| (e as u32, w)).unzip();
        Self { case, outputs, correction, chosen, weights }
    }

    /// Chooses on the device.
    pub(crate) fn choose(&self, gpu: &Gpu<'_>) -> Pairs {
        let pairs = pairs(gpu, &self.case);
        let correction = if self.case.correction { gpu.floats(&self.correction) } else { 0 };
        let choice = choice(&self.case, correction);
        gpu.run(&[cuda::route(&choice, gpu.floats(&self.outputs), &pairs)]);
        pairs
    }

    /// Both products of the inner width, that back, and the sum, each with the reference's inputs; the largest error.
    pub(crate) fn products(&self, gpu: &Gpu<'_>, weights: Weights) -> f32 {
        let ExpertsCase { n, n_experts, hidden, inner, n_active, .. } = self.case;
        let mut pairs = pairs(gpu, &self.case);
        (pairs.chosen, pairs.weights) = (gpu.indices(&self.chosen), gpu.floats(&self.weights));
        gpu.run(&[cuda::sort_pairs(&pairs)]);
        let mut numbers = Numbers::new(hidden as u64);
        let shapes = [[inner, hidden], [inner, hidden], [hidden, inner]];
        let (mut table, mut matrices) = (Vec::new(), Vec::new());
        for i in 0..3 * n_experts {
            let [rows, cols] = shapes[i % 3];
            let (at, values) = upload(gpu, weights, &numbers.normal(rows * cols), rows, cols);
            table.extend(at.to_le_bytes());
            matrices.push(values);
        }
        let table = gpu.bytes(&table);
        let x = numbers.normal(n * hidden);
        let y = numbers.normal(n * n_active * inner);
        let up = |x, count, first| Product { weights, table, pairs, x, count, first, n_active };
        let worst = up(&x[..], 2, 0).check(gpu, self, &matrices, [inner, hidden]);
        let worst = worst.max(up(&y[..], 1, 2).check(gpu, self, &matrices, [hidden, inner]));
        let out = gpu.empty(4 * n * hidden);
        let parts = numbers.normal(n * n_active * hidden);
        gpu.run(&[cuda::combine(&pairs, gpu.floats(&parts), out, hidden)]);
        let sum = |i: usize| {
            let part = |k: usize| parts[((i / hidden) * n_active + k) * hidden + i % hidden];
            (0..n_active).map(|k| self.weights[i / hidden * n_active + k] * part(k)).sum()
        };
        let want: Vec<f32> = (0..n * hidden).map(sum).collect();
        assert_close(&gpu.read(out, want.len()), &want, 2e-5, "combine");
        worst
    }
}

/// One product of all pairs.
struct Product<'a> {
    weights: Weights,
    table: u64,
    pairs: Pairs,
    x: &'a [f32],
    count: usize,
    first: usize,
    n_active: usize,
}

impl Product<'_> {
    fn check(
        &self,
        gpu: &Gpu<'_>,
        mixture: &Mixture,
        matrices: &[Vec<f32>],
        [rows, cols]: [usize; 2],
    ) -> f32 {
        let (n, len) = (self.pairs.n, self.pairs.len());
        let of_tokens = self.x.len() == n * cols && (self.count == 2 || self.n_active == 1);
        let (out, at) = (gpu.empty(4 * self.count * len * rows), gpu.floats(self.x));
        let half = gpu.empty(2 * self.x.len());
        let mut tolerance = MatmulCase { n, rows, cols }.tolerance();
        if let Some(element) = cuda::rounding(self.weights, n, cols) {
            gpu.run(&[cuda::round(element, at, half, self.x.len())]);
            let unit = if element == Element::F16 { 1.0 / 2048.0 } else { 1.0 / 256.0 };
            tolerance += 10.0 * unit * (cols as f32).sqrt();
        }
        let m = ExpertsMatmul {
            weights: self.weights,
            table: self.table,
            matrices: 3,
            first: self.first,
            count: self.count,
            pairs: self.pairs,
            of_tokens,
            x: at,
            rounded: half,
            out,
            rows,
            cols,
        };
        gpu.run(&cuda::experts_matmul(&m));
        let mut want = vec![0.0; self.count * len * rows];
        for (i, want) in want.chunks_exact_mut(rows).enumerate() {
            let (pair, matrix) = (i % len, self.first + i / len);
            let row = if of_tokens { pair / self.n_active } else { pair };
            let w = &matrices[3 * mixture.chosen[pair] as usize + matrix];
            reference::matmul(w, rows, cols, &self.x[row * cols..][..cols], want);
        }
        let got = gpu.read(out, want.len());
        assert_close(&got, &want, tolerance, &format!("{:?} {:?}", mixture.case, self.weights));
        got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    }
}

/// A matrix on the device, and the very weights that it stands for.
fn upload(gpu: &Gpu<'_>, weights: Weights, w: &[f32], rows: usize, cols: usize) -> (u64, Vec<f32>) {
    match weights {
        Weights::Dense(element) => (gpu.elements(element, w), rounded(element, w)),
        Weights::Packed(format) => {
            let (bytes, values) = pack_as(format, w, rows, cols);
            (gpu.bytes(&bytes), values)
        }
    }
}
