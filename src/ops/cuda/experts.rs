//! A mixture of experts on the device: the router's outputs are never read back, so the host runs ahead.

use tramontane_kernels::cuda::{
    self as kernels, Choice, ExpertsMatmul, Launch, MAX_ACTIVE, MAX_EXPERTS, Pairs, Weights,
};
use tramontane_models::spec::{self, Activation, Scores};

use super::driver::Memory;
use super::weight::Layout;
use super::{Cuda, CudaBuffer, CudaWeight, at_least};
use crate::error::Result;
use crate::ops::cpu::kernel_activation;

/// The experts of one layer: where their matrices are, and how they are chosen.
pub struct CudaExperts {
    /// Addresses of the matrices of each expert: gate where there is one, up, down.
    table: Memory,
    matrices: usize,
    correction: Option<Memory>,
    weights: Weights,
    spec: spec::Experts,
    hidden: usize,
}

/// Memory that the experts use while they run.
#[derive(Default)]
pub(super) struct Scratch {
    /// What [`Pairs`] holds.
    lists: Option<Memory>,
    /// The pairs' rows of the inner width, of gate and up.
    inner: Option<Memory>,
    /// The pairs' results.
    results: Option<Memory>,
}

/// Bytes that [`Cuda::mix`] uses for `n` tokens besides the buffers of the graph.
pub(super) fn bytes(spec: &spec::Experts, n: usize, hidden: usize) -> usize {
    let pairs = n * spec.n_active;
    let floats = pairs * (inner_rows(spec) * spec.inner + hidden);
    4 * (floats + 4 * pairs + spec.n_experts + 1) + 2 * pairs * spec.inner
}

/// Rows of the inner width that a pair needs.
fn inner_rows(spec: &spec::Experts) -> usize {
    if spec.gated { 2 } else { 1 }
}

/// The format that all matrices have, if it is one.
fn common(matrices: &[Vec<&CudaWeight>]) -> Option<Layout> {
    let mut all = matrices.iter().flatten().map(|w| w.layout);
    let first = all.next()?;
    all.all(|layout| layout == first).then_some(first)
}

impl Cuda {
    /// Tells the device where the experts are; `None` where no kernel takes them together. The weights must live as
    /// long as what is returned.
    pub(super) fn experts_of(
        &self,
        spec: &spec::Experts,
        correction: &[f32],
        matrices: &[Vec<&CudaWeight>],
    ) -> Result<Option<CudaExperts>> {
        let fits = spec.n_experts <= MAX_EXPERTS && spec.n_active <= MAX_ACTIVE.min(spec.n_experts);
        let Some(layout) = common(matrices).filter(|_| fits) else { return Ok(None) };
        let addresses: Vec<u64> = matrices.iter().flatten().map(|w| w.memory.address()).collect();
        let table = self.gpu.alloc(size_of_val(&addresses[..]))?;
        self.gpu.upload(&addresses, &table, 0)?;
        let correction = if correction.is_empty() {
            None
        } else {
            let memory = self.gpu.alloc(size_of_val(correction))?;
            self.gpu.upload(correction, &memory, 0)?;
            Some(memory)
        };
        let weights = match layout {
            Layout::Dense(element) => Weights::Dense(element),
            Layout::Packed(format) => Weights::Packed(format),
        };
        let (matrices, hidden) = (matrices[0].len(), matrices[0][0].cols);
        Ok(Some(CudaExperts { table, matrices, correction, weights, spec: spec.clone(), hidden }))
    }

