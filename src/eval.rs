//! How good a model is on a text, and how close a format comes to a reference.
//!
//! Perplexity is computed over windows of the text: each window passes through an empty cache, and of its tokens the last
//! `stride` count (all of them in the first window), so with a stride below the context each counted token has seen some
//! text before. A comparison passes the same windows through two models and compares the distributions at each counted
//! position; nothing is written to disk.

use serde::Serialize;

use crate::cache::KvCache;
use crate::error::{Error, Result};
use crate::model::Model;

/// Positions whose logits are held at once.
const PIECE: usize = 32;

/// How a text is cut into windows, in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Windows {
    /// Length of a window.
    pub context: usize,
    /// New tokens in each window; at most `context`.
    pub stride: usize,
    /// Most tokens that are counted; `None` for all.
    pub limit: Option<usize>,
}

/// Perplexity of a model on a text.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Perplexity {
    /// Tokens that were counted.
    pub tokens: usize,
    /// Characters of the text for which they stand, roughly: tokenizers differ, so this makes models comparable.
    pub bits_per_char: f64,
    /// Mean negative log-likelihood of a token, in nats.
    pub mean_nll: f64,
    /// Its standard error.
    pub stderr_nll: f64,
    /// `exp(mean_nll)`.
    pub perplexity: f64,
}

/// How far a model's distributions are from those of a reference.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Divergence {
    /// Perplexity of the reference.
    pub reference: Perplexity,
    /// Mean of `KL(reference ‖ model)` over the positions, in nats.
    pub mean_kl: f64,
    /// Its median.
    pub median_kl: f64,
    /// Below it are 99 % of the positions.
    pub p99_kl: f64,
    /// The largest.
    pub max_kl: f64,
    /// Positions at which both find the same token most likely, in percent.
    pub same_top_percent: f64,
    /// Percentiles of the difference in probability of the text's token, in percent: `(percentile, difference)`.
    pub delta_p_percentiles: Vec<(f64, f64)>,
    /// Root mean square of that difference, in percent.
    pub rms_delta_p: f64,
}

/// Perplexity of `model` on `text`; `progress(done, all)` counts tokens.
///
/// # Errors
///
/// If the model has no tokenizer, the text is shorter than two tokens, or the windows make no sense.
pub fn perplexity(
    model: &Model,
    text: &str,
    windows: Windows,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Perplexity> {
    let ids = model.require_tokenizer()?.encode_prompt(text)?;
    let mut nll = Vec::new();
    walk(&[model], &ids, windows, progress, &mut |target, logits| {
        nll.push(-log_probability(logits[0], target, log_sum_exp(logits[0])));
    })?;
    Ok(summarise(&nll, chars_per_token(text, &ids)))
}

/// Perplexity of `model`, and how far it is from `reference`; both must have the same vocabulary.
///
/// # Errors
///
/// As [`perplexity`].
pub fn compare(
    model: &Model,
    reference: &Model,
    text: &str,
    windows: Windows,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<(Perplexity, Divergence)> {
    let (vocab, other) = (model.architecture().vocab, reference.architecture().vocab);
    if vocab != other {
        return Err(Error::bad_input(format!(
            "the vocabularies have {vocab} and {other} tokens, expected the same"
        )));
    }
    let ids = model.require_tokenizer()?.encode_prompt(text)?;
    let mut nll = [Vec::new(), Vec::new()];
    let (mut kl, mut delta, mut same) = (Vec::new(), Vec::new(), 0usize);
    walk(&[model, reference], &ids, windows, progress, &mut |target, logits| {
        let sums = [log_sum_exp(logits[0]), log_sum_exp(logits[1])];
        let p = [0, 1].map(|i| log_probability(logits[i], target, sums[i]));
        nll[0].push(-p[0]);
        nll[1].push(-p[1]);
        delta.push(100.0 * (p[0].exp() - p[1].exp()));
        kl.push(divergence(logits[1], sums[1], logits[0], sums[0]));
        same += usize::from(top(logits[0]) == top(logits[1]));
    })?;
    let chars = chars_per_token(text, &ids);
    let n = kl.len() as f64;
    let rms = (delta.iter().map(|d| d * d).sum::<f64>() / n).sqrt();
    let mean_kl = kl.iter().sum::<f64>() / n;
    kl.sort_by(f64::total_cmp);
    delta.sort_by(f64::total_cmp);
    let divergence = Divergence {
        reference: summarise(&nll[1], chars),
        mean_kl,
        median_kl: at(&kl, 0.5),
        p99_kl: at(&kl, 0.99),
        max_kl: at(&kl, 1.0),
        same_top_percent: 100.0 * same as f64 / n,
        delta_p_percentiles: [1.0, 5.0, 25.0, 50.0, 75.0, 95.0, 99.0]
            .map(|p| (p, at(&delta, p / 100.0)))
            .to_vec(),
        rms_delta_p: rms,
    };
    Ok((summarise(&nll[0], chars), divergence))
}

/// Passes the windows of `ids` through the models, and calls `visit(target, logits of each model)` for every
/// counted position.
fn walk(
    models: &[&Model],
    ids: &[u32],
    windows: Windows,
    progress: &mut dyn FnMut(usize, usize),
    visit: &mut dyn FnMut(u32, &[&[f32]]),
) -> Result<()> {
    check(models, ids, windows)?;
    let all = windows.limit.unwrap_or(usize::MAX).min(ids.len() - 1);
    let mut done = 0;
    while done < all {
        // Position `i` predicts `ids[i + 1]`; the window ends where the last new position is.
        let end = (done + if done == 0 { windows.context } else { windows.stride }).min(all);
        let start = end.saturating_sub(windows.context);
        window(models, ids, start..end, done, visit)?;
        done = end;
        progress(done, all);
    }
    Ok(())
}

/// One window: positions `range`, of which those from `counted` on are visited.
fn window(
    models: &[&Model],
    ids: &[u32],
    range: std::ops::Range<usize>,
    counted: usize,
    visit: &mut dyn FnMut(u32, &[&[f32]]),
) -> Result<()> {
    let mut caches = models.iter().map(|m| m.cache()).collect::<Result<Vec<KvCache>>>()?;
    let mut skipped = Vec::new();
    if counted > range.start {
        for (model, cache) in models.iter().zip(&mut caches) {
            model.advance(&ids[range.start..counted], cache, &mut skipped)?;
        }
    }
    let vocab = models[0].architecture().vocab;
    for piece in (counted.max(range.start)..range.end).step_by(PIECE) {
        let positions = piece..(piece + PIECE).min(range.end);
        let mut logits = Vec::new();
        for (model, cache) in models.iter().zip(&mut caches) {
            logits.push(
                model.forward(&ids[positions.clone()], cache)?.flatten_all()?.to_vec1::<f32>()?,
            );
        }
        for (row, position) in positions.enumerate() {
            let rows: Vec<&[f32]> = logits.iter().map(|l| &l[row * vocab..][..vocab]).collect();
            visit(ids[position + 1], &rows);
        }
    }
    Ok(())
}

fn check(models: &[&Model], ids: &[u32], w: Windows) -> Result<()> {
    if ids.len() < 2 {
        return Err(Error::bad_input(format!(
            "the text has {} tokens, expected at least 2",
            ids.len()
        )));
    }
    if w.context == 0 || w.stride == 0 || w.stride > w.context {
        return Err(Error::bad_input(format!(
            "windows of {} tokens every {} tokens make no sense, expected 1 <= stride <= context",
            w.context, w.stride
        )));
    }
    match models.iter().map(|m| m.info().context).find(|context| w.context > *context) {
        Some(context) => Err(crate::model::too_long(w.context, context)),
        None => Ok(()),
    }
}

fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|x| f64::from(x - max).exp()).sum();
    f64::from(max) + sum.ln()
}

