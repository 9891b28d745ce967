//! What mixes information between positions: one of several kinds, and what it remembers of a sequence.

use tramontane_models::spec::{self, Architecture};

use crate::error::{Error, ErrorKind, Result};
use crate::nn::attention::{self, Attention};
use crate::nn::graph::Step;
use crate::nn::latent::{self, Latent};
use crate::nn::mamba::{self, Mamba};
use crate::nn::weight::{At, Loader};
use crate::ops::{KvFormat, Ops};

/// The mixer of one layer.
pub enum Mixer<D: Ops> {
    /// Softmax attention.
    Attention(Attention<D>),
    /// Softmax attention whose keys and values come from a latent.
    Latent(Latent<D>),
    /// A recurrence.
    Mamba(Mamba<D>),
}

/// What a layer remembers of a sequence.
#[derive(Clone)]
pub enum Memory<Kv, State> {
    /// Nothing: the layer looks at one token at a time.
    Nothing,
    /// The keys and values of each position.
    Kv(Kv),
    /// A state of fixed size after the last token.
    Recurrent(State),
}

/// [`Memory`] on the device `D`.
pub type MemoryOf<D> = Memory<<D as Ops>::Kv, <D as Ops>::State>;

impl<Kv: crate::ops::Kv, State: crate::ops::Recurrent> Memory<Kv, State> {
    /// Makes room for the positions `start..end`.
    ///
    /// # Errors
    ///
    /// If the device has no memory.
    pub fn reserve(&mut self, start: usize, end: usize) -> Result<()> {
        match self {
            Self::Kv(kv) => kv.reserve(start, end),
            Self::Nothing | Self::Recurrent(_) => Ok(()),
        }
    }

    /// Forgets every token from `len` on, of `now`; `false` if the tokens before cannot be told apart from them any
    /// more, or are gone. Nothing is changed then.
    pub fn truncate(&mut self, len: usize, now: usize) -> bool {
        match self {
            Self::Nothing => true,
            Self::Kv(kv) => kv.truncate(len),
            Self::Recurrent(state) if len == 0 => {
                state.clear();
                true
            }
            Self::Recurrent(_) => len == now,
        }
    }

    /// Forgets what no position from `len` on can see.
    pub fn forget_unseen(&mut self, len: usize) {
        match self {
            Self::Kv(kv) => kv.forget_unseen(len),
            Self::Nothing | Self::Recurrent(_) => {}
        }
    }

    /// Bytes of memory in use.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Nothing => 0,
            Self::Kv(kv) => kv.bytes(),
            Self::Recurrent(state) => state.bytes(),
        }
    }

    /// Whether this is a state of fixed size.
    #[must_use]
    pub fn is_recurrent(&self) -> bool {
        match self {
            Self::Recurrent(_) => true,
            Self::Nothing | Self::Kv(_) => false,
        }
    }
}

/// Buffers of the mixers, for as many tokens as a chunk has; of the kinds that the model has.
pub struct Scratch<D: Ops> {
    attention: Option<attention::Scratch<D>>,
    latent: Option<latent::Scratch<D>>,
    mamba: Option<mamba::Scratch<D>>,
}

impl<D: Ops> Scratch<D> {
    /// Buffers for `n` tokens of the model that `architecture` describes. Layers of one recurrent or latent kind have
    /// one shape; those of attention may differ.
    ///
    /// # Errors
    ///
    /// If the device has no memory.
    pub fn new(d: &D, n: usize, architecture: &Architecture) -> Result<Self> {
        let (mut widths, mut latent, mut mamba) = (None, None, None);
        for mixer in architecture.layers.iter().filter_map(|layer| layer.mixer.as_ref()) {
            match mixer {
                spec::Mixer::Attention(a) => {
                    let (q, kv) = widths.unwrap_or((0, 0));
                    widths = Some((a.q_dim().max(q), a.kv_dim().max(kv)));
                }
                spec::Mixer::Latent(spec) => latent = Some(spec),
                spec::Mixer::Mamba(spec) => mamba = Some(spec),
            }
        }
        let attention = widths.map(|(q, kv)| attention::Scratch::new(d, n, q, kv));
        Ok(Self {
            attention: attention.transpose()?,
            latent: latent.map(|spec| latent::Scratch::new(d, n, spec)).transpose()?,
            mamba: mamba.map(|spec| mamba::Scratch::new(d, n, spec)).transpose()?,
        })
    }
}

