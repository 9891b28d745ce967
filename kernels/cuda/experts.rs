//! A mixture of experts: the choice for each token, and the products of the chosen experts.

use super::matmul::{GEMV_ROWS, MAX_GEMV, TILE_SHARED};
use super::packed::{TILE_ROWS, tile_shared};
use super::{Args, Element, Launch, Packed, rows};
use crate::packed::PANEL;

/// Most experts that [`route`] chooses among.
pub const MAX_EXPERTS: usize = 2048;

/// Most experts that a token may use.
pub const MAX_ACTIVE: usize = 128;

/// How the weights of the experts lie in memory; all have one format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Weights {
    /// Row after row.
    Dense(Element),
    /// In panels of 16 rows.
    Packed(Packed),
}

/// How experts are chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// Address of what is added to the scores for the choice, `[n_experts]` f32, or 0.
    pub correction: u64,
    /// Experts.
    pub n_experts: usize,
    /// Experts of a token.
    pub n_active: usize,
    /// Groups of neighbouring experts, and how many of them may be chosen from; `None` for all experts.
    pub groups: Option<(usize, usize)>,
    /// Whether scores are a softmax over all experts, or the sigmoid of each.
    pub softmax: bool,
    /// Whether the weights of a token are divided by their sum.
    pub normalised: bool,
    /// What the weights are multiplied by.
    pub factor: f32,
}

/// The pairs of tokens and their experts: pair `t · n_active + k` is token `t`'s, whose experts stand by number.
#[derive(Debug, Clone, Copy)]
pub struct Pairs {
    /// Tokens.
    pub n: usize,
    /// Experts of a token.
    pub n_active: usize,
    /// Experts.
    pub n_experts: usize,
    /// Address of each pair's expert, u32.
    pub chosen: u64,
    /// Address of each pair's weight, f32.
    pub weights: u64,
    /// Address of the first place of each expert in `order` and of the end, `[n_experts + 1]` u32.
    pub starts: u64,
    /// Address of the pairs in the order of their experts, u32.
    pub order: u64,
    /// Address of their tokens, u32.
    pub tokens: u64,
}

