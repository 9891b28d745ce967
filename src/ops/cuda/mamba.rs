//! Mamba-2 mixers on the device, and what they remember of a sequence there.

use std::sync::Arc;

use tramontane_kernels::cuda::{self as kernels, MAX_CONV_WIDTH, MAX_STATE_DIM, MambaWeights};
use tramontane_models::spec;

use super::driver::{Gpu, Memory};
use super::{Cuda, CudaBuffer};
use crate::error::Result;
use crate::ops::cpu::kernel_mamba;
use crate::ops::{MambaWeights as Weights, Recurrent};

/// The state of one Mamba-2 layer and one sequence. A clone shares its memory until one of the two moves on.
#[derive(Clone)]
pub struct CudaState {
    /// The last rows of the convolution's channels, and the heads' states, f32; `None` for zeros.
    parts: [Option<Arc<Memory>>; 2],
    /// Bytes of both.
    bytes: [usize; 2],
}

impl Recurrent for CudaState {
    fn clear(&mut self) {
        self.parts = [None, None];
    }

    fn bytes(&self) -> u64 {
        self.bytes.iter().sum::<usize>() as u64
    }
}

impl CudaState {
    pub(super) fn new(shape: &spec::Mamba) -> Self {
        let shape = kernel_mamba(shape);
        Self { parts: [None, None], bytes: [4 * shape.conv_state(), 4 * shape.head_state()] }
    }

    /// Device addresses of memory that no other sequence has.
    fn own(&mut self, gpu: &Arc<Gpu>) -> Result<[u64; 2]> {
        let mut addresses = [0; 2];
        for ((part, bytes), address) in self.parts.iter_mut().zip(self.bytes).zip(&mut addresses) {
            let memory = match part.take() {
                Some(memory) if Arc::strong_count(&memory) == 1 => memory,
                Some(shared) => {
                    let own = gpu.alloc(bytes)?;
                    gpu.copy(&shared, &own)?;
                    Arc::new(own)
                }
                None => {
                    let own = gpu.alloc(bytes)?;
                    gpu.clear(&own)?;
                    Arc::new(own)
                }
            };
            *address = part.insert(memory).address();
        }
        Ok(addresses)
    }
}

/// Whether the kernels take a mixer of this shape.
pub(super) fn fits(shape: &spec::Mamba) -> bool {
    (1..=MAX_CONV_WIDTH).contains(&shape.conv_width) && shape.state_dim <= MAX_STATE_DIM
}

impl Cuda {
    /// What stands between the projections; see [`crate::ops::Ops::mamba`].
    pub(super) fn recur(
        &self,
        shape: &spec::Mamba,
        weights: &Weights<CudaBuffer>,
        x: &CudaBuffer,
        n: usize,
        state: &mut CudaState,
        out: &CudaBuffer,
    ) -> Result<()> {
        assert!(n * shape.in_dim() <= x.len, "mamba past the end of a buffer");
        assert!(n * shape.inner() <= out.len, "mamba past the end of a buffer");
        let weights = MambaWeights {
            conv: weights.conv.at(),
            conv_bias: weights.conv_bias.as_ref().map_or(0, CudaBuffer::at),
            decay: weights.decay.at(),
            skip: weights.skip.at(),
            step: weights.step.at(),
            norm: weights.norm.at(),
        };
        let state = state.own(&self.gpu)?;
        let launches = kernels::mamba(&kernel_mamba(shape), &weights, x.at(), state, out.at(), n);
        launches.iter().try_for_each(|launch| self.gpu.launch(launch))
    }
}
