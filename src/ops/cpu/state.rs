//! What a recurrent layer remembers, in main memory.

use tramontane_kernels::cpu::mamba;
use tramontane_models::spec;

use crate::ops::Recurrent;

/// The state of one Mamba-2 layer and one sequence, in f32.
#[derive(Clone)]
pub struct CpuState {
    /// The last `conv_width - 1` rows of the convolution's channels, the oldest first.
    pub(super) conv: Vec<f32>,
    /// `[n_heads, head_dim, state_dim]`.
    pub(super) heads: Vec<f32>,
}

impl Recurrent for CpuState {
    fn clear(&mut self) {
        self.conv.fill(0.0);
        self.heads.fill(0.0);
    }

    fn bytes(&self) -> u64 {
        (size_of_val(self.conv.as_slice()) + size_of_val(self.heads.as_slice())) as u64
    }
}

/// The shape as the kernels of every device take it.
pub(in crate::ops) fn kernel_mamba(shape: &spec::Mamba) -> mamba::Mamba {
    mamba::Mamba {
        n_heads: shape.n_heads,
        head_dim: shape.head_dim,
        n_groups: shape.n_groups,
        state_dim: shape.state_dim,
        conv_width: shape.conv_width,
        step_min: shape.step_min,
        step_max: shape.step_max,
        eps: shape.eps,
    }
}