impl Pairs {
    /// Number of pairs.
    #[must_use]
    pub fn len(&self) -> usize {
        self.n * self.n_active
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Chooses experts for each token: `outputs` `[n, n_experts]` f32 of the router fill `chosen` and `weights` of `pairs`.
///
/// # Panics
///
/// If there are more than [`MAX_EXPERTS`], or fewer than are chosen.
#[must_use]
pub fn route(c: &Choice, outputs: u64, pairs: &Pairs) -> Launch {
    assert!(c.n_active <= c.n_experts && c.n_experts <= MAX_EXPERTS, "route: {c:?}");
    let (groups, open) = c.groups.unwrap_or((0, 0));
    let choice = Args::new().ptr(c.correction).u32(c.n_experts).u32(c.n_active).u32(groups);
    let choice = choice.u32(open).u32(usize::from(c.softmax)).u32(usize::from(c.normalised));
    let args = Args::new().structure(&choice.f32(c.factor));
    let args = args.ptr(outputs).ptr(pairs.chosen).ptr(pairs.weights);
    let shared = 20 * c.n_experts as u32;
    Launch { kernel: "route", grid: [pairs.n as u32, 1, 1], block: 32, shared, args }
}

/// Fills `starts`, `order` and `tokens` of `pairs` from `chosen`.
#[must_use]
pub fn sort_pairs(p: &Pairs) -> Launch {
    let args = Args::new().ptr(p.chosen).u32(p.len()).u32(p.n_active);
    let args = args.ptr(p.starts).ptr(p.tokens).ptr(p.order);
    Launch { kernel: "sort_pairs", grid: [p.n_experts as u32, 1, 1], block: 32, shared: 0, args }
}

/// One product of every pair.
#[derive(Debug, Clone, Copy)]
pub struct ExpertsMatmul {
    /// Format of the weights.
    pub weights: Weights,
    /// Address of the addresses of the matrices, `[n_experts, matrices]` u64.
    pub table: u64,
    /// Matrices of an expert.
    pub matrices: usize,
    /// Which of them is multiplied first.
    pub first: usize,
    /// How many are, one after the other.
    pub count: usize,
    /// The pairs; sorted where [`in_tiles`] says so.
    pub pairs: Pairs,
    /// Whether the inputs are those of tokens, `[n, cols]`, or of pairs.
    pub of_tokens: bool,
    /// Address of the f32 inputs.
    pub x: u64,
    /// Address of the inputs in the type that [`rounding`] names; else not read.
    pub rounded: u64,
    /// Address of the f32 outputs, `[count, pairs, rows]`.
    pub out: u64,
    /// Outputs of a matrix.
    pub rows: usize,
    /// Inputs of a matrix.
    pub cols: usize,
}

/// Whether products of `n` tokens take the pairs of each expert together, which must have been sorted.
#[must_use]
pub fn in_tiles(weights: Weights, n: usize, cols: usize) -> bool {
    n > MAX_GEMV && (weights == Weights::Dense(Element::F32) || cols.is_multiple_of(8))
}

/// The type to which the inputs of such a product are rounded before; `None` where they are not.
#[must_use]
pub fn rounding(weights: Weights, n: usize, cols: usize) -> Option<Element> {
    let element = match weights {
        Weights::Dense(Element::F32) => return None,
        Weights::Dense(element) => element,
        Weights::Packed(_) => Element::F16,
    };
    in_tiles(weights, n, cols).then_some(element)
}

/// `out[i, p] = w[expert of p, first + i] · x[p, or its token]`.
#[must_use]
pub fn experts_matmul(m: &ExpertsMatmul) -> Vec<Launch> {
    if !in_tiles(m.weights, m.pairs.n, m.cols) {
        return vec![each(m)];
    }
    (0..m.count).map(|i| together(m, i)).collect()
}

/// A product for each pair.
fn each(m: &ExpertsMatmul) -> Launch {
    let (kernel, block, per_block) = match m.weights {
        Weights::Dense(Element::F32) => ("experts_gemv_f32", 128, GEMV_ROWS as usize),
        Weights::Dense(Element::F16) => ("experts_gemv_f16", 128, GEMV_ROWS as usize),
        Weights::Dense(Element::Bf16) => ("experts_gemv_bf16", 128, GEMV_ROWS as usize),
        Weights::Packed(Packed::Q8) => ("experts_gemv_q8", 256, PANEL),
        Weights::Packed(Packed::Q4) => ("experts_gemv_q4", 256, PANEL),
    };
    let share = if m.of_tokens { m.pairs.n_active } else { 1 };
    let args = Args::new().ptr(m.table).u32(m.matrices).u32(m.first).ptr(m.pairs.chosen);
    let args = args.u32(share).ptr(m.x).ptr(m.out).u32(m.rows).u32(m.cols);
    let grid = [m.rows.div_ceil(per_block) as u32, m.pairs.len() as u32, m.count as u32];
    Launch { kernel, grid, block, shared: 0, args }
}

/// The product number `i` of each expert's pairs.
fn together(m: &ExpertsMatmul, i: usize) -> Launch {
    let (kernel, block, tile, shared) = match m.weights {
        Weights::Dense(Element::F32) => ("experts_gemm_f32", 256, 64, 0),
        Weights::Dense(Element::F16) => ("experts_gemm_f16", 128, TILE_ROWS, TILE_SHARED),
        Weights::Dense(Element::Bf16) => ("experts_gemm_bf16", 128, TILE_ROWS, TILE_SHARED),
        Weights::Packed(f @ Packed::Q8) => ("experts_gemm_q8", 128, TILE_ROWS, tile_shared(f)),
        Weights::Packed(f @ Packed::Q4) => ("experts_gemm_q4", 128, TILE_ROWS, tile_shared(f)),
    };
    let p = &m.pairs;
    let x = rounding(m.weights, p.n, m.cols).map_or(m.x, |_| m.rounded);
    let out = m.out + (4 * i * p.len() * m.rows) as u64;
    let sources = if m.of_tokens { p.tokens } else { p.order };
    let args = Args::new().ptr(m.table).u32(m.matrices).u32(m.first + i).ptr(p.starts);
    let args = args.ptr(sources).ptr(p.order).ptr(x).ptr(out).u32(m.rows).u32(m.cols);
    // An expert meets a token once at most.
    let grid = [m.rows.div_ceil(tile) as u32, p.n.div_ceil(64) as u32, p.n_experts as u32];
    Launch { kernel, grid, block, shared, args }
}

/// `out[t]` = the sum of `y` over the pairs of token `t`, weighted: `y` `[pairs, width]`, `out` `[n, width]`, f32.
#[must_use]
pub fn combine(pairs: &Pairs, y: u64, out: u64, width: usize) -> Launch {
    let args = Args::new().ptr(y).ptr(pairs.weights).ptr(out).u32(width).u32(pairs.n_active);
    rows("combine", width, pairs.n, args)
}
