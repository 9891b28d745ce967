//! Steps 3 and 4 of sampling: temperature, top-k, top-p, min-p, typical-p, by selection and never by sorting.

use std::cmp::Ordering;

use super::exp::{exp, total_weight};

/// A token that may be drawn.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate {
    pub(super) id: u32,
    /// `(logit - best logit) / temperature`: at most 0.
    pub(super) score: f32,
    /// `exp(score)`: the probability, but for a common factor.
    pub(super) weight: f32,
}

/// The filters with their values; one that would remove nothing is `None`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Filters {
    pub(super) top_k: Option<usize>,
    pub(super) top_p: Option<f32>,
    pub(super) min_p: Option<f32>,
    pub(super) typical_p: Option<f32>,
}

/// What the filters leave of a vocabulary, and their working room, which is used again for each token.
#[derive(Debug, Clone, Default)]
pub(super) struct Candidates {
    /// What is left; by id.
    kept: Vec<Candidate>,
    /// Where selections shuffle.
    scratch: Vec<Candidate>,
    /// The best logits so far, for top-k.
    best: Vec<f32>,
}

impl Candidates {
    /// What may be drawn given `logits`, whose largest is `best`; by id, and never empty.
    pub(super) fn filter(
        &mut self,
        filters: Filters,
        logits: &[f32],
        best: f32,
        temperature: f32,
    ) -> &[Candidate] {
        let Filters { top_k, top_p, min_p, typical_p } = filters;
        let logit_of =
            |weight: f64| (f64::from(best) + f64::from(temperature) * weight.ln()) as f32;
        // First a floor that spares most tokens the work. Temperature does not change which ones are the
        // k best; half of the other bounds leaves room for rounding.
        let mut whole = None;
        let floor = match (top_k, top_p) {
            (Some(k), _) => kth_best(logits, k, &mut self.best),
            (None, Some(p)) => {
                let total = *whole.insert(total_weight(logits, best, temperature));
                logit_of(nucleus_bound(logits.len(), p, total) / 2.0)
            }
            (None, None) => logit_of(f64::from(min_p.unwrap_or(0.0)) / 2.0),
        };
        self.keep_from(floor.max(f32::MIN), logits, best, temperature);
        if let Some(p) = top_p {
            let need = f64::from(p) * whole.unwrap_or_else(|| total(&self.kept));
            let last = self.last_needed(need, by_score);
            self.kept.retain(|c| by_score(c, &last).is_le());
        }
        if let Some(min_p) = min_p {
            // The best token's weight is 1.
            self.kept.retain(|c| c.weight >= min_p);
        }
        if let Some(p) = typical_p {
            self.keep_typical(p);
        }
        &self.kept
    }

    /// Fills `kept` with the tokens whose logit is at least `floor`.
    fn keep_from(&mut self, floor: f32, logits: &[f32], best: f32, temperature: f32) {
        self.kept.clear();
        for (first, some) in (0..).step_by(STRIDE).zip(logits.chunks(STRIDE)) {
            if !any(some, |l| l >= floor) {
                continue;
            }
            for (id, &l) in (first..).zip(some) {
                if l >= floor {
                    let score = (l - best) / temperature;
                    self.kept.push(Candidate { id, score, weight: exp(score) });
                }
            }
        }
    }

    /// Keeps the tokens whose surprise -ln p is nearest to its mean, the entropy, until their weights
    /// reach the share `p`; ties with the last one stay.
    ///
    /// The common term ln Σ of surprise and entropy cancels: what counts is the distance of the score
    /// from the mean score.
    fn keep_typical(&mut self, p: f32) {
        let total = total(&self.kept);
        let weighted = |c: &Candidate| match c.weight {
            0.0 => 0.0, // 0 · -inf
            w => f64::from(w) * f64::from(c.score),
        };
        let mean = self.kept.iter().map(weighted).sum::<f64>() / total;
        let distance = |c: &Candidate| (f64::from(c.score) - mean).abs();
        let nearer = |a: &Candidate, b: &Candidate| {
            distance(a).total_cmp(&distance(b)).then(a.id.cmp(&b.id))
        };
        let last = self.last_needed(f64::from(p) * total, nearer);
        self.kept.retain(|c| distance(c) <= distance(&last));
    }

