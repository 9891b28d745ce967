//! A mixture of experts: a router chooses a few of many MLPs for each token.
//!
//! Shazeer et al. 2017, arXiv:1701.06538. The experts' results are added in the order of the experts, then that of the
//! shared expert, which every token passes (DeepSeek-AI 2024, arXiv:2401.06066).

use tramontane_models::names::Part;
use tramontane_models::spec::{self, Router, Scores};

use crate::error::Result;
use crate::nn::linear::Linear;
use crate::nn::mlp::{self, Dense, Parts};
use crate::nn::weight::{At, Loader};
use crate::ops::Ops;

/// The experts of one layer.
pub struct Experts<D: Ops> {
    router: Linear<D>,
    choice: Choice,
    /// The experts as the device takes them all at once, if it does.
    together: Option<D::Experts>,
    experts: Vec<Dense<D>>,
    shared: Option<Dense<D>>,
    hidden: usize,
}

/// How the router's outputs become experts and weights.
pub(crate) struct Choice {
    router: Router,
    n_active: usize,
    /// Added to the scores for the choice; empty if nothing is.
    correction: Vec<f32>,
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
        let correction = if spec.router.correction {
            l.host_values(Part::RouterCorrection, at, "", &[spec.n_experts])?
        } else {
            Vec::new()
        };
        let dense = spec::Dense { inner: spec.inner, activation: spec.activation, bias: false };
        let parts = Parts { gate: Part::ExpertGate, up: Part::ExpertUp, down: Part::ExpertDown };
        let load = |expert| Dense::load(l, At { expert, ..at }, &dense, spec.gated, parts);
        let experts: Vec<_> = (0..spec.n_experts).map(load).collect::<Result<_>>()?;
        let matrices: Vec<_> = experts.iter().map(Dense::matrices).collect();
        let together = l.device().experts(spec, &correction, &matrices)?;
        let parts = Parts { gate: Part::SharedGate, up: Part::SharedUp, down: Part::SharedDown };
        let load = |dense| Dense::load(l, at, dense, spec.gated, parts);
        let shared = spec.shared.as_ref().map(load).transpose()?;
        let choice = Choice::new(&spec.router, spec.n_active, correction);
        Ok(Self { router, choice, together, experts, shared, hidden })
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
        match &self.together {
            Some(experts) => d.mix_experts(experts, &s.scores, x, n, out)?,
            None => self.one_by_one(d, x, n, s, mlp, out)?,
        }
        if let Some(shared) = &self.shared {
            shared.forward(d, x, n, mlp, &mut s.result)?;
            d.add(&s.result, out, n * self.hidden)?;
        }
        Ok(())
    }

    /// Chooses on the host, and runs each expert on the tokens that use it.
    fn one_by_one(
        &self,
        d: &D,
        x: &D::Buffer,
        n: usize,
        s: &mut Scratch<D>,
        mlp: &mut mlp::Scratch<D>,
        out: &mut D::Buffer,
    ) -> Result<()> {
        let mut outputs = Vec::new();
        d.read(&s.scores, n * self.experts.len(), &mut outputs)?;
        let tokens = self.assign(&outputs);
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

    /// For each expert the tokens that use it, and the weight of each; `outputs` is `[n, n_experts]`.
    fn assign(&self, outputs: &[f32]) -> Vec<(Vec<usize>, Vec<f32>)> {
        let mut tokens = vec![(Vec::new(), Vec::new()); self.experts.len()];
        for (token, outputs) in outputs.chunks_exact(self.experts.len()).enumerate() {
            for (expert, weight) in self.choice.route(outputs) {
                tokens[expert].0.push(token);
                tokens[expert].1.push(weight);
            }
        }
        tokens
    }
}

impl Choice {
    /// `n_active` experts of those that `router` scores; `correction` is one number for each, or empty.
    pub(crate) fn new(router: &Router, n_active: usize, correction: Vec<f32>) -> Self {
        Self { router: router.clone(), n_active, correction }
    }

    /// The chosen experts and their weights, from the router's output for each expert.
    ///
    /// Equal scores go to the lower number. An output that is not a number leaves weights that are none either, so
    /// the fault shows in the logits.
    pub(crate) fn route(&self, outputs: &[f32]) -> Vec<(usize, f32)> {
        let scores = scores(self.router.scores, outputs);
        let mut ranks = scores.clone();
        ranks.iter_mut().zip(&self.correction).for_each(|(rank, more)| *rank += more);
        if let Some(groups) = self.router.groups {
            close_groups(&mut ranks, groups);
        }
        let chosen = best(&ranks, self.n_active);
        // Far below any sum of scores: it only keeps a sum of zeros from dividing.
        let sum = chosen.iter().map(|expert| scores[*expert]).sum::<f32>() + 1e-20;
        let divisor = if self.router.normalised { sum } else { 1.0 };
        let weight = |expert: usize| (expert, scores[expert] / divisor * self.router.factor);
        chosen.into_iter().map(weight).collect()
    }
}

