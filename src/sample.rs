//! logits → id: bias, penalties, temperature, the filters, one draw.
//!
//! The step after the model: what enters are the logits of the last position, `[vocab]` f32, and the ids
//! so far; what leaves is the next id. Steps, order and meaning are those of Hugging Face transformers'
//! `generate` (checked against 468 distributions that it computed), so a model card's advice holds here too:
//!
//! 1. `logit_bias` is added.
//! 2. `repetition_penalty` weakens every token of prompt and answer (Keskar et al. 2019, arXiv:1909.05858);
//!    `frequency_penalty` and `presence_penalty` those of the answer, by OpenAI's formula.
//! 3. `temperature` divides; at 0 the best token is taken, the first of equals, and the rest does not count.
//! 4. `top_k`, `top_p` (Holtzman et al. 2019, arXiv:1904.09751), `min_p` (Nguyen et al. 2024, arXiv:2407.01082)
//!    and `typical_p` (Meister et al. 2022, arXiv:2202.00666) remove tokens, each from what the one before has left.
//! 5. One random number chooses among the rest.
//!
//! For one seed the choices are the same on every machine that computes the same logits: the random
//! numbers and the exponential are our own, and nothing depends on the order in which a selection leaves its items.

mod defaults;
mod exp;
mod filter;
mod params;
mod rng;

use std::fmt::Write as _;

pub use defaults::GenerationDefaults;
pub use params::{MAX_LOGIT_BIAS, MAX_STOP, MAX_STOP_BYTES, MAX_TOKENS, Sampling};

use crate::error::{Error, ErrorKind, Result};
use filter::{Candidate, Candidates, Filters, any, maximum, total};
use rng::Rng;

/// Chooses tokens: the steps of the [module](self) with their values, and the state of the random numbers.
///
/// ```
/// # use tramontane::sample::{Sampler, Sampling};
/// let mut sampler = Sampler::new(&Sampling { temperature: Some(0.8), seed: Some(1), ..Default::default() }, 4)?;
/// let id = sampler.sample(&mut [0.1, 2.5, 0.3, 2.0], &[], &[])?;
/// assert!(id < 4);
/// assert_eq!(sampler.describe(), "temperature 0.8, seed 1");
/// # Ok::<(), tramontane::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Sampler {
    vocab: usize,
    chain: Chain,
    seed: u64,
    rng: Rng,
    candidates: Candidates,
    /// How often each id occurs; all zero between calls, and empty without penalties.
    counts: Vec<u32>,
}

/// The steps with their values; a step that does nothing is `None`.
#[derive(Debug, Clone)]
struct Chain {
    bias: Vec<(u32, f32)>,
    repetition: Option<f32>,
    /// Frequency and presence.
    penalties: Option<(f32, f32)>,
    /// `None` takes the best token.
    temperature: Option<f32>,
    filters: Filters,
}

impl Sampler {
    /// The sampler that `sampling` describes, for a model of `vocab` tokens.
    ///
    /// Fill in the model's defaults first ([`Sampling::or`]); what is still unset is off.
    ///
    /// # Errors
    ///
    /// As [`Sampling::validate`].
    pub fn new(sampling: &Sampling, vocab: usize) -> Result<Self> {
        sampling.validate(vocab)?;
        let sampling = sampling.clone().or(&GenerationDefaults::default());
        let seed = sampling.seed.unwrap_or_else(rng::fresh_seed);
        let chain = Chain::new(&sampling, vocab);
        let counted = chain.repetition.is_some() || chain.penalties.is_some();
        Ok(Self {
            vocab,
            seed,
            rng: Rng::new(seed),
            candidates: Candidates::default(),
            counts: vec![0; if counted { vocab } else { 0 }],
            chain,
        })
    }

