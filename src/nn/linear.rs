//! A projection: a matrix and perhaps a bias.

use tramontane_models::names::Part;
use tramontane_models::spec::Activation;

use crate::error::Result;
use crate::nn::weight::{At, Loader};
use crate::ops::Ops;

/// `y = w · x + bias`.
pub struct Linear<D: Ops> {
    weight: D::Weight,
    bias: Option<D::Buffer>,
    rows: usize,
}

impl<D: Ops> Linear<D> {
    /// The projection `part`, whose matrix is `[rows, cols]`.
    ///
    /// # Errors
    ///
    /// If a tensor is missing or has another shape.
    pub fn load(
        l: &mut Loader<'_, D>,
        part: Part,
        at: At,
        [rows, cols]: [usize; 2],
        bias: bool,
    ) -> Result<Self> {
        let weight = l.matrix(part, at, [rows, cols])?;
        let bias = if bias { Some(l.bias(part, at, rows)?) } else { None };
        Ok(Self { weight, bias, rows })
    }

    /// The matrix `part`, `[rows, cols]`, to look up rows only.
    ///
    /// # Errors
    ///
    /// If the tensor is missing or has another shape.
    pub fn table(
        l: &mut Loader<'_, D>,
        part: Part,
        at: At,
        [rows, cols]: [usize; 2],
    ) -> Result<Self> {
        Ok(Self { weight: l.table(part, at, [rows, cols])?, bias: None, rows })
    }

    /// The matrix.
    #[must_use]
    pub fn weight(&self) -> &D::Weight {
        &self.weight
    }

    /// `out[t] = w[ids[t]]`: the matrix as an embedding.
    ///
    /// # Errors
    ///
    /// If the device fails.
    pub fn lookup(&self, d: &D, ids: &[u32], out: &mut D::Buffer) -> Result<()> {
        d.embed(&self.weight, ids, out)
    }

    /// `out[t] = w · x[t] + bias`; `x` is `[n, cols]`, `out` `[n, rows]`.
    ///
    /// # Errors
    ///
    /// If the device fails.
    pub fn forward(&self, d: &D, x: &D::Buffer, n: usize, out: &mut D::Buffer) -> Result<()> {
        forward_all(d, [self], x, n, [out])
    }
}

/// Several projections of the same input, which the device then prepares once.
///
/// # Errors
///
/// If the device fails.
pub fn forward_all<D: Ops, const N: usize>(
    d: &D,
    projections: [&Linear<D>; N],
    x: &D::Buffer,
    n: usize,
    mut outs: [&mut D::Buffer; N],
) -> Result<()> {
    d.linear(&projections.map(|p| &p.weight), x, n, &mut outs)?;
    for (projection, out) in projections.iter().zip(outs) {
        if let Some(bias) = &projection.bias {
            d.add_bias(bias, projection.rows, out, n)?;
        }
    }
    Ok(())
}

/// `out[t] = act(gate(x[t])) · up(x[t])`; `x` is `[n, cols]`, `out` and `spare` `[n, rows]`.
///
/// # Errors
///
/// If the device fails.
pub fn forward_gated<D: Ops>(
    d: &D,
    act: Activation,
    [gate, up]: [&Linear<D>; 2],
    x: &D::Buffer,
    n: usize,
    out: &mut D::Buffer,
    spare: &mut D::Buffer,
) -> Result<()> {
    if gate.bias.is_none() && up.bias.is_none() {
        let weights = [&gate.weight, &up.weight];
        return d.gated_linear(act, weights, gate.rows, x, n, out, spare);
    }
    forward_all(d, [gate, up], x, n, [out, spare])?;
    d.gate(act, spare, out, n * gate.rows)
}
