//! What stands between the projections of a Mamba-2 mixer: convolution, recurrence and gated norm.

use super::{Args, Launch, THREADS};
use crate::cpu::mamba::Mamba;

/// Most positions that the convolution may see.
pub const MAX_CONV_WIDTH: usize = 8;

/// Most columns of a head's state.
pub const MAX_STATE_DIM: usize = 256;

/// Rows of the state that a block keeps.
const ROWS: usize = 8;

/// Addresses of the weights of a mixer, f32; shapes as in [`crate::cpu::mamba::Weights`].
#[derive(Debug, Clone, Copy)]
pub struct MambaWeights {
    /// The convolution.
    pub conv: u64,
    /// Its bias, or 0.
    pub conv_bias: u64,
    /// The decay of each head.
    pub decay: u64,
    /// How much of its input each head passes on.
    pub skip: u64,
    /// What is added to the time step of each head.
    pub step: u64,
    /// Weights of the norm.
    pub norm: u64,
}

/// Passes `n` tokens of `x` `[n, in_dim]` through the mixer into `out` `[n, inner]`, f32. `state` are the addresses of what
/// it remembers: `conv_state` and `head_state` f32, zeros before the first token. `x` is overwritten.
///
/// # Panics
///
/// If the convolution is wider than [`MAX_CONV_WIDTH`] or 0, or a head's state than [`MAX_STATE_DIM`].
#[must_use]
pub fn mamba(
    m: &Mamba,
    w: &MambaWeights,
    x: u64,
    state: [u64; 2],
    out: u64,
    n: usize,
) -> [Launch; 3] {
    assert!((1..=MAX_CONV_WIDTH).contains(&m.conv_width), "mamba: {m:?}");
    assert!(m.state_dim <= MAX_STATE_DIM, "mamba: {m:?}");
    let launch = |kernel, grid, args| Launch { kernel, grid, block: THREADS, shared: 0, args };
    let conv = shape(m).ptr(w.conv).ptr(w.conv_bias).ptr(x).ptr(state[0]).u32(n);
    let scan = shape(m).ptr(w.decay).ptr(w.skip).ptr(w.step).ptr(x).ptr(state[1]).ptr(out).u32(n);
    let norm = shape(m).ptr(x).ptr(w.norm).ptr(out);
    [
        launch("mamba_conv", [(m.conv_dim() as u32).div_ceil(THREADS), 1, 1], conv),
        launch("mamba_scan", [m.inner().div_ceil(ROWS) as u32, 1, 1], scan),
        launch("mamba_norm", [m.n_groups as u32, n as u32, 1], norm),
    ]
}

fn shape(m: &Mamba) -> Args {
    let sizes = Args::new().u32(m.n_heads).u32(m.head_dim).u32(m.n_groups).u32(m.state_dim);
    let steps = sizes.u32(m.conv_width).f32(m.step_min).f32(m.step_max).f32(m.eps);
    Args::new().structure(&steps)
}