    /// The next id after `prompt` and `generated`, given its `logits` (`[vocab]`), which are used up.
    ///
    /// # Errors
    ///
    /// [`Numerics`](ErrorKind::Numerics) if a logit is NaN or infinite, or if all are -inf;
    /// [`BadInput`](ErrorKind::BadInput) if there are not `vocab` logits.
    pub fn sample(&mut self, logits: &mut [f32], prompt: &[u32], generated: &[u32]) -> Result<u32> {
        let best = self.adjust(logits, prompt, generated)?;
        Ok(self.choose(logits, best))
    }

    /// How many of the largest logits decide by themselves; `None` where all do.
    pub(crate) fn deciding(&self) -> Option<usize> {
        let Chain { bias, repetition, penalties, temperature, filters } = &self.chain;
        if !bias.is_empty() || repetition.is_some() || penalties.is_some() {
            return None;
        }
        match temperature {
            None => Some(1),
            Some(_) => filters.top_k,
        }
    }

    /// The next id, as [`Self::sample`] finds it, given only the [`Self::deciding`] largest logits, none of which ties with
    /// another token's, and their `ids` in ascending order.
    pub(crate) fn sample_largest(&mut self, logits: &[f32], ids: &[u32]) -> Result<u32> {
        let best = find_best(logits)?;
        Ok(ids[self.choose(logits, best) as usize])
    }

    /// Steps 3 to 5; `best` is the index of the best logit. Ids only count by their order, so the indices of fewer logits
    /// serve as well.
    fn choose(&mut self, logits: &[f32], best: usize) -> u32 {
        let Some(temperature) = self.chain.temperature else { return best as u32 };
        let kept = self.candidates.filter(self.chain.filters, logits, logits[best], temperature);
        draw(kept, self.rng.unit())
    }

    /// The tokens that [`Self::sample`] would choose from, by id, with their probabilities.
    ///
    /// Draws nothing: the random numbers stay where they are.
    ///
    /// # Errors
    ///
    /// As [`Self::sample`].
    pub fn distribution(
        &mut self,
        logits: &mut [f32],
        prompt: &[u32],
        generated: &[u32],
    ) -> Result<Vec<(u32, f32)>> {
        let best = self.adjust(logits, prompt, generated)?;
        let Some(temperature) = self.chain.temperature else { return Ok(vec![(best as u32, 1.0)]) };
        let kept = self.candidates.filter(self.chain.filters, logits, logits[best], temperature);
        let total = total(kept);
        Ok(kept.iter().map(|c| (c.id, (f64::from(c.weight) / total) as f32)).collect())
    }

    /// Where the random numbers started: with it, the same choices can be made again.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The steps that do something, in their order, and the seed, in one line.
    ///
    /// ```
    /// # use tramontane::sample::{Sampler, Sampling};
    /// let sampling = Sampling { repetition_penalty: Some(1.1), ..Sampling::greedy() };
    /// assert_eq!(Sampler::new(&sampling, 8)?.describe(), "repetition penalty 1.1, greedy");
    /// # Ok::<(), tramontane::Error>(())
    /// ```
    #[must_use]
    pub fn describe(&self) -> String {
        let c = &self.chain;
        let mut line = String::new();
        let mut step = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                // Writing to a string cannot fail.
                let _ = write!(line, "{}{name}{value}", if line.is_empty() { "" } else { ", " });
            }
        };
        let number = |x: f32| format!(" {x}");
        let unless_zero = |x: f32| (x != 0.0).then(|| number(x));
        step("logit bias", (!c.bias.is_empty()).then(|| format!(" on {}", c.bias.len())));
        step("repetition penalty", c.repetition.map(number));
        step("frequency penalty", c.penalties.and_then(|(frequency, _)| unless_zero(frequency)));
        step("presence penalty", c.penalties.and_then(|(_, presence)| unless_zero(presence)));
        let Some(temperature) = c.temperature else {
            step("greedy", Some(String::new()));
            return line;
        };
        step("temperature", Some(number(temperature)));
        step("top-k", c.filters.top_k.map(|k| format!(" {k}")));
        step("top-p", c.filters.top_p.map(number));
        step("min-p", c.filters.min_p.map(number));
        step("typical-p", c.filters.typical_p.map(number));
        step("seed", Some(format!(" {}", self.seed)));
        line
    }

    /// Steps 1 and 2, in place; gives the index of the best logit, the first of equals.
    fn adjust(&mut self, logits: &mut [f32], prompt: &[u32], generated: &[u32]) -> Result<usize> {
        if logits.len() != self.vocab {
            let (found, vocab) = (logits.len(), self.vocab);
            return Err(Error::bad_input(format!("found {found} logits, expected {vocab}")));
        }
        for &(id, bias) in &self.chain.bias {
            logits[id as usize] += bias;
        }
        if let Some(penalty) = self.chain.repetition {
            for_each_id(&mut self.counts, prompt.iter().chain(generated), |id, _| {
                let l = &mut logits[id];
                *l = if *l < 0.0 { *l * penalty } else { *l / penalty };
            });
        }
        if let Some((frequency, presence)) = self.chain.penalties {
            for_each_id(&mut self.counts, generated.iter(), |id, n| {
                logits[id] -= frequency * n as f32 + presence;
            });
        }
        find_best(logits)
    }
}