/// The score of each expert.
fn scores(kind: Scores, outputs: &[f32]) -> Vec<f32> {
    match kind {
        Scores::Sigmoid => outputs.iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect(),
        Scores::Softmax => {
            let top = outputs.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let weights: Vec<f32> = outputs.iter().map(|x| (x - top).exp()).collect();
            let sum: f32 = weights.iter().sum();
            weights.into_iter().map(|weight| weight / sum).collect()
        }
    }
}

/// Ranks every expert last that is not in one of the best groups, which are those whose two best experts rank highest.
fn close_groups(ranks: &mut [f32], groups: spec::Groups) {
    let size = ranks.len() / groups.n_groups;
    let two_best = |group: &[f32]| best(group, 2).into_iter().map(|i| group[i]).sum::<f32>();
    let sums: Vec<f32> = ranks.chunks_exact(size).map(two_best).collect();
    let open = best(&sums, groups.n_active);
    for (number, group) in ranks.chunks_exact_mut(size).enumerate() {
        if !open.contains(&number) {
            group.fill(f32::NEG_INFINITY);
        }
    }
}

/// The `n` highest of `values`, the highest first; of equal ones the first.
fn best(values: &[f32], n: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*b].total_cmp(&values[*a]));
    order.truncate(n);
    order
}

#[cfg(test)]
mod tests {
    use tramontane_models::spec::Groups;

    use super::*;

    fn choice(scores: Scores, correction: &[f32], groups: Option<Groups>, n: usize) -> Choice {
        let router = Router {
            scores,
            correction: !correction.is_empty(),
            groups,
            normalised: true,
            factor: 1.0,
        };
        Choice { router, n_active: n, correction: correction.to_vec() }
    }

    fn experts(chosen: &[(usize, f32)]) -> Vec<usize> {
        chosen.iter().map(|(expert, _)| *expert).collect()
    }

    #[test]
    fn the_best_experts_share_a_weight_of_one() {
        let chosen = choice(Scores::Softmax, &[], None, 2).route(&[0.0, 2.0, 1.0, -1.0]);
        assert_eq!(experts(&chosen), [1, 2]);
        let e = 1f32.exp();
        assert!((chosen[0].1 - e / (e + 1.0)).abs() < 1e-6);
        assert!((chosen[0].1 + chosen[1].1 - 1.0).abs() < 1e-6);
    }

    #[test]
    fn ties_go_to_the_lower_number() {
        let chosen = choice(Scores::Softmax, &[], None, 1).route(&[1.0, 1.0, 1.0]);
        assert_eq!(experts(&chosen), [0]);
    }

    #[test]
    fn the_correction_chooses_but_does_not_weigh() {
        let chosen = choice(Scores::Sigmoid, &[0.0, 0.0, 9.0], None, 2).route(&[0.0, 3.0, 0.0]);
        assert_eq!(experts(&chosen), [2, 1]);
        let high = 1.0 / (1.0 + (-3f32).exp());
        assert!((chosen[0].1 - 0.5 / (0.5 + high)).abs() < 1e-6);
    }

    #[test]
    fn without_normalisation_weights_are_scores_times_the_factor() {
        let mut choice = choice(Scores::Sigmoid, &[], None, 1);
        (choice.router.normalised, choice.router.factor) = (false, 2.5);
        assert_eq!(choice.route(&[0.0, -1.0]), [(0, 1.25)]);
    }

    #[test]
    fn the_best_expert_of_a_closed_group_is_not_chosen() {
        // Expert 0 is the best of all, but its group's two best are less than those of the second group.
        let groups = Some(Groups { n_groups: 2, n_active: 1 });
        let chosen = choice(Scores::Sigmoid, &[], groups, 2).route(&[1.0, -9.0, 0.9, 0.8]);
        assert_eq!(experts(&chosen), [2, 3]);
    }

    #[test]
    fn what_is_not_a_number_shows_in_the_weights() {
        let chosen = choice(Scores::Softmax, &[], None, 2).route(&[0.0, f32::NAN, 1.0]);
        assert!(chosen.iter().any(|(_, weight)| weight.is_nan()));
    }
}
