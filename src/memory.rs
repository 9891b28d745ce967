//! How much memory a model needs, and how much there is.
//!
//! The estimate is made from the description alone, before any weight is read, so a model that does not fit is
//! refused at once.

use serde::Serialize;
use tramontane_models::Architecture;
use tramontane_models::spec::{Mixer, Mlp};

use crate::error::{Error, ErrorKind, Result};
use crate::ops::{Cpu, Format, KvFormat, KvShape, Ops as _};

/// Bytes of the program itself, its tokenizer and its threads, roughly.
const PROGRAM: u64 = 24_000_000;

/// Bytes that a model needs while it loads and runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Estimate {
    /// Weights.
    pub weights: u64,
    /// Those of them that the CPU reads row by row where the file has them: an embedding that is not the head too.
    pub looked_up: u64,
    /// The largest tensor, as it is stored: it is in memory while it becomes a matrix.
    pub loading: u64,
    /// Keys and values of a full context, and the states of recurrent layers.
    pub cache: u64,
    /// Activations of one chunk of the prompt.
    pub buffers: u64,
    /// The program itself, its tokenizer and its threads.
    pub program: u64,
}

/// What the tensors of a checkpoint take once they are loaded as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// All that are used.
    pub bytes: u64,
    /// The largest one that becomes a matrix.
    pub largest: u64,
}

impl Estimate {
    /// What `architecture` needs with weights in `format` (those of `stored` where that is [`Format::Auto`]) and a
    /// cache in `kv` of `context` tokens.
    #[must_use]
    pub fn new(
        architecture: &Architecture,
        stored: Stored,
        format: Format,
        kv: KvFormat,
        context: usize,
    ) -> Self {
        let n_parameters = architecture.n_parameters();
        let table = (architecture.vocab * architecture.hidden) as u64;
        let bytes = |bits: f64, n: u64| (bits / 8.0 * n as f64) as u64;
        let tables = if architecture.head.tied { table } else { 2 * table };
        // Beside q4, embedding and head stay in 8 bits.
        let table_bits = if format == Format::Q4 { Format::Q8.bits() } else { format.bits() };
        let weights = match (format.bits(), table_bits) {
            (Some(bits), Some(table_bits)) if bits != table_bits => {
                bytes(bits, n_parameters - tables) + bytes(table_bits, tables)
            }
            (Some(bits), _) => bytes(bits, n_parameters),
            (None, _) => stored.bytes,
        };
        let looked_up = match table_bits {
            _ if architecture.head.tied => 0,
            Some(bits) => bytes(bits, table),
            None => (stored.bytes as f64 / n_parameters as f64 * table as f64) as u64,
        };
        Self {
            weights,
            looked_up,
            loading: stored.largest,
            cache: cache_bytes(architecture, kv, context),
            buffers: buffer_bytes(architecture, Cpu::CHUNK),
            program: PROGRAM,
        }
    }

    /// The most that is resident at once on the CPU, the program itself and pages of the mapped file included.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.lasting() + self.loading.max(self.cache + self.buffers)
    }

    /// What must be had: all but pages of the mapped file, which the system drops where memory is short.
    #[must_use]
    pub fn needed(&self) -> u64 {
        self.lasting() + self.cache + self.buffers
    }

    fn lasting(&self) -> u64 {
        self.program + self.weights - self.looked_up.min(self.weights)
    }

    /// What a GPU needs, of it so many bytes for `buffers`: all weights at once, nothing else while they come, and no
    /// program.
    #[cfg(any(feature = "cuda", test))]
    #[must_use]
    pub(crate) fn on_gpu(self, buffers: u64) -> Self {
        Self { looked_up: 0, loading: 0, program: 0, buffers, ..self }
    }

    /// Refuses a model that needs more than this machine has left; `others` are the needs in other formats, for advice.
    ///
    /// # Errors
    ///
    /// If the sum is more than 95 % of [`available`].
    pub fn check(&self, others: &[(Format, Self)]) -> Result<()> {
        available().map_or(Ok(()), |have| self.check_room("this machine", have, others))
    }

    /// Refuses a model that needs more than a device has left: `have` bytes.
    ///
    /// # Errors
    ///
    /// If the sum is more than 95 % of `have`; the error names the first of `others` that would fit.
    pub fn check_room(&self, device: &str, have: u64, others: &[(Format, Self)]) -> Result<()> {
        if self.fits(have) {
            return Ok(());
        }
        let gb = |bytes: u64| bytes as f64 / 1e9;
        let what = format!(
            "the model needs {:.2} GB (weights {:.2}, cache {:.2}, buffers {:.2}), but {:.2} GB are free on {device}",
            gb(self.needed()),
            gb(self.weights - self.looked_up.min(self.weights)),
            gb(self.cache),
            gb(self.buffers),
            gb(have)
        );
        let hint = match others.iter().find(|(_, other)| other.fits(have)) {
            Some((format, other)) => {
                format!("--format {format}, which needs {:.2} GB", gb(other.needed()))
            }
            None => "a smaller context (--ctx-size), format (--format) or model".to_owned(),
        };
        Err(Error::new(ErrorKind::NoMemory, what).hint(hint))
    }

    /// Whether what must be had is at most 95 % of `have` bytes.
    #[must_use]
    pub fn fits(&self, have: u64) -> bool {
        self.needed() <= have / 100 * 95
    }
}

