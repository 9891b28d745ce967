//! The Mamba-2 mixer (Dao and Gu 2024, arXiv:2405.21060): two projections around [`Ops::mamba`].

use tramontane_models::names::Part;
use tramontane_models::spec::Mamba as Spec;

use crate::error::Result;
use crate::nn::linear::Linear;
use crate::nn::weight::{At, Loader};
use crate::ops::{MambaWeights, Ops};

/// The Mamba-2 mixer of one layer.
pub struct Mamba<D: Ops> {
    in_proj: Linear<D>,
    weights: MambaWeights<D::Buffer>,
    out_proj: Linear<D>,
    spec: Spec,
}

/// Buffers of a Mamba-2 mixer, for as many tokens as a chunk has.
pub struct Scratch<D: Ops> {
    projected: D::Buffer,
    mixed: D::Buffer,
}

impl<D: Ops> Scratch<D> {
    /// Buffers for `n` tokens of layers like `spec`.
    ///
    /// # Errors
    ///
    /// If the device has no memory.
    pub fn new(d: &D, n: usize, spec: &Spec) -> Result<Self> {
        Ok(Self { projected: d.buffer(n * spec.in_dim())?, mixed: d.buffer(n * spec.inner())? })
    }
}

impl<D: Ops> Mamba<D> {
    /// The mixer of layer `at`.
    ///
    /// # Errors
    ///
    /// If a tensor is missing, has another shape, or is not finite.
    pub fn load(l: &mut Loader<'_, D>, at: At, spec: &Spec) -> Result<Self> {
        let hidden = l.architecture().hidden;
        let (inner, in_dim) = (spec.inner(), spec.in_dim());
        Ok(Self {
            in_proj: Linear::load(l, Part::MambaIn, at, [in_dim, hidden], spec.bias)?,
            weights: weights(l, at, spec)?,
            out_proj: Linear::load(l, Part::MambaOut, at, [hidden, inner], spec.bias)?,
            spec: spec.clone(),
        })
    }

    /// The state of this layer before the first token.
    ///
    /// # Errors
    ///
    /// If the device has no memory.
    pub fn state(&self, d: &D) -> Result<D::State> {
        d.state(&self.spec)
    }

    /// The mixer of `n` tokens; `x` and `out` are `[n, hidden]`, `state` moves on by `n` tokens.
    ///
    /// # Errors
    ///
    /// If the device fails.
    pub fn forward(
        &self,
        d: &D,
        n: usize,
        x: &D::Buffer,
        state: &mut D::State,
        s: &mut Scratch<D>,
        out: &mut D::Buffer,
    ) -> Result<()> {
        self.in_proj.forward(d, x, n, &mut s.projected)?;
        d.mamba(&self.spec, &self.weights, &mut s.projected, n, state, &mut s.mixed)?;
        self.out_proj.forward(d, &s.mixed, n, out)
    }
}

/// The small weights, in the form of the operation: positions before channels, decays themselves.
fn weights<D: Ops>(l: &mut Loader<'_, D>, at: At, spec: &Spec) -> Result<MambaWeights<D::Buffer>> {
    let (heads, width, channels) = (spec.n_heads, spec.conv_width, spec.conv_dim());
    let by_position = |stored: Vec<f32>| {
        (0..width * channels).map(|i| stored[i % channels * width + i / channels]).collect()
    };
    let decays = |logs: Vec<f32>| logs.into_iter().map(|log| -log.exp()).collect();
    let same = |values| values;
    Ok(MambaWeights {
        conv: l.values(Part::MambaConv, at, "weight", &[channels, 1, width], by_position)?,
        conv_bias: if spec.conv_bias {
            Some(l.values(Part::MambaConv, at, "bias", &[channels], same)?)
        } else {
            None
        },
        decay: l.values(Part::MambaDecay, at, "", &[heads], decays)?,
        skip: l.values(Part::MambaSkip, at, "", &[heads], same)?,
        step: l.values(Part::MambaStep, at, "", &[heads], same)?,
        norm: l.values(Part::MambaNorm, at, "weight", &[spec.inner()], same)?,
    })
}