impl<D: Ops> Mixer<D> {
    /// The mixer of layer `at`; `rotation` is the number of its kind of rotation.
    ///
    /// # Errors
    ///
    /// If a tensor is missing or has another shape.
    pub fn load(
        l: &mut Loader<'_, D>,
        at: At,
        spec: &spec::Mixer,
        rotation: Option<usize>,
    ) -> Result<Self> {
        Ok(match spec {
            spec::Mixer::Attention(spec) => {
                Self::Attention(Attention::load(l, at, spec, rotation)?)
            }
            spec::Mixer::Latent(spec) => Self::Latent(Latent::load(l, at, spec, rotation)?),
            spec::Mixer::Mamba(spec) => Self::Mamba(Mamba::load(l, at, spec)?),
        })
    }

    /// What this layer remembers before the first token; keys and values will be kept in `format`.
    ///
    /// # Errors
    ///
    /// If the device has no memory.
    pub fn memory(&self, d: &D, format: KvFormat) -> Result<MemoryOf<D>> {
        Ok(match self {
            Self::Attention(attention) => Memory::Kv(d.kv(attention.kv_shape(format))?),
            Self::Latent(latent) => Memory::Kv(d.kv(latent.kv_shape(format))?),
            Self::Mamba(mamba) => Memory::Recurrent(mamba.state(d)?),
        })
    }

    /// Mixes the step's tokens; `x` and `out` are `[n, hidden]`, `memory` takes in `n` tokens.
    ///
    /// # Errors
    ///
    /// If the device fails.
    pub fn forward(
        &self,
        d: &D,
        step: &Step<D>,
        x: &D::Buffer,
        memory: &mut MemoryOf<D>,
        s: &mut Scratch<D>,
        out: &mut D::Buffer,
    ) -> Result<()> {
        match (self, memory) {
            (Self::Attention(attention), Memory::Kv(kv)) => {
                let Some(s) = &mut s.attention else { return Err(foreign()) };
                attention.forward(d, step, x, kv, s, out)
            }
            (Self::Latent(latent), Memory::Kv(kv)) => {
                let Some(s) = &mut s.latent else { return Err(foreign()) };
                latent.forward(d, step, x, kv, s, out)
            }
            (Self::Mamba(mamba), Memory::Recurrent(state)) => {
                let Some(s) = &mut s.mamba else { return Err(foreign()) };
                mamba.forward(d, step.n, x, state, s, out)
            }
            (Self::Attention(_) | Self::Latent(_), Memory::Nothing | Memory::Recurrent(_))
            | (Self::Mamba(_), Memory::Nothing | Memory::Kv(_)) => Err(foreign()),
        }
    }
}

/// The error for a cache or buffers that were not made for this graph.
fn foreign() -> Error {
    Error::new(ErrorKind::BadInput, "the cache was made for another model")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{Cpu, CpuKv, CpuState, KvShape};

    fn recurrent() -> Memory<CpuKv, CpuState> {
        let shape = tramontane_models::spec::Mamba {
            n_heads: 2,
            head_dim: 4,
            n_groups: 1,
            state_dim: 8,
            conv_width: 4,
            conv_bias: false,
            bias: false,
            step_min: 0.0,
            step_max: 1.0,
            eps: 1e-5,
        };
        Memory::Recurrent(Cpu::new(Some(1)).unwrap().state(&shape).unwrap())
    }

    #[test]
    fn a_state_goes_back_to_the_beginning_or_not_at_all() {
        let mut memory = recurrent();
        assert!(memory.truncate(7, 7));
        assert!(!memory.truncate(6, 7));
        assert!(memory.truncate(0, 7));
    }

    #[test]
    fn a_state_takes_the_same_memory_however_long_the_text() {
        // 3 rows of 8 + 2 · 8 channels, and 2 heads of 4 rows of 8.
        let mut memory = recurrent();
        assert_eq!(memory.bytes(), 4 * (3 * 24 + 2 * 4 * 8));
        memory.forget_unseen(1 << 20);
        assert_eq!(memory.clone().bytes(), memory.bytes());
    }

    #[test]
    fn keys_and_values_go_back_to_any_length() {
        let shape =
            KvShape { n_kv_heads: 1, k_dim: 3, v_dim: 2, window: None, format: KvFormat::F32 };
        let d = Cpu::new(Some(1)).unwrap();
        let mut kv = d.kv(shape).unwrap();
        d.store(&mut kv, &vec![0.0; 3 * 300], &vec![0.0; 2 * 300], 300, 0).unwrap();
        let mut memory = Memory::<CpuKv, CpuState>::Kv(kv);
        assert!(memory.truncate(100, 300));
        assert!(memory.bytes() > 0 && !memory.is_recurrent());
    }
}