/// Bytes of weights in `format` that are read for one token: not the embedding, of which a token reads one row (unless
/// it is the head too), and of experts only those that a token uses.
pub fn weight_bytes_per_token(architecture: &Architecture, format: Format) -> u64 {
    let table = |rows: usize| (rows * architecture.hidden) as u64;
    let embed = if architecture.head.tied { 0 } else { table(architecture.vocab) };
    let positions = table(architecture.embedding.learned_positions.unwrap_or(0));
    let idle = |mlp: &Mlp| match mlp {
        Mlp::Gated(_) | Mlp::Plain(_) => 0,
        Mlp::Experts(e) => {
            (e.n_experts - e.n_active) as u64 * if e.gated { 3 } else { 2 } * table(e.inner)
        }
    };
    let idle: u64 =
        architecture.layers.iter().filter_map(|layer| layer.mlp.as_ref()).map(idle).sum();
    let head = table(architecture.vocab);
    let body = architecture.n_parameters() - embed - positions - idle - head;
    let bytes = |format: Format, n: u64| format.bits().unwrap_or(32.0) / 8.0 * n as f64;
    let head_format = if format == Format::Q4 { Format::Q8 } else { format };
    (bytes(format, body) + bytes(head_format, head)) as u64
}

/// Bytes of keys and values of `context` tokens; layers whose window slides keep only what it sees, and recurrent
/// layers keep a state in f32 however long the text.
fn cache_bytes(architecture: &Architecture, kv: KvFormat, context: usize) -> u64 {
    memory_bytes(architecture, kv, context, Cpu::CHUNK)
}

/// Bytes of keys, values and states that a token reads after `depth` others.
pub fn cache_bytes_per_token(architecture: &Architecture, kv: KvFormat, depth: usize) -> u64 {
    memory_bytes(architecture, kv, depth, 0)
}

/// Bytes of keys, values and states of `n` tokens, of which a window keeps its own length and `spare` more.
fn memory_bytes(architecture: &Architecture, kv: KvFormat, n: usize, spare: usize) -> u64 {
    let position = |n_kv_heads: usize, k_dim: usize, v_dim: usize| {
        KvShape { n_kv_heads, k_dim, v_dim, window: None, format: kv }.position_bytes()
    };
    let bytes = |mixer: &Mixer| match mixer {
        Mixer::Attention(a) => {
            let positions = a.window.map_or(n, |window| n.min(window + spare));
            position(a.n_kv_heads, a.head_dim, a.head_dim) * positions as u64
        }
        Mixer::Latent(l) => position(l.n_heads, l.k_dim(), l.v_dim) * n as u64,
        Mixer::Mamba(m) => 4 * ((m.conv_width - 1) * m.conv_dim() + m.inner() * m.state_dim) as u64,
    };
    architecture.layers.iter().filter_map(|layer| layer.mixer.as_ref()).map(bytes).sum()
}

/// Bytes of the activations of a chunk of `n` tokens, roughly: a few rows of each width.
pub(crate) fn buffer_bytes(architecture: &Architecture, n: usize) -> u64 {
    let width = |mixer: &Mixer| match mixer {
        Mixer::Attention(a) => 2 * a.q_dim() + 2 * a.kv_dim(),
        Mixer::Latent(l) => {
            let latents = l.q_rank.unwrap_or(0) + 2 * l.kv_rank + l.rope.rotary_dim;
            latents + l.n_heads * (2 * l.k_dim() + l.nope_dim + 3 * l.v_dim)
        }
        Mixer::Mamba(m) => m.in_dim() + m.inner(),
    };
    let mixers = architecture.layers.iter().filter_map(|layer| layer.mixer.as_ref());
    let mixer = mixers.map(width).max().unwrap_or(0);
    let inner = |mlp: &Mlp| match mlp {
        Mlp::Gated(dense) | Mlp::Plain(dense) => dense.inner,
        Mlp::Experts(experts) => {
            let shared = experts.shared.as_ref().map_or(0, |dense| dense.inner);
            experts.inner.max(shared) + architecture.hidden
        }
    };
    let mlp = architecture
        .layers
        .iter()
        .filter_map(|layer| layer.mlp.as_ref())
        .map(inner)
        .max()
        .unwrap_or(0);
    4 * (n * (5 * architecture.hidden + mixer + 2 * mlp) + architecture.vocab) as u64
}

/// Bytes of memory that this process may still use: what the system says is available, and what the limits of
/// its control group and of its address space leave. `None` where none is known.
#[must_use]
pub fn available() -> Option<u64> {
    [meminfo("MemAvailable:"), cgroup(), address_space()].into_iter().flatten().min()
}