impl Chain {
    fn new(s: &Sampling, vocab: usize) -> Self {
        let below_one = |x: &f32| *x < 1.0;
        let penalties = (s.frequency_penalty.unwrap_or(0.0), s.presence_penalty.unwrap_or(0.0));
        Self {
            bias: s.logit_bias.iter().map(|(&id, &bias)| (id, bias)).collect(),
            repetition: s.repetition_penalty.filter(|&x| x != 1.0),
            penalties: Some(penalties).filter(|&p| p != (0.0, 0.0)),
            temperature: s.temperature.filter(|&t| t > 0.0),
            filters: Filters {
                top_k: s.top_k.filter(|k| (1..vocab).contains(k)),
                top_p: s.top_p.filter(below_one),
                min_p: s.min_p.filter(|&x| x > 0.0),
                typical_p: s.typical_p.filter(below_one),
            },
        }
    }
}

/// Calls `f(id, n)` once for each id that occurs n > 0 times; ids beyond the vocabulary are left out.
///
/// `counts` is all zero, before and after.
fn for_each_id<'a>(
    counts: &mut [u32],
    ids: impl Iterator<Item = &'a u32> + Clone,
    mut f: impl FnMut(usize, u32),
) {
    for &id in ids.clone() {
        if let Some(n) = counts.get_mut(id as usize) {
            *n += 1;
        }
    }
    for &id in ids {
        if let Some(n) = counts.get_mut(id as usize).filter(|n| **n > 0) {
            f(id as usize, std::mem::take(n));
        }
    }
}

/// The index of the largest logit, the first of equals.
fn find_best(logits: &[f32]) -> Result<usize> {
    let broken = |l: f32| l.is_nan() || l == f32::INFINITY;
    if any(logits, broken) {
        let id = logits.iter().position(|&l| broken(l)).unwrap_or(0);
        let what = format!("the logit of token {id} is {}, expected a finite number", logits[id]);
        return Err(Error::new(ErrorKind::Numerics, what)
            .so("the model's weights are damaged, or overflow in this number format")
            .hint("--format f32, or pulling the model again"));
    }
    let max = maximum(logits);
    if max == f32::NEG_INFINITY {
        return Err(Error::new(ErrorKind::Numerics, "every token has the logit -inf")
            .so("no token can be chosen"));
    }
    // The maximum was just seen.
    Ok(logits.iter().position(|&l| l == max).unwrap_or(0))
}

