//! Latent attention (DeepSeek-AI 2024, arXiv:2405.04434, section 2.1).
//!
//! ```text
//! x ─ to a latent ─ norm ─ to queries ──────────────┐ each head: without position | rotated
//!   └ to a latent and one rotated key ─┬─ norm ─ to keys without position, and values
//!                                      └─ the rotated key, behind the keys of every head
//! ```
//!
//! The cache holds the expanded keys and values of every head, as for any attention: more memory than the latents
//! would take, but no head is expanded again for every token.

use tramontane_models::names::Part;
use tramontane_models::spec::Latent as Spec;

use crate::error::Result;
use crate::nn::attention::scale_queries;
use crate::nn::graph::Step;
use crate::nn::linear::Linear;
use crate::nn::weight::{At, Loader};
use crate::ops::{AttendShape, Blocks, Heads, KvFormat, KvShape, NormWeight, Ops, Stride};

/// The latent attention of one layer.
pub struct Latent<D: Ops> {
    query: Query<D>,
    kv_latent: Linear<D>,
    kv_norm: NormWeight<D::Buffer>,
    kv_proj: Linear<D>,
    o_proj: Linear<D>,
    /// Which of the model's kinds of rotation.
    rotation: Option<usize>,
    spec: Spec,
    shape: AttendShape,
}

/// Where queries come from.
enum Query<D: Ops> {
    Direct(Linear<D>),
    FromLatent { latent: Linear<D>, norm: NormWeight<D::Buffer>, proj: Linear<D> },
}

/// Buffers of latent attention, for as many tokens as a chunk has.
pub struct Scratch<D: Ops> {
    q_latent: D::Buffer,
    q: D::Buffer,
    /// The latent of keys and values, with the rotated key behind it.
    joined: D::Buffer,
    latent: D::Buffer,
    /// Keys without position and values of each head.
    expanded: D::Buffer,
    k: D::Buffer,
    v: D::Buffer,
    mixed: D::Buffer,
}

impl<D: Ops> Scratch<D> {
    /// Buffers for `n` tokens of layers like `spec`.
    ///
    /// # Errors
    ///
    /// If the device has no memory.
    pub fn new(d: &D, n: usize, spec: &Spec) -> Result<Self> {
        let buffer = |width: usize| d.buffer(n * width);
        let (q, v) = (spec.n_heads * spec.k_dim(), spec.n_heads * spec.v_dim);
        Ok(Self {
            q_latent: buffer(spec.q_rank.unwrap_or(0))?,
            q: buffer(q)?,
            joined: buffer(spec.kv_rank + spec.rope.rotary_dim)?,
            latent: buffer(spec.kv_rank)?,
            expanded: buffer(spec.n_heads * (spec.nope_dim + spec.v_dim))?,
            k: buffer(q)?,
            v: buffer(v)?,
            mixed: buffer(v)?,
        })
    }
}

impl<D: Ops> Latent<D> {
    /// The latent attention of layer `at`; `rotation` is the number of its kind of rotation.
    ///
    /// # Errors
    ///
    /// If a tensor is missing or has another shape.
    pub fn load(
        l: &mut Loader<'_, D>,
        at: At,
        spec: &Spec,
        rotation: Option<usize>,
    ) -> Result<Self> {
        let hidden = l.architecture().hidden;
        let (heads, rank) = (spec.n_heads, spec.kv_rank);
        let (joined, v) = (rank + spec.rope.rotary_dim, heads * spec.v_dim);
        let expanded = heads * (spec.nope_dim + spec.v_dim);
        Ok(Self {
            query: Query::load(l, at, spec)?,
            kv_latent: Linear::load(l, Part::KvLatent, at, [joined, hidden], spec.bias)?,
            kv_norm: l.norm(Part::KvLatentNorm, at, &spec.norm, rank)?,
            kv_proj: Linear::load(l, Part::KvFromLatent, at, [expanded, rank], false)?,
            o_proj: Linear::load(l, Part::O, at, [hidden, v], spec.bias)?,
            rotation,
            spec: spec.clone(),
            shape: AttendShape {
                n_heads: heads,
                n_kv_heads: heads,
                k_dim: spec.k_dim(),
                v_dim: spec.v_dim,
                scale: spec.scale,
                window: None,
                alibi: None,
            },
        })
    }

    /// Shape of this layer's cache, in `format`.
    #[must_use]
    pub fn kv_shape(&self, format: KvFormat) -> KvShape {
        self.shape.kv_shape(format)
    }