    /// Of `kept` put in order, the last of the shortest beginning whose weights sum to `need`, or the
    /// last of all if they do not.
    ///
    /// Halves instead of sorting: each round looks at one half only, so the whole takes as long as
    /// looking at every candidate twice.
    fn last_needed(
        &mut self,
        mut need: f64,
        order: impl Fn(&Candidate, &Candidate) -> Ordering,
    ) -> Candidate {
        self.scratch.clone_from(&self.kept);
        let mut items = &mut self.scratch[..];
        while items.len() > 1 {
            let middle = items.len() / 2;
            items.select_nth_unstable_by(middle, &order);
            let (first, second) = items.split_at_mut(middle);
            let mass = total(first);
            if mass >= need {
                items = first;
            } else {
                need -= mass;
                items = second;
            }
        }
        items[0]
    }
}
/// Better scores first; of equal ones the larger id, as transformers' stable sort has it.
fn by_score(a: &Candidate, b: &Candidate) -> Ordering {
    b.score.total_cmp(&a.score).then(b.id.cmp(&a.id))
}

/// Logits that are passed over together if none of them counts, as nearly always.
const STRIDE: usize = 32;

/// Whether `holds` for any of the logits; asks all of them, which vectorises.
pub(super) fn any(logits: &[f32], holds: impl Fn(f32) -> bool) -> bool {
    logits.iter().fold(false, |any, &l| any | holds(l))
}

/// The largest of the logits, none of which is NaN.
pub(super) fn maximum(logits: &[f32]) -> f32 {
    // Eight maxima side by side fill a vector register.
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; 8];
    for eight in logits.chunks(8) {
        for (lane, &l) in lanes.iter_mut().zip(eight) {
            *lane = larger(*lane, l);
        }
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, larger)
}

/// The k-th largest logit; `best` is working room.
///
/// One pass with a bar that rises whenever the room for candidates is full: few logits are above it, so
/// few are ever moved.
fn kth_best(logits: &[f32], k: usize, best: &mut Vec<f32>) -> f32 {
    let room = 2 * k + 256;
    let raise = |best: &mut Vec<f32>| {
        best.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
        best.truncate(k);
        best[k - 1]
    };
    best.clear();
    let mut bar = f32::NEG_INFINITY;
    for some in logits.chunks(STRIDE) {
        if !any(some, |l| l > bar) {
            continue;
        }
        for &l in some {
            if l > bar {
                best.push(l);
                if best.len() == room {
                    bar = raise(best);
                }
            }
        }
    }
    if best.len() >= k { raise(best) } else { bar }
}

/// A weight below which no token can be in the nucleus, given the `total` weight of all.
///
/// Tokens whose probability is below (1 - p) / vocab sum to less than 1 - p all together: top-p removes them.
fn nucleus_bound(vocab: usize, p: f32, total: f64) -> f64 {
    total * (1.0 - f64::from(p)) / vocab as f64
}

/// The sum of the weights.
pub(super) fn total(candidates: &[Candidate]) -> f64 {
    candidates.iter().map(|c| f64::from(c.weight)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_memory_is_taken_after_the_first_token() {
        let filters =
            Filters { top_k: Some(300), top_p: Some(0.9), min_p: None, typical_p: Some(0.9) };
        let mut candidates = Candidates::default();
        let logits: Vec<f32> = (0..1000).map(|i| (i as f32).sin()).collect();
        candidates.filter(filters, &logits, 1.0, 1.0);
        let rooms = |c: &Candidates| [c.kept.capacity(), c.scratch.capacity(), c.best.capacity()];
        let after_one = rooms(&candidates);
        for _ in 0..10 {
            candidates.filter(filters, &logits, 1.0, 1.0);
        }
        assert_eq!(rooms(&candidates), after_one);
    }

    #[test]
    fn the_kth_best_is_that_of_a_sort() {
        let logits: Vec<f32> = (0..5000).map(|i| ((i * 37) % 1000) as f32).collect();
        let mut sorted = logits.clone();
        sorted.sort_by(|a, b| b.total_cmp(a));
        for k in [1, 2, 5, 6, 999, 4999] {
            assert_eq!(kth_best(&logits, k, &mut Vec::new()), sorted[k - 1], "k = {k}");
        }
        assert_eq!(kth_best(&[f32::NEG_INFINITY, 3.0], 2, &mut Vec::new()), f32::NEG_INFINITY);
    }
}
