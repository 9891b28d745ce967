//! Running one test.

use std::time::Instant;

use tramontane::error::Result;
use tramontane::generate::token_hash;
use tramontane::{KvCache, Model};

use super::load::Load;
use super::machine::{Machine, peak_rss};
use super::record::{Record, Test};
use super::{percentile, statistics, too_deep};
use crate::cli::talk::CountBar;

/// A French text by which tokens are converted to characters and words: tokenizers differ, so tokens per second
/// of different models cannot be compared.
const FRENCH: &str = include_str!("french.txt");

/// One sample: nanoseconds of the prompt, of each generated token, and the best tokens.
struct Sample {
    prompt_ns: u64,
    token_ns: Vec<u64>,
    best: Vec<u32>,
}

impl Sample {
    fn total_ns(&self) -> u64 {
        self.prompt_ns + self.token_ns.iter().sum::<u64>()
    }
}

/// Runs `test` once uncounted and `repetitions` times counted.
pub(super) fn measure(
    model: &Model,
    test: Test,
    repetitions: u32,
    machine: &Machine,
    load: Load,
    bar: &CountBar,
) -> Result<Record> {
    let context = model.info().context;
    if test.n_depth + test.n_prompt + test.n_gen > context {
        return Err(too_deep(test, context));
    }
    let mut cache = model.cache()?;
    let mut logits = Vec::new();
    if test.n_depth > 0 {
        model.advance(&ids(model, test.n_depth, 1), &mut cache, &mut logits)?;
    }
    let mut samples = Vec::new();
    for repetition in 0..=repetitions {
        let mut fork = cache.fork();
        let sample = sample(model, test, &mut fork, &mut logits)?;
        if repetition > 0 {
            samples.push(sample);
        }
        bar.advance();
    }
    Ok(record(model, test, &samples, machine, load))
}

fn sample(model: &Model, test: Test, cache: &mut KvCache, logits: &mut Vec<f32>) -> Result<Sample> {
    let mut sample = Sample { prompt_ns: 0, token_ns: Vec::new(), best: Vec::new() };
    if test.n_prompt > 0 {
        let ids = ids(model, test.n_prompt, 2);
        let start = Instant::now();
        model.advance(&ids, cache, logits)?;
        sample.prompt_ns = nanoseconds(start);
    }
    for id in ids(model, test.n_gen, 3) {
        let start = Instant::now();
        model.advance(&[id], cache, logits)?;
        sample.token_ns.push(nanoseconds(start));
        sample.best.push(best(logits));
    }
    Ok(sample)
}

fn nanoseconds(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

fn best(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    best.map_or(0, |(id, _)| id as u32)
}

/// The same arbitrary ids in every run (an LCG by Knuth).
fn ids(model: &Model, n: usize, seed: u64) -> Vec<u32> {
    let vocab = model.architecture().vocab as u64;
    let mut state = seed;
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % vocab) as u32
    };
    (0..n).map(|_| next()).collect()
}

fn record(model: &Model, test: Test, samples: &[Sample], machine: &Machine, load: Load) -> Record {
    let info = model.info();
    let n_tokens = (test.n_prompt + test.n_gen) as f64;
    let samples_ns: Vec<u64> = samples.iter().map(Sample::total_ns).collect();
    let samples_ts: Vec<f64> = samples_ns.iter().map(|ns| n_tokens / (*ns as f64 / 1e9)).collect();
    let (avg_ts, stddev_ts, median_ts) = statistics(&samples_ts);
    let (avg_ns, stddev_ns, _) =
        statistics(&samples_ns.iter().map(|ns| *ns as f64).collect::<Vec<_>>());
    let token_ms: Vec<f64> =
        samples.iter().flat_map(|s| &s.token_ns).map(|ns| *ns as f64 / 1e6).collect();
    let itl = |p| (!token_ms.is_empty()).then(|| percentile(&token_ms, p));
    let prompt_ms: Vec<f64> = samples.iter().map(|s| s.prompt_ns as f64 / 1e6).collect();
    let is_generation = test.n_prompt == 0;
    let cache_bytes = model.cache_bytes_per_token(test.n_depth + test.n_gen / 2);
    let bytes_per_token = is_generation.then(|| info.weight_bytes_per_token + cache_bytes);
    let per_token = french_per_token(model);
    Record {
        build_commit: option_env!("TRAMONTANE_COMMIT").unwrap_or("unknown").to_owned(),
        build_number: 0,
        cpu_info: machine.cpu.clone(),
        gpu_info: machine.gpu.clone().unwrap_or_default(),
        backends: if machine.gpu.is_some() { "CUDA" } else { "CPU" }.to_owned(),
        model_filename: info.name.clone(),
        model_type: format!("{} {}", info.family, info.format),
        model_size: info.weight_bytes,
        model_n_params: info.parameters,
        n_batch: info.chunk,
        n_ubatch: info.chunk,
        n_threads: info.threads,
        type_k: info.kv.clone(),
        type_v: info.kv.clone(),
        n_gpu_layers: machine.gpu.as_ref().map_or(0, |_| model.architecture().layers.len() as u32),
        use_mmap: true,
        n_prompt: test.n_prompt,
        n_gen: test.n_gen,
        n_depth: test.n_depth,
        test_time: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        avg_ns: avg_ns as u64,
        stddev_ns: stddev_ns as u64,
        avg_ts,
        stddev_ts,
        samples_ns,
        samples_ts,
        test: test.name(),
        engine: format!("tramontane {}", env!("CARGO_PKG_VERSION")),
        format: info.format.clone(),
        isa: info.device.clone(),
        governor: machine.governor.clone(),
        median_ts,
        ttft_ms: (test.n_prompt > 0).then(|| percentile(&prompt_ms, 0.5)),
        itl_p50_ms: itl(0.5),
        itl_p90_ms: itl(0.9),
        itl_p99_ms: itl(0.99),
        load_ms: load.ms,
        load_cold_ms: load.cold_ms,
        peak_rss_bytes: peak_rss(),
        bytes_per_token,
        bandwidth_gb_s: machine.bandwidth / 1e9,
        roofline_percent: bytes_per_token.map(|b| 100.0 * median_ts * b as f64 / machine.bandwidth),
        chars_s: per_token.map(|(chars, _)| chars * median_ts),
        words_s: per_token.map(|(_, words)| words * median_ts),
        token_hash: samples.first().filter(|s| !s.best.is_empty()).map(|s| token_hash(&s.best)),
    }
}

/// Characters and words of French that a token of this model stands for.
fn french_per_token(model: &Model) -> Option<(f64, f64)> {
    let n_tokens = model.tokenizer()?.encode(FRENCH).ok()?.len() as f64;
    let (chars, words) = (FRENCH.chars().count() as f64, FRENCH.split_whitespace().count() as f64);
    Some((chars / n_tokens, words / n_tokens))
}