/// What a limit of the address space (`ulimit -v`) leaves.
fn address_space() -> Option<u64> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max address space"))?;
    let limit: u64 = line.split_whitespace().next()?.parse().ok()?;
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmSize:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(limit.saturating_sub(kib * 1024))
}

/// Bytes of memory of this machine, where the system tells.
#[must_use]
pub fn total() -> Option<u64> {
    meminfo("MemTotal:")
}

fn meminfo(key: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with(key))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

/// What the control group's limit leaves (version 2, then version 1).
fn cgroup() -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let left = |limit: &str, used: &str| Some(read(limit)?.saturating_sub(read(used)?));
    let v1 = "/sys/fs/cgroup/memory";
    left("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current").or_else(|| {
        left(&format!("{v1}/memory.limit_in_bytes"), &format!("{v1}/memory.usage_in_bytes"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Stored = Stored { bytes: 0, largest: 0 };

    fn weighing(weights: u64) -> Estimate {
        Estimate { weights, looked_up: 0, loading: 0, cache: 0, buffers: 0, program: 0 }
    }

    fn tiny(window: &str) -> Architecture {
        let text = format!(
            r#"{{"architectures": ["MistralForCausalLM"], "vocab_size": 256, "hidden_size": 64, "intermediate_size": 80,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0, "hidden_act": "silu", "sliding_window": {window}}}"#
        );
        tramontane_models::describe(&tramontane_models::Config::parse(&text).unwrap()).unwrap().0
    }

    #[test]
    fn a_cache_takes_two_rows_of_each_layer_per_token() {
        // 2 layers · (keys + values) · 2 heads · 16 elements · 2 bytes
        let e = Estimate::new(&tiny("null"), NOTHING, Format::Auto, KvFormat::F16, 1000);
        assert_eq!(e.cache, 2 * 2 * 2 * 16 * 2 * 1000);
    }

    #[test]
    fn a_window_bounds_the_cache() {
        let e = Estimate::new(&tiny("100"), NOTHING, Format::Auto, KvFormat::F16, 1_000_000);
        assert_eq!(e.cache, 2 * 2 * 2 * 16 * 2 * (100 + Cpu::CHUNK as u64));
    }

    #[test]
    fn a_token_reads_what_its_window_sees_of_the_cache() {
        // For each of 2 heads of 2 layers: 16 elements of a key and of a value, and a scale of 4 bytes for each.
        let position = 2 * 2 * (16 + 16 + 2 * 4);
        let read = |window, depth| cache_bytes_per_token(&tiny(window), KvFormat::Q8, depth);
        assert_eq!(read("null", 1000), position * 1000);
        assert_eq!((read("100", 50), read("100", 1000)), (position * 50, position * 100));
    }

    #[test]
    fn embeddings_and_heads_count_as_they_are_kept() {
        let estimate = |format| {
            let stored = Stored { bytes: 4 * tiny("null").n_parameters(), largest: 10_000_000 };
            Estimate::new(&tiny("null"), stored, format, KvFormat::F16, 10)
        };
        let (all, table) = (tiny("null").n_parameters(), 256 * 64);
        let q4 = estimate(Format::Q4);
        let body = (all - 2 * table) as f64;
        assert_eq!(q4.weights, (body * 4.5 / 8.0) as u64 + 2 * table * 17 / 16);
        assert_eq!(q4.looked_up, table * 17 / 16);
        assert_eq!(estimate(Format::Auto).looked_up, 4 * table);
        // Loading takes more here than running: the largest tensor as it is stored, beside the weights.
        assert_eq!(q4.total(), PROGRAM + q4.weights - q4.looked_up + 10_000_000);
        assert_eq!(q4.needed(), PROGRAM + q4.weights - q4.looked_up + q4.cache + q4.buffers);
        assert_eq!(q4.on_gpu(7).total(), q4.weights + q4.cache + 7);
    }

    #[test]
    fn the_first_format_that_fits_is_named() {
        let needs = |weights| weighing(weights);
        let others = [
            (Format::F16, needs(5_000_000_000)),
            (Format::Q8, needs(3_000_000_000)),
            (Format::Q4, needs(2_000_000_000)),
        ];
        let error = needs(9_000_000_000).check_room("cuda:0", 4_000_000_000, &others).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("needs 9.00 GB") && text.contains("4.00 GB are free on cuda:0"),
            "{text}"
        );
        assert!(text.contains("--format q8, which needs 3.00 GB"), "{text}");
        assert!(needs(3_000_000_000).check_room("cuda:0", 4_000_000_000, &[]).is_ok());
    }

    #[test]
    fn what_cannot_fit_is_refused_with_both_numbers() {
        let e = weighing(1 << 60);
        if available().is_some() {
            let error = e.check(&[]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NoMemory);
            assert!(error.to_string().contains("GB are free on this machine"), "{error}");
        }
    }
}