/// The candidate in whose share of the total weight the random number `unit` of `[0, 1)` falls.
fn draw(candidates: &[Candidate], unit: f64) -> u32 {
    let mut left = unit * total(candidates);
    for c in candidates {
        left -= f64::from(c.weight);
        if left < 0.0 {
            return c.id;
        }
    }
    // Rounding may leave a crumb: it goes to the last that can be drawn. A best token, of weight 1, always can.
    candidates.iter().rev().find(|c| c.weight > 0.0).map_or(0, |c| c.id)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn sampler(sampling: &Sampling, vocab: usize) -> Sampler {
        Sampler::new(sampling, vocab).unwrap()
    }

    #[test]
    fn greedy_takes_the_first_of_the_best() {
        let mut greedy = sampler(&Sampling::greedy(), 4);
        assert_eq!(greedy.sample(&mut [0.0, 3.0, 3.0, 1.0], &[], &[]).unwrap(), 1);
        assert_eq!(
            greedy.sample(&mut [f32::NEG_INFINITY, -1e38, -2.0, -2.0], &[], &[]).unwrap(),
            2
        );
        assert_eq!(greedy.distribution(&mut [0.0, 3.0, 3.0, 1.0], &[], &[]).unwrap(), [(1, 1.0)]);
    }

    #[test]
    fn what_is_no_number_is_an_error_and_not_token_0() {
        for sampling in [Sampling::greedy(), Sampling { top_p: Some(0.9), ..Sampling::default() }] {
            let mut sampler = sampler(&sampling, 3);
            let cases = [
                ([0.0, f32::NAN, 1.0], "the logit of token 1 is NaN"),
                ([0.0, 1.0, f32::INFINITY], "the logit of token 2 is inf"),
                ([f32::NEG_INFINITY; 3], "every token has the logit -inf"),
            ];
            for (mut logits, words) in cases {
                let e = sampler.sample(&mut logits, &[], &[]).unwrap_err();
                assert_eq!(e.kind(), ErrorKind::Numerics);
                assert!(e.what().contains(words), "{e}");
            }
            let e = sampler.sample(&mut [0.0; 2], &[], &[]).unwrap_err();
            assert_eq!(e.what(), "found 2 logits, expected 3");
        }
    }

    #[test]
    fn the_largest_logits_decide_as_all_do() {
        let logits: Vec<f32> = (0..500).map(|i| ((i * 7919) % 1009) as f32 / 61.0 - 8.0).collect();
        let plain = Sampling { temperature: Some(1.5), seed: Some(3), ..Sampling::default() };
        for sampling in [
            Sampling::greedy(),
            Sampling { top_k: Some(1), ..plain.clone() },
            Sampling { top_k: Some(40), ..plain.clone() },
            Sampling { top_k: Some(40), top_p: Some(0.6), min_p: Some(0.02), ..plain.clone() },
            Sampling { top_k: Some(90), typical_p: Some(0.4), ..plain.clone() },
        ] {
            let (mut all, mut few) = (sampler(&sampling, 500), sampler(&sampling, 500));
            let mut order: Vec<u32> = (0..500).collect();
            order.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]));
            let mut ids = order[..few.deciding().unwrap()].to_vec();
            ids.sort_unstable();
            let largest: Vec<f32> = ids.iter().map(|id| logits[*id as usize]).collect();
            for _ in 0..50 {
                let id = all.sample(&mut logits.clone(), &[], &[]).unwrap();
                assert_eq!(few.sample_largest(&largest, &ids).unwrap(), id, "{}", few.describe());
            }
        }
        let all_count = [
            Sampling { top_p: Some(0.9), ..plain.clone() },
            Sampling { min_p: Some(0.1), ..plain.clone() },
            Sampling { repetition_penalty: Some(1.1), ..Sampling::greedy() },
            Sampling { presence_penalty: Some(0.1), top_k: Some(5), ..plain.clone() },
            Sampling { logit_bias: BTreeMap::from([(3, 0.5)]), ..Sampling::greedy() },
            plain,
        ];
        assert!(all_count.iter().all(|sampling| sampler(sampling, 500).deciding().is_none()));
    }

    #[test]
    fn extreme_numbers_stay_numbers() {
        for temperature in [f32::from_bits(1), 1e-30, 1.0, 1e30, f32::MAX] {
            for (top_k, top_p, typical_p) in
                [(None, None, None), (Some(2), None, None), (None, Some(0.5), Some(0.5))]
            {
                let sampling = Sampling {
                    temperature: Some(temperature),
                    top_k,
                    top_p,
                    typical_p,
                    ..Sampling::default()
                };
                let mut sampler = sampler(&sampling, 4);
                let mut logits = [1e38, -3e38, 3e38, f32::NEG_INFINITY];
                let kept = sampler.distribution(&mut logits, &[], &[]).unwrap();
                let sum: f32 = kept.iter().map(|c| c.1).sum();
                assert!((sum - 1.0).abs() < 1e-5, "{}: {kept:?}", sampler.describe());
                assert!(kept.iter().all(|c| c.0 != 3), "{}: {kept:?}", sampler.describe());
            }
        }
    }

    #[test]
    fn penalties_look_at_what_they_should() {
        let penal = Sampling {
            repetition_penalty: Some(2.0),
            frequency_penalty: Some(0.5),
            presence_penalty: Some(0.25),
            logit_bias: BTreeMap::from([(3, 4.0)]),
            ..Sampling::greedy()
        };
        let mut sampler = sampler(&penal, 4);
        let mut logits = [2.0, -2.0, 8.0, -2.0];
        // 0 in the prompt; 1 in both; 2 twice in the answer; 9 is no token.
        sampler.sample(&mut logits, &[0, 1, 0, 9], &[1, 2, 2]).unwrap();
        // 3 has its bias, and no penalty: it was nowhere.
        assert_eq!(logits, [1.0, -4.0 - 0.75, 4.0 - 1.25, 2.0]);
        assert!(sampler.counts.iter().all(|&n| n == 0));
        // The bias comes before the penalty, as in transformers.
        let mut logits = [0.0, 0.0, 0.0, -2.0];
        sampler.sample(&mut logits, &[3], &[]).unwrap();
        assert_eq!(logits[3], 1.0);
    }

    #[test]
    fn the_chain_is_told_in_its_order() {
        let sampling = Sampling {
            temperature: Some(0.7),
            top_k: Some(50),
            top_p: Some(0.9),
            min_p: Some(0.05),
            typical_p: Some(0.95),
            repetition_penalty: Some(1.1),
            presence_penalty: Some(0.5),
            logit_bias: BTreeMap::from([(1, 1.0)]),
            seed: Some(7),
            ..Sampling::default()
        };
        let expected = "logit bias on 1, repetition penalty 1.1, presence penalty 0.5, temperature 0.7, \
            top-k 50, top-p 0.9, min-p 0.05, typical-p 0.95, seed 7";
        assert_eq!(sampler(&sampling, 100).describe(), expected);
        // Steps that do nothing are left out.
        let idle = Sampling {
            temperature: Some(1.0),
            top_k: Some(0),
            top_p: Some(1.0),
            min_p: Some(0.0),
            typical_p: Some(1.0),
            repetition_penalty: Some(1.0),
            frequency_penalty: Some(0.0),
            seed: Some(7),
            ..Sampling::default()
        };
        assert_eq!(sampler(&idle, 100).describe(), "temperature 1, seed 7");
    }

    #[test]
    fn a_draw_never_takes_what_has_no_weight() {
        let candidate = |id, weight| Candidate { id, score: 0.0, weight };
        let some = [candidate(4, 0.0), candidate(5, 1.0), candidate(6, 0.0)];
        for unit in [0.0, 0.5, 1.0 - f64::EPSILON / 2.0, 1.0] {
            assert_eq!(draw(&some, unit), 5);
        }
    }
}
