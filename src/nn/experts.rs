//! A mixture of experts: a router chooses a few of many gated MLPs for each token.
//!
//! Semantics of transformers' Mixtral: softmax over all experts, the best `n_active`, their weights normalised
//! again; the experts' results are added in the order of the experts.

use tramontane_models::names::Part;
use tramontane_models::spec;

use crate::error::Result;
use crate::nn::linear::Linear;
use crate::nn::mlp::{self, Gated};
use crate::nn::weight::{At, Loader};
use crate::ops::Ops;

/// The experts of one layer.
pub struct Experts<D: Ops> {
    router: Linear<D>,
    experts: Vec<Gated<D>>,
    n_active: usize,
    hidden: usize,
}

/// Buffers of the experts, for as many tokens as a chunk has.
pub struct Scratch<D: Ops> {
    scores: D::Buffer,
    chosen: D::Buffer,
    result: D::Buffer,
}

impl<D: Ops> Scratch<D> {
    /// Buffers for `n` tokens of `hidden` elements.
    ///
    /// # Errors
    ///
    /// If the device has no memory.
    pub fn new(d: &D, n: usize, hidden: usize, n_experts: usize) -> Result<Self> {
        let (chosen, result) = (d.buffer(n * hidden)?, d.buffer(n * hidden)?);
        Ok(Self { scores: d.buffer(n * n_experts)?, chosen, result })
    }
}

impl<D: Ops> Experts<D> {
    /// The experts of layer `at`.
    ///
    /// # Errors
    ///
    /// If a tensor is missing or has another shape.
    pub fn load(l: &mut Loader<'_, D>, at: At, spec: &spec::Experts) -> Result<Self> {
        let hidden = l.architecture().hidden;
        let router = Linear::load(l, Part::Router, at, [spec.n_experts, hidden], false)?;
        let dense = spec::Dense { inner: spec.inner, activation: spec.activation, bias: false };
        let parts = [Part::ExpertGate, Part::ExpertUp, Part::ExpertDown];
        let load = |expert| Gated::load(l, At { expert, ..at }, &dense, parts);
        let experts = (0..spec.n_experts).map(load).collect::<Result<_>>()?;
        Ok(Self { router, experts, n_active: spec.n_active, hidden })
    }

    /// The experts' results for `n` tokens; `x` and `out` are `[n, hidden]`.
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
        mlp: &mut mlp::Scratch<D>,
        out: &mut D::Buffer,
    ) -> Result<()> {
        self.router.forward(d, x, n, &mut s.scores)?;
        let mut scores = vec![0.0; n * self.experts.len()];
        d.read(&s.scores, 0, &mut scores)?;
        let tokens = self.assign(&scores);
        d.write(&vec![0.0; n * self.hidden], out)?;
        for (expert, (rows, factors)) in self.experts.iter().zip(&tokens) {
            if rows.is_empty() {
                continue;
            }
            d.gather(x, self.hidden, rows, &mut s.chosen)?;
            expert.forward(d, &s.chosen, rows.len(), mlp, &mut s.result)?;
            d.scatter_add(&s.result, self.hidden, rows, factors, out)?;
        }
        Ok(())
    }

    /// For each expert the tokens that use it, and the weight of each; `scores` is `[n, n_experts]`.
    fn assign(&self, scores: &[f32]) -> Vec<(Vec<usize>, Vec<f32>)> {
        let mut tokens = vec![(Vec::new(), Vec::new()); self.experts.len()];
        for (token, scores) in scores.chunks_exact(self.experts.len()).enumerate() {
            for (expert, weight) in route(scores, self.n_active) {
                tokens[expert].0.push(token);
                tokens[expert].1.push(weight);
            }
        }
        tokens
    }
}

/// The `n_active` experts with the highest scores and their weights, which add up to 1.
///
/// Equal scores go to the lower number. A score that is not a number leaves a weight that is none either, so the
/// fault shows in the logits.
fn route(scores: &[f32], n_active: usize) -> Vec<(usize, f32)> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    order.truncate(n_active);
    let top = scores[order[0]];
    let weights: Vec<f32> = order.iter().map(|e| (scores[*e] - top).exp()).collect();
    let sum: f32 = weights.iter().sum();
    order.into_iter().zip(weights).map(|(expert, weight)| (expert, weight / sum)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_experts_share_a_weight_of_one() {
        let chosen = route(&[0.0, 2.0, 1.0, -1.0], 2);
        assert_eq!(chosen.iter().map(|c| c.0).collect::<Vec<_>>(), [1, 2]);
        let e = 1f32.exp();
        assert!((chosen[0].1 - e / (e + 1.0)).abs() < 1e-6);
        assert!((chosen[0].1 + chosen[1].1 - 1.0).abs() < 1e-6);
    }

    #[test]
    fn ties_go_to_the_lower_number() {
        assert_eq!(route(&[1.0, 1.0, 1.0], 1)[0].0, 0);
    }
}
