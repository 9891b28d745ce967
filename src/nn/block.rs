//! One block: mixer and MLP, each behind a norm, added to the residual stream.

use tramontane_models::names::Part;
use tramontane_models::spec::{self, Residual};

use crate::error::Result;
use crate::nn::graph::Step;
use crate::nn::mixer::{self, Memory, MemoryOf, Mixer};
use crate::nn::mlp::{self, Mlp};
use crate::nn::weight::{At, Loader};
use crate::ops::{KvFormat, NormWeight, Ops};

/// A block with its weights.
pub struct Block<D: Ops> {
    mixer_norm: Option<NormWeight<D::Buffer>>,
    mixer: Option<Mixer<D>>,
    post_mixer_norm: Option<NormWeight<D::Buffer>>,
    mlp_norm: Option<NormWeight<D::Buffer>>,
    mlp: Option<Mlp<D>>,
    post_mlp_norm: Option<NormWeight<D::Buffer>>,
    residual: Residual,
}

/// Buffers that every block uses in turn, for as many tokens as a chunk has.
pub struct Scratch<D: Ops> {
    normed: D::Buffer,
    mixed: D::Buffer,
    fed: D::Buffer,
    owed: Owed,
    hidden: usize,
    mixer: mixer::Scratch<D>,
    mlp: mlp::Scratch<D>,
}

/// What has still to be added to the residual stream: the norm behind an addition does both in one pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Owed {
    #[default]
    Nothing,
    /// The mixer's output.
    Mixed,
    /// The MLP's.
    Fed,
}

impl<D: Ops> Scratch<D> {
    /// Buffers for `n` tokens of the model that `architecture` describes.
    ///
    /// # Errors
    ///
    /// If the device has no memory.
    pub fn new(d: &D, n: usize, architecture: &spec::Architecture) -> Result<Self> {
        let row = || d.buffer(n * architecture.hidden);
        Ok(Self {
            normed: row()?,
            mixed: row()?,
            fed: row()?,
            owed: Owed::Nothing,
            hidden: architecture.hidden,
            mixer: mixer::Scratch::new(d, n, architecture)?,
            mlp: mlp::Scratch::new(d, n, architecture)?,
        })
    }

    /// Adds what is owed to `x`, `[n, hidden]`; then `normed = norm(x)`, if there is a norm.
    fn enter(
        &mut self,
        d: &D,
        norm: Option<&NormWeight<D::Buffer>>,
        x: &mut D::Buffer,
        n: usize,
    ) -> Result<()> {
        let Some(norm) = norm else { return self.settle(d, x, n) };
        match std::mem::take(&mut self.owed) {
            Owed::Nothing => d.norm(norm, x, n, &mut self.normed),
            Owed::Mixed => d.add_norm(norm, &self.mixed, x, n, &mut self.normed),
            Owed::Fed => d.add_norm(norm, &self.fed, x, n, &mut self.normed),
        }
    }

    /// Adds what is owed to `x`, `[n, hidden]`.
    ///
    /// # Errors
    ///
    /// If the device fails.
    pub fn settle(&mut self, d: &D, x: &mut D::Buffer, n: usize) -> Result<()> {
        match std::mem::take(&mut self.owed) {
            Owed::Nothing => Ok(()),
            Owed::Mixed => d.add(&self.mixed, x, n * self.hidden),
            Owed::Fed => d.add(&self.fed, x, n * self.hidden),
        }
    }
}