fn log_probability(logits: &[f32], id: u32, log_sum: f64) -> f64 {
    f64::from(logits[id as usize]) - log_sum
}

/// `Σ p (ln p − ln q)`.
fn divergence(p: &[f32], p_sum: f64, q: &[f32], q_sum: f64) -> f64 {
    let terms = p.iter().zip(q).map(|(p, q)| {
        let (p, q) = (f64::from(*p) - p_sum, f64::from(*q) - q_sum);
        p.exp() * (p - q)
    });
    // Rounding may leave a sum just below zero.
    terms.sum::<f64>().max(0.0)
}

fn top(logits: &[f32]) -> Option<usize> {
    logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map(|(i, _)| i)
}

/// The value at the part `p` of a sorted list.
fn at(sorted: &[f64], p: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    sorted.get((p * last as f64).round() as usize).copied().unwrap_or(0.0)
}

fn chars_per_token(text: &str, ids: &[u32]) -> f64 {
    text.chars().count() as f64 / ids.len() as f64
}

fn summarise(nll: &[f64], chars_per_token: f64) -> Perplexity {
    let n = nll.len() as f64;
    let mean = nll.iter().sum::<f64>() / n;
    let variance = nll.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    Perplexity {
        tokens: nll.len(),
        bits_per_char: mean / chars_per_token / std::f64::consts::LN_2,
        mean_nll: mean,
        stderr_nll: (variance / n).sqrt(),
        perplexity: mean.exp(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_of_equal_distributions_is_zero() {
        let a = [1.0f32, 2.0, 0.5];
        let shifted = a.map(|x| x + 3.0);
        assert!(divergence(&a, log_sum_exp(&a), &shifted, log_sum_exp(&shifted)) < 1e-12);
    }

    #[test]
    fn divergence_is_that_of_the_definition() {
        let (p, q) = ([0.0f32, 0.0], [0.0f32, 3f32.ln()]);
        let expected = 0.5 * (0.5f64 / 0.25).ln() + 0.5 * (0.5f64 / 0.75).ln();
        assert!((divergence(&p, log_sum_exp(&p), &q, log_sum_exp(&q)) - expected).abs() < 1e-6);
    }
}