    /// The experts' results for `n` tokens; see [`crate::ops::Ops::mix_experts`].
    pub(super) fn mix(
        &self,
        e: &CudaExperts,
        outputs: &CudaBuffer,
        x: &CudaBuffer,
        n: usize,
        out: &mut CudaBuffer,
    ) -> Result<()> {
        let (hidden, inner) = (e.hidden, e.spec.inner);
        assert!(n * hidden <= x.len.min(out.len), "experts past the end of a buffer");
        assert!(n * e.spec.n_experts <= outputs.len, "experts past the end of a buffer");
        let mut scratch = self.scratch();
        let scratch = &mut *scratch;
        let pairs = self.pairs(&mut scratch.experts.lists, e, n)?;
        let (len, rows) = (pairs.len(), inner_rows(&e.spec));
        let wide =
            at_least(&self.gpu, &mut scratch.experts.inner, 4 * rows * len * inner)?.address();
        let results =
            at_least(&self.gpu, &mut scratch.experts.results, 4 * len * hidden)?.address();
        let rounded = at_least(&self.gpu, &mut scratch.rounded, 2 * (n * hidden).max(len * inner))?;
        let rounded = rounded.address();

        self.gpu.launch(&kernels::route(&e.choice(), outputs.at(), &pairs))?;
        if [hidden, inner].iter().any(|cols| kernels::in_tiles(e.weights, n, *cols)) {
            self.gpu.launch(&kernels::sort_pairs(&pairs))?;
        }
        let up = ExpertsMatmul {
            weights: e.weights,
            table: e.table.address(),
            matrices: e.matrices,
            first: 0,
            count: rows,
            pairs,
            of_tokens: true,
            x: x.at(),
            rounded,
            out: wide,
            rows: inner,
            cols: hidden,
        };
        let down = ExpertsMatmul {
            first: rows,
            count: 1,
            of_tokens: false,
            x: wide,
            out: results,
            rows: hidden,
            cols: inner,
            ..up
        };
        self.product(&up, n * hidden)?;
        self.gpu.launch(&activation(&e.spec, wide, len * inner))?;
        self.product(&down, len * inner)?;
        self.gpu.launch(&kernels::combine(&pairs, results, out.at(), hidden))
    }

    /// Rounds `len` inputs where the product wants them rounded, and launches it.
    fn product(&self, m: &ExpertsMatmul, len: usize) -> Result<()> {
        if let Some(element) = kernels::rounding(m.weights, m.pairs.n, m.cols) {
            self.gpu.launch(&kernels::round(element, m.x, m.rounded, len))?;
        }
        kernels::experts_matmul(m).iter().try_for_each(|launch| self.gpu.launch(launch))
    }

    /// Room for the lists of the pairs of `n` tokens.
    fn pairs(&self, lists: &mut Option<Memory>, e: &CudaExperts, n: usize) -> Result<Pairs> {
        let spec::Experts { n_active, n_experts, .. } = e.spec;
        let len = n * n_active;
        let at = at_least(&self.gpu, lists, 4 * (4 * len + n_experts + 1))?.address();
        let list = |i: usize| at + (4 * i * len) as u64;
        let (chosen, weights, order) = (list(0), list(1), list(2));
        let (tokens, starts) = (list(3), list(4));
        Ok(Pairs { n, n_active, n_experts, chosen, weights, starts, order, tokens })
    }
}

/// The activation between the products: of the gate times up where there are both.
fn activation(spec: &spec::Experts, wide: u64, len: usize) -> Launch {
    let act: Activation = spec.activation;
    if spec.gated {
        kernels::gate(kernel_activation(act), wide + 4 * len as u64, wide, len)
    } else {
        kernels::activate(kernel_activation(act), wide, len)
    }
}

impl CudaExperts {
    fn choice(&self) -> Choice {
        let router = &self.spec.router;
        Choice {
            correction: self.correction.as_ref().map_or(0, Memory::address),
            n_experts: self.spec.n_experts,
            n_active: self.spec.n_active,
            groups: router.groups.map(|groups| (groups.n_groups, groups.n_active)),
            softmax: match router.scores {
                Scores::Softmax => true,
                Scores::Sigmoid => false,
            },
            normalised: router.normalised,
            factor: router.factor,
        }
    }
}