impl<D: Ops> Block<D> {
    /// Block number `layer`; `rotation` is the number of its kind of rotation.
    ///
    /// # Errors
    ///
    /// If a tensor is missing or has another shape.
    pub fn load(
        l: &mut Loader<'_, D>,
        layer: usize,
        spec: &spec::Layer,
        rotation: Option<usize>,
    ) -> Result<Self> {
        let (at, hidden) = (At::layer(layer), l.architecture().hidden);
        let mixer_norm = l.maybe_norm(Part::MixerNorm, at, spec.mixer_norm.as_ref(), hidden)?;
        let load_mixer = |mixer| Mixer::load(l, at, mixer, rotation);
        let mixer = spec.mixer.as_ref().map(load_mixer).transpose()?;
        Ok(Self {
            mixer_norm,
            mixer,
            post_mixer_norm: l.maybe_norm(
                Part::PostMixerNorm,
                at,
                spec.post_mixer_norm.as_ref(),
                hidden,
            )?,
            mlp_norm: l.maybe_norm(Part::MlpNorm, at, spec.mlp_norm.as_ref(), hidden)?,
            mlp: spec.mlp.as_ref().map(|mlp| Mlp::load(l, at, mlp)).transpose()?,
            post_mlp_norm: l.maybe_norm(
                Part::PostMlpNorm,
                at,
                spec.post_mlp_norm.as_ref(),
                hidden,
            )?,
            residual: spec.residual,
        })
    }

    /// What this block remembers before the first token; keys and values will be kept in `format`.
    ///
    /// # Errors
    ///
    /// If the device has no memory.
    pub fn memory(&self, d: &D, format: KvFormat) -> Result<MemoryOf<D>> {
        match &self.mixer {
            Some(mixer) => mixer.memory(d, format),
            None => Ok(Memory::Nothing),
        }
    }

    /// Passes the residual stream `x`, `[n, hidden]`, through this block; `memory` takes in `n` tokens. What the block
    /// adds last is only added by the next one, or by [`Scratch::settle`].
    ///
    /// # Errors
    ///
    /// If the device fails.
    pub fn forward(
        &self,
        d: &D,
        step: &Step<D>,
        x: &mut D::Buffer,
        memory: &mut MemoryOf<D>,
        s: &mut Scratch<D>,
    ) -> Result<()> {
        let has_mixer = self.mix(d, step, x, memory, s)?;
        match self.residual {
            Residual::Sequential => {
                if has_mixer {
                    s.owed = Owed::Mixed;
                }
                if self.feed(d, step.n, x, s, true)? {
                    s.owed = Owed::Fed;
                }
            }
            Residual::Parallel | Residual::ParallelSharedNorm => {
                let own_norm = self.residual == Residual::Parallel;
                let has_mlp = self.feed(d, step.n, x, s, own_norm)?;
                if has_mixer {
                    s.owed = Owed::Mixed;
                }
                if has_mlp {
                    s.settle(d, x, step.n)?;
                    s.owed = Owed::Fed;
                }
            }
        }
        Ok(())
    }

    /// `mixed = post_norm(mixer(norm(x)))`; `false` if this block has no mixer.
    fn mix(
        &self,
        d: &D,
        step: &Step<D>,
        x: &mut D::Buffer,
        memory: &mut MemoryOf<D>,
        s: &mut Scratch<D>,
    ) -> Result<bool> {
        let Some(mixer) = &self.mixer else { return Ok(false) };
        s.enter(d, self.mixer_norm.as_ref(), x, step.n)?;
        let input = if self.mixer_norm.is_some() { &s.normed } else { &*x };
        mixer.forward(d, step, input, memory, &mut s.mixer, &mut s.mixed)?;
        if let Some(norm) = &self.post_mixer_norm {
            d.norm_in_place(norm, &mut s.mixed, step.n)?;
        }
        Ok(true)
    }

    /// `fed = post_norm(mlp(norm(x)))`, or of what the mixer's norm left if there is no `own_norm`;
    /// `false` if this block has no MLP.
    fn feed(
        &self,
        d: &D,
        n: usize,
        x: &mut D::Buffer,
        s: &mut Scratch<D>,
        own_norm: bool,
    ) -> Result<bool> {
        let Some(mlp) = &self.mlp else { return Ok(false) };
        if own_norm {
            s.enter(d, self.mlp_norm.as_ref(), x, n)?;
        }
        let is_normed = self.mlp_norm.is_some() || !own_norm;
        let input = if is_normed { &s.normed } else { &*x };
        mlp.forward(d, input, n, &mut s.mlp, &mut s.fed)?;
        if let Some(norm) = &self.post_mlp_norm {
            d.norm_in_place(norm, &mut s.fed, n)?;
        }
        Ok(true)
    }
}
