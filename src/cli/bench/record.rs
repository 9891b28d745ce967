//! One line of the record: a test, its samples, and the circumstances.

use serde::Serialize;

/// What is measured: a prompt, a generation, or both, with so many tokens in the cache before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Test {
    pub(super) n_prompt: usize,
    pub(super) n_gen: usize,
    pub(super) n_depth: usize,
}

impl Test {
    /// The name that llama-bench gives it: `pp512`, `tg128 @ d1024`, `pp512+tg128`.
    pub(super) fn name(&self) -> String {
        let mut name = match (self.n_prompt, self.n_gen) {
            (p, 0) => format!("pp{p}"),
            (0, n) => format!("tg{n}"),
            (p, n) => format!("pp{p}+tg{n}"),
        };
        if self.n_depth > 0 {
            name += &format!(" @ d{}", self.n_depth);
        }
        name
    }
}

/// The result of one test. The first fields are those of llama-bench; the others are ours.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Record {
    pub(super) build_commit: String,
    pub(super) build_number: u32,
    pub(super) cpu_info: String,
    pub(super) gpu_info: String,
    pub(super) backends: String,
    pub(super) model_filename: String,
    pub(super) model_type: String,
    pub(super) model_size: u64,
    pub(super) model_n_params: u64,
    pub(super) n_batch: usize,
    pub(super) n_ubatch: usize,
    pub(super) n_threads: usize,
    pub(super) type_k: String,
    pub(super) type_v: String,
    pub(super) n_gpu_layers: u32,
    pub(super) use_mmap: bool,
    pub(super) n_prompt: usize,
    pub(super) n_gen: usize,
    pub(super) n_depth: usize,
    pub(super) test_time: String,
    pub(super) avg_ns: u64,
    pub(super) stddev_ns: u64,
    pub(super) avg_ts: f64,
    pub(super) stddev_ts: f64,
    pub(super) samples_ns: Vec<u64>,
    pub(super) samples_ts: Vec<f64>,
    // From here on ours.
    pub(super) test: String,
    pub(super) engine: String,
    pub(super) format: String,
    pub(super) isa: String,
    pub(super) governor: String,
    pub(super) median_ts: f64,
    /// Prefill up to the first token's logits.
    pub(super) ttft_ms: Option<f64>,
    pub(super) itl_p50_ms: Option<f64>,
    pub(super) itl_p90_ms: Option<f64>,
    pub(super) itl_p99_ms: Option<f64>,
    /// With the files in the system's page cache, where `--load` was given; else as they happened to be.
    pub(super) load_ms: f64,
    /// With none of the files in the page cache; only where `--load` was given.
    pub(super) load_cold_ms: Option<f64>,
    pub(super) peak_rss_bytes: Option<u64>,
    /// Weights and cache read for one generated token.
    pub(super) bytes_per_token: Option<u64>,
    /// What all threads together read from memory, measured before the test.
    pub(super) bandwidth_gb_s: f64,
    /// Bytes read per second of generation, of the measured bandwidth.
    pub(super) roofline_percent: Option<f64>,
    /// French characters and words per second, by this model's tokenizer on a French text.
    pub(super) chars_s: Option<f64>,
    pub(super) words_s: Option<f64>,
    /// Of the best token at each generated position: equal hashes mean equal results.
    pub(super) token_hash: Option<String>,
}
