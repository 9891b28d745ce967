//! One block: mixer and MLP, each behind a norm, added to the residual stream.

use tramontane_models::names::Part;
use tramontane_models::spec::{self, Mixer, Residual};

use crate::error::Result;
use crate::nn::attention::{self, Attention};
use crate::nn::graph::Step;
use crate::nn::mlp::{self, Mlp};
use crate::nn::weight::{At, Loader};
use crate::ops::{NormWeight, Ops};

/// A block with its weights.
pub struct Block<D: Ops> {
    mixer_norm: Option<NormWeight<D::Buffer>>,
    mixer: Option<Attention<D>>,
    post_mixer_norm: Option<NormWeight<D::Buffer>>,
    mlp_norm: Option<NormWeight<D::Buffer>>,
    mlp: Option<Mlp<D>>,
    post_mlp_norm: Option<NormWeight<D::Buffer>>,
    residual: Residual,
    hidden: usize,
}

/// Buffers that every block uses in turn, for as many tokens as a chunk has.
pub struct Scratch<D: Ops> {
    normed: D::Buffer,
    mixed: D::Buffer,
    fed: D::Buffer,
    attention: attention::Scratch<D>,
    mlp: mlp::Scratch<D>,
}

impl<D: Ops> Scratch<D> {
    /// Buffers for `n` tokens of the model that `architecture` describes.
    ///
    /// # Errors
    ///
    /// If the device has no memory.
    pub fn new(d: &D, n: usize, architecture: &spec::Architecture) -> Result<Self> {
        let widest = |width: fn(&spec::Attention) -> usize| {
            architecture.layers.iter().filter_map(|l| l.attention()).map(width).max().unwrap_or(0)
        };
        let (q_dim, kv_dim) = (widest(spec::Attention::q_dim), widest(spec::Attention::kv_dim));
        let row = || d.buffer(n * architecture.hidden);
        Ok(Self {
            normed: row()?,
            mixed: row()?,
            fed: row()?,
            attention: attention::Scratch::new(d, n, q_dim, kv_dim)?,
            mlp: mlp::Scratch::new(d, n, architecture)?,
        })
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
        let mixer = match &spec.mixer {
            Some(Mixer::Attention(attention)) => Some(Attention::load(l, at, attention, rotation)?),
            None => None,
        };
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
            hidden,
        })
    }

    /// This block's attention, if it has one.
    #[must_use]
    pub fn attention(&self) -> Option<&Attention<D>> {
        self.mixer.as_ref()
    }

    /// Passes the residual stream `x`, `[n, hidden]`, through this block; `kv` grows by `n` positions.
    ///
    /// # Errors
    ///
    /// If the device fails.
    pub fn forward(
        &self,
        d: &D,
        step: &Step<D>,
        x: &mut D::Buffer,
        kv: Option<&mut D::Kv>,
        s: &mut Scratch<D>,
    ) -> Result<()> {
        let has_mixer = self.mix(d, step, x, kv, s)?;
        let len = step.n * self.hidden;
        match self.residual {
            Residual::Sequential => {
                if has_mixer {
                    d.add(&s.mixed, x, len)?;
                }
                if self.feed(d, step.n, x, s, true)? {
                    d.add(&s.fed, x, len)?;
                }
            }
            Residual::Parallel | Residual::ParallelSharedNorm => {
                let own_norm = self.residual == Residual::Parallel;
                let has_mlp = self.feed(d, step.n, x, s, own_norm)?;
                if has_mixer {
                    d.add(&s.mixed, x, len)?;
                }
                if has_mlp {
                    d.add(&s.fed, x, len)?;
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
        x: &D::Buffer,
        kv: Option<&mut D::Kv>,
        s: &mut Scratch<D>,
    ) -> Result<bool> {
        let (Some(mixer), Some(kv)) = (&self.mixer, kv) else { return Ok(false) };
        let input = normed(d, self.mixer_norm.as_ref(), x, step.n, &mut s.normed)?;
        mixer.forward(d, step, input, kv, &mut s.attention, &mut s.mixed)?;
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
        x: &D::Buffer,
        s: &mut Scratch<D>,
        own_norm: bool,
    ) -> Result<bool> {
        let Some(mlp) = &self.mlp else { return Ok(false) };
        if own_norm {
            let input = normed(d, self.mlp_norm.as_ref(), x, n, &mut s.normed)?;
            mlp.forward(d, input, n, &mut s.mlp, &mut s.fed)?;
        } else {
            mlp.forward(d, &s.normed, n, &mut s.mlp, &mut s.fed)?;
        }
        if let Some(norm) = &self.post_mlp_norm {
            d.norm_in_place(norm, &mut s.fed, n)?;
        }
        Ok(true)
    }
}

/// `norm(x)` in `out`, or `x` itself where there is no norm.
fn normed<'a, D: Ops>(
    d: &D,
    norm: Option<&NormWeight<D::Buffer>>,
    x: &'a D::Buffer,
    n: usize,
    out: &'a mut D::Buffer,
) -> Result<&'a D::Buffer> {
    let Some(norm) = norm else { return Ok(x) };
    d.norm(norm, x, n, out)?;
    Ok(out)
}
