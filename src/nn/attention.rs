//! Softmax attention with grouped key/value heads (Vaswani et al. 2017, arXiv:1706.03762; Ainslie et al. 2023,
//! arXiv:2305.13245).

use tramontane_models::names::Part;
use tramontane_models::spec::{Attention as Spec, Position, QkNorm, QueryScale};

use crate::error::Result;
use crate::nn::graph::Step;
use crate::nn::linear::{Linear, forward_all};
use crate::nn::position::alibi_slopes;
use crate::nn::weight::{At, Loader};
use crate::ops::{AttendShape, Heads, KvFormat, KvShape, NormWeight, Ops, Rotation};

/// The attention of one layer.
pub struct Attention<D: Ops> {
    q_proj: Linear<D>,
    k_proj: Linear<D>,
    v_proj: Linear<D>,
    o_proj: Linear<D>,
    qk_norm: Option<QkNorms<D>>,
    query_scale: Option<QueryScale>,
    /// Which of the model's kinds of rotation, if any.
    rotation: Option<usize>,
    shape: AttendShape,
}

/// Norms of queries and keys, each over a head or over all heads.
struct QkNorms<D: Ops> {
    q: NormWeight<D::Buffer>,
    k: NormWeight<D::Buffer>,
    per_head: bool,
}

/// Buffers of attention, for as many tokens as a chunk has.
pub struct Scratch<D: Ops> {
    q: D::Buffer,
    k: D::Buffer,
    v: D::Buffer,
    mixed: D::Buffer,
}

impl<D: Ops> Scratch<D> {
    /// Buffers for `n` tokens of queries of `q_dim` and keys of `kv_dim` elements.
    ///
    /// # Errors
    ///
    /// If the device has no memory.
    pub fn new(d: &D, n: usize, q_dim: usize, kv_dim: usize) -> Result<Self> {
        let (q, mixed) = (d.buffer(n * q_dim)?, d.buffer(n * q_dim)?);
        Ok(Self { q, k: d.buffer(n * kv_dim)?, v: d.buffer(n * kv_dim)?, mixed })
    }
}

impl<D: Ops> Attention<D> {
    /// The attention of layer `at`; `rotation` is the number of its kind of rotation.
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
        let (q_dim, kv_dim) = (spec.q_dim(), spec.kv_dim());
        let alibi = match spec.position {
            Position::Alibi { factor } => Some(alibi_slopes(spec.n_heads, factor)),
            Position::None | Position::Rope(_) => None,
        };
        Ok(Self {
            q_proj: Linear::load(l, Part::Q, at, [q_dim, hidden], spec.qkv_bias)?,
            k_proj: Linear::load(l, Part::K, at, [kv_dim, hidden], spec.qkv_bias)?,
            v_proj: Linear::load(l, Part::V, at, [kv_dim, hidden], spec.qkv_bias)?,
            o_proj: Linear::load(l, Part::O, at, [hidden, q_dim], spec.o_bias)?,
            qk_norm: spec
                .qk_norm
                .as_ref()
                .map(|norm| QkNorms::load(l, at, spec, norm))
                .transpose()?,
            query_scale: spec.query_scale.filter(|scale| scale.beta != 0.0),
            rotation,
            shape: AttendShape {
                n_heads: spec.n_heads,
                n_kv_heads: spec.n_kv_heads,
                k_dim: spec.head_dim,
                v_dim: spec.head_dim,
                scale: spec.scale,
                window: spec.window,
                alibi,
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
        forward_all(
            d,
            [&self.q_proj, &self.k_proj, &self.v_proj],
            x,
            n,
            [&mut s.q, &mut s.k, &mut s.v],
        )?;
        if let Some(norms) = &self.qk_norm {
            norms.forward(d, &self.shape, n, s)?;
        }
        if let Some(kind) = self.rotation {
            let rotation = step.rotation(kind);
            self.rotate(d, &rotation, n, s)?;
        }
        if let Some(scale) = self.query_scale {
            scale_queries(d, scale, &self.shape, step, &mut s.q)?;
        }
        d.store(kv, &s.k, &s.v, n, start)?;
        d.attend(&self.shape, &s.q, n, start, kv, &mut s.mixed)?;
        self.o_proj.forward(d, &s.mixed, n, out)
    }

    fn rotate(
        &self,
        d: &D,
        rotation: &Rotation<'_, D::Buffer>,
        n: usize,
        s: &mut Scratch<D>,
    ) -> Result<()> {
        let AttendShape { n_heads, n_kv_heads, k_dim: head_dim, .. } = self.shape;
        let heads = |n_heads| Heads { n_heads, head_dim, offset: 0 };
        d.rotate_both(rotation, heads(n_heads), &mut s.q, n_kv_heads, &mut s.k, n)
    }
}

impl<D: Ops> QkNorms<D> {
    fn load(l: &mut Loader<'_, D>, at: At, spec: &Spec, norm: &QkNorm) -> Result<Self> {
        let (norm, q_width, k_width, per_head) = match norm {
            QkNorm::PerHead(norm) => (norm, spec.head_dim, spec.head_dim, true),
            QkNorm::FullWidth(norm) => (norm, spec.q_dim(), spec.kv_dim(), false),
        };
        let q = l.norm(Part::QNorm, at, norm, q_width)?;
        Ok(Self { q, k: l.norm(Part::KNorm, at, norm, k_width)?, per_head })
    }

    fn forward(&self, d: &D, shape: &AttendShape, n: usize, s: &mut Scratch<D>) -> Result<()> {
        let (q_rows, k_rows) =
            if self.per_head { (shape.n_heads, shape.n_kv_heads) } else { (1, 1) };
        d.norm_in_place(&self.q, &mut s.q, n * q_rows)?;
        d.norm_in_place(&self.k, &mut s.k, n * k_rows)
    }
}

/// Multiplies the queries of the step's tokens, `[n, n_heads · k_dim]`, by factors of their positions.
pub(super) fn scale_queries<D: Ops>(
    d: &D,
    scale: QueryScale,
    shape: &AttendShape,
    step: &Step<D>,
    q: &mut D::Buffer,
) -> Result<()> {
    let positions = step.start..step.start + step.n;
    let factors: Vec<f32> = positions.map(|position| query_factor(scale, position)).collect();
    d.scale_rows(&factors, shape.n_heads * shape.k_dim, q)
}

/// What a query at `position` is multiplied by: see [`QueryScale`].
fn query_factor(scale: QueryScale, position: usize) -> f32 {
    let steps = (position / scale.original) as f32;
    1.0 + scale.beta * (1.0 + steps).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_scale_starts_at_the_original_context() {
        let scale = QueryScale { beta: 0.1, original: 16384 };
        assert_eq!(query_factor(scale, 16383), 1.0);
        assert!((query_factor(scale, 16384) - 1.0693).abs() < 1e-4);
        assert!((query_factor(scale, 262_143) - 1.2773).abs() < 1e-4);
    }
}
