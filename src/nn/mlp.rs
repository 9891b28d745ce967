//! The feed-forward half of a block: gated, plain, or experts.

use tramontane_models::names::Part;
use tramontane_models::spec::{self, Activation};

use crate::error::Result;
use crate::nn::experts::{self, Experts};
use crate::nn::linear::{Linear, forward_gated};
use crate::nn::weight::{At, Loader};
use crate::ops::Ops;

/// The MLP of one layer.
pub enum Mlp<D: Ops> {
    /// The same for every token.
    Dense(Dense<D>),
    /// A few of many, chosen per token.
    Experts(Experts<D>),
}

/// An MLP of two or three matrices.
pub enum Dense<D: Ops> {
    /// `down(act(gate(x)) · up(x))` (Shazeer 2020, arXiv:2002.05202).
    Gated(Gated<D>),
    /// `down(act(up(x)))`.
    Plain(Plain<D>),
}

/// What the projections of an MLP are called.
#[derive(Debug, Clone, Copy)]
pub struct Parts {
    /// The gate, where there is one.
    pub gate: Part,
    /// The projection to the inner width.
    pub up: Part,
    /// The projection back.
    pub down: Part,
}

/// A gated MLP.
pub struct Gated<D: Ops> {
    gate_proj: Linear<D>,
    up_proj: Linear<D>,
    down_proj: Linear<D>,
    activation: Activation,
}

/// An MLP of two matrices.
pub struct Plain<D: Ops> {
    up_proj: Linear<D>,
    down_proj: Linear<D>,
    activation: Activation,
    inner: usize,
}

/// Buffers of the MLP, for as many tokens as a chunk has.
pub struct Scratch<D: Ops> {
    gate: D::Buffer,
    up: D::Buffer,
    experts: Option<experts::Scratch<D>>,
}

impl<D: Ops> Scratch<D> {
    /// Buffers for `n` tokens and the widest of `layers`.
    ///
    /// # Errors
    ///
    /// If the device has no memory.
    pub fn new(d: &D, n: usize, architecture: &spec::Architecture) -> Result<Self> {
        let (mut inner, mut n_experts) = (0, 0);
        for layer in &architecture.layers {
            match &layer.mlp {
                Some(spec::Mlp::Gated(dense) | spec::Mlp::Plain(dense)) => {
                    inner = inner.max(dense.inner)
                }
                Some(spec::Mlp::Experts(e)) => {
                    let shared = e.shared.as_ref().map_or(0, |dense| dense.inner);
                    inner = inner.max(e.inner).max(shared);
                    n_experts = n_experts.max(e.n_experts);
                }
                None => {}
            }
        }
        let experts =
            (n_experts > 0).then(|| experts::Scratch::new(d, n, architecture.hidden, n_experts));
        Ok(Self {
            gate: d.buffer(n * inner)?,
            up: d.buffer(n * inner)?,
            experts: experts.transpose()?,
        })
    }
}

impl<D: Ops> Mlp<D> {
    /// The MLP of layer `at`.
    ///
    /// # Errors
    ///
    /// If a tensor is missing or has another shape.
    pub fn load(l: &mut Loader<'_, D>, at: At, spec: &spec::Mlp) -> Result<Self> {
        let parts = Parts { gate: Part::Gate, up: Part::Up, down: Part::Down };
        Ok(match spec {
            spec::Mlp::Gated(dense) => Self::Dense(Dense::load(l, at, dense, true, parts)?),
            spec::Mlp::Plain(dense) => Self::Dense(Dense::load(l, at, dense, false, parts)?),
            spec::Mlp::Experts(experts) => Self::Experts(Experts::load(l, at, experts)?),
        })
    }

    /// The MLP of `n` tokens; `x` and `out` are `[n, hidden]`.
    ///
    /// # Errors
    ///
    /// If the device fails.
    pub fn forward(
        &self,
        d: &D,
        x: &D::Buffer,
        n: usize,
        s: &mut Scratch<D>,
        out: &mut D::Buffer,
    ) -> Result<()> {
        match self {
            Self::Dense(dense) => dense.forward(d, x, n, s, out),
            Self::Experts(experts) => {
                // The scratch of experts is taken out so that one expert can use the rest.
                let Some(mut own) = s.experts.take() else { return Ok(()) };
                let result = experts.forward(d, x, n, &mut own, s, out);
                s.experts = Some(own);
                result
            }
        }
    }
}

impl<D: Ops> Dense<D> {
    /// An MLP with or without gate.
    ///
    /// # Errors
    ///
    /// If a tensor is missing or has another shape.
    pub fn load(
        l: &mut Loader<'_, D>,
        at: At,
        spec: &spec::Dense,
        gated: bool,
        parts: Parts,
    ) -> Result<Self> {
        let (hidden, inner) = (l.architecture().hidden, spec.inner);
        let gate = if gated {
            Some(Linear::load(l, parts.gate, at, [inner, hidden], spec.bias)?)
        } else {
            None
        };
        let up_proj = Linear::load(l, parts.up, at, [inner, hidden], spec.bias)?;
        let down_proj = Linear::load(l, parts.down, at, [hidden, inner], spec.bias)?;
        let activation = spec.activation;
        Ok(match gate {
            Some(gate_proj) => Self::Gated(Gated { gate_proj, up_proj, down_proj, activation }),
            None => Self::Plain(Plain { up_proj, down_proj, activation, inner }),
        })
    }

    /// The gate's matrix if there is one, that to the inner width, and that back.
    #[must_use]
    pub fn matrices(&self) -> Vec<&D::Weight> {
        match self {
            Self::Gated(Gated { gate_proj, up_proj, down_proj, .. }) => {
                vec![gate_proj.weight(), up_proj.weight(), down_proj.weight()]
            }
            Self::Plain(plain) => vec![plain.up_proj.weight(), plain.down_proj.weight()],
        }
    }

    /// The MLP of `n` tokens; `x` and `out` are `[n, hidden]`.
    ///
    /// # Errors
    ///
    /// If the device fails.
    pub fn forward(
        &self,
        d: &D,
        x: &D::Buffer,
        n: usize,
        s: &mut Scratch<D>,
        out: &mut D::Buffer,
    ) -> Result<()> {
        match self {
            Self::Gated(gated) => gated.forward(d, x, n, s, out),
            Self::Plain(plain) => plain.forward(d, x, n, s, out),
        }
    }
}

impl<D: Ops> Gated<D> {
    fn forward(
        &self,
        d: &D,
        x: &D::Buffer,
        n: usize,
        s: &mut Scratch<D>,
        out: &mut D::Buffer,
    ) -> Result<()> {
        let projections = [&self.gate_proj, &self.up_proj];
        forward_gated(d, self.activation, projections, x, n, &mut s.gate, &mut s.up)?;
        self.down_proj.forward(d, &s.gate, n, out)
    }
}

impl<D: Ops> Plain<D> {
    fn forward(
        &self,
        d: &D,
        x: &D::Buffer,
        n: usize,
        s: &mut Scratch<D>,
        out: &mut D::Buffer,
    ) -> Result<()> {
        self.up_proj.forward(d, x, n, &mut s.up)?;
        d.activate(self.activation, &mut s.up, n * self.inner)?;
        self.down_proj.forward(d, &s.up, n, out)
    }
}