    /// Attention of the step's tokens; `x` and `out` are `[n, hidden]`, `kv` grows by `n` positions.
    ///
    /// # Errors
    ///
    /// If the device fails.
    pub fn forward(
        &self,
        d: &D,
        step: &Step<D>,
        x: &D::Buffer,
        kv: &mut D::Kv,
        s: &mut Scratch<D>,
        out: &mut D::Buffer,
    ) -> Result<()> {
        let (n, start) = (step.n, step.start);
        self.query.forward(d, x, n, s)?;
        self.kv_latent.forward(d, x, n, &mut s.joined)?;
        self.rotate(d, step, s)?;
        if let Some(scale) = self.spec.query_scale {
            scale_queries(d, scale, &self.shape, step, &mut s.q)?;
        }
        self.expand(d, n, s)?;
        d.store(kv, &s.k, &s.v, n, start)?;
        d.attend(&self.shape, &s.q, n, start, kv, &mut s.mixed)?;
        self.o_proj.forward(d, &s.mixed, n, out)
    }

    /// Turns the last elements of each query head, and the key behind the latent.
    fn rotate(&self, d: &D, step: &Step<D>, s: &mut Scratch<D>) -> Result<()> {
        let Some(rotation) = self.rotation.map(|kind| step.rotation(kind)) else { return Ok(()) };
        let Spec { n_heads, kv_rank, nope_dim, .. } = self.spec;
        let queries = Heads { n_heads, head_dim: self.shape.k_dim, offset: nope_dim };
        d.rotate(&rotation, queries, &mut s.q, step.n)?;
        let head_dim = kv_rank + rotation.rotary_dim;
        d.rotate(&rotation, Heads { n_heads: 1, head_dim, offset: kv_rank }, &mut s.joined, step.n)
    }

    /// Keys and values of every head from the normed latent; the rotated key is the same for all.
    fn expand(&self, d: &D, n: usize, s: &mut Scratch<D>) -> Result<()> {
        let Spec { n_heads, kv_rank, nope_dim, v_dim, .. } = self.spec;
        let (k_dim, rotary_dim) = (self.shape.k_dim, self.spec.rope.rotary_dim);
        let joined = |start| Stride { start, step: kv_rank + rotary_dim };
        let expanded = |start| Stride { start, step: nope_dim + v_dim };
        let keys = |start| Stride { start, step: k_dim };
        let latent = Stride { start: 0, step: kv_rank };
        let copy = Blocks { width: kv_rank, count: n, repeat: 1, from: joined(0), to: latent };
        d.copy_blocks(&copy, &s.joined, &mut s.latent)?;
        d.norm_in_place(&self.kv_norm, &mut s.latent, n)?;
        self.kv_proj.forward(d, &s.latent, n, &mut s.expanded)?;

        let heads = |width, from, to| Blocks { width, count: n * n_heads, repeat: 1, from, to };
        d.copy_blocks(&heads(nope_dim, expanded(0), keys(0)), &s.expanded, &mut s.k)?;
        let shared = heads(rotary_dim, joined(kv_rank), keys(nope_dim));
        d.copy_blocks(&Blocks { repeat: n_heads, ..shared }, &s.joined, &mut s.k)?;
        let values = Stride { start: 0, step: v_dim };
        d.copy_blocks(&heads(v_dim, expanded(nope_dim), values), &s.expanded, &mut s.v)
    }
}

impl<D: Ops> Query<D> {
    fn load(l: &mut Loader<'_, D>, at: At, spec: &Spec) -> Result<Self> {
        let (hidden, q_dim) = (l.architecture().hidden, spec.n_heads * spec.k_dim());
        let Some(rank) = spec.q_rank else {
            return Ok(Self::Direct(Linear::load(l, Part::Q, at, [q_dim, hidden], false)?));
        };
        Ok(Self::FromLatent {
            latent: Linear::load(l, Part::QLatent, at, [rank, hidden], spec.bias)?,
            norm: l.norm(Part::QLatentNorm, at, &spec.norm, rank)?,
            proj: Linear::load(l, Part::QFromLatent, at, [q_dim, rank], false)?,
        })
    }

    /// Puts the queries into `s.q`.
    fn forward(&self, d: &D, x: &D::Buffer, n: usize, s: &mut Scratch<D>) -> Result<()> {
        match self {
            Self::Direct(proj) => proj.forward(d, x, n, &mut s.q),
            Self::FromLatent { latent, norm, proj } => {
                latent.forward(d, x, n, &mut s.q_latent)?;
                d.norm_in_place(norm, &mut s.q_latent, n)?;
                proj.forward(d, &s.q_latent, n, &mut s.q)
            }
        }
    }
}
