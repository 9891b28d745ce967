//! Attention over a cache of pages: which kernel, how many chunks, how much scratch memory.

use super::{Args, Element, Launch, rows};

/// Positions in one page of the cache.
pub const PAGE: usize = 64;

/// Positions that one block of the decode kernel takes. Chunks begin at multiples of it, so a result does not depend
/// on how a prompt was cut.
pub const CHUNK: usize = 256;

/// Widths of keys and values that the tensor-core kernel exists for.
const PREFILL_DIMS: [(usize, usize); 6] =
    [(64, 64), (80, 80), (96, 96), (128, 128), (256, 256), (192, 128)];

/// Fewest queries for which the tensor-core kernel is worth its half-empty tiles.
const MIN_PREFILL: usize = 9;

/// Most dynamic shared memory that a launch of `kernel` asks for, where that is more than every kernel may have; else 0.
#[must_use]
pub fn max_shared(kernel: &str) -> u32 {
    let rest = kernel.strip_prefix("attend_prefill_").and_then(|rest| rest.split_once('_'));
    let Some((element, dims)) = rest else { return 0 };
    let (k_dim, v_dim) = dims.split_once('_').unwrap_or((dims, dims));
    match (k_dim.parse(), v_dim.parse()) {
        (Ok(k_dim), Ok(v_dim)) => prefill_shared(element == "q8", k_dim, v_dim),
        _ => 0,
    }
}

/// Two tiles of keys and two of values, their rows 16 bytes longer than a head. Of a cache in 8 bits one each, and as
/// many bytes with their scales.
fn prefill_shared(q8: bool, k_dim: usize, v_dim: usize) -> u32 {
    let scales = 4 * (k_dim.div_ceil(GROUP) + 1);
    let bytes = match (q8, v_dim > 128) {
        (false, false) => 64 * 4 * (k_dim + v_dim + 16),
        (false, true) => 32 * 4 * (k_dim + v_dim + 16),
        (true, false) => 64 * (3 * (k_dim + v_dim) + 32 + scales),
        (true, true) => 16 * (3 * (k_dim + v_dim) + 32 + scales),
    };
    bytes as u32
}

/// Elements of a key in 8 bits that share a scale.
const GROUP: usize = 32;

/// What the elements of a cache are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cached {
    /// Floats.
    Float(Element),
    /// 8 bits, with an f32 scale for each 32 elements of a key and for each value.
    Q8,
}

impl Cached {
    /// Of four names, the one for this type.
    fn pick<T: Copy>(self, [f32, f16, bf16, q8]: [T; 4]) -> T {
        match self {
            Self::Float(Element::F32) => f32,
            Self::Float(Element::F16) => f16,
            Self::Float(Element::Bf16) => bf16,
            Self::Q8 => q8,
        }
    }
}

/// The heads of a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheHeads {
    /// How many there are.
    pub n_kv_heads: usize,
    /// Width of a key.
    pub k_dim: usize,
    /// Width of a value.
    pub v_dim: usize,
}

/// Bytes of a page: keys `[n_kv_heads, PAGE, k_dim]`, then values `[n_kv_heads, PAGE, v_dim]`, then in 8 bits the scales
/// of both.
#[must_use]
pub fn page_bytes(element: Cached, heads: CacheHeads) -> usize {
    let CacheHeads { n_kv_heads, k_dim, v_dim } = heads;
    n_kv_heads
        * PAGE
        * match element {
            Cached::Float(element) => (k_dim + v_dim) * element.bytes(),
            Cached::Q8 => k_dim + v_dim + 4 * (k_dim.div_ceil(GROUP) + 1),
        }
}

/// Stores `n` keys `[n, n_kv_heads, k_dim]` and values `[n, n_kv_heads, v_dim]` f32 of the positions from `start` on. `pages` are addresses,
/// u64, one for each [`PAGE`] positions from 0 on.
#[must_use]
pub fn store(
    element: Cached,
    pages: u64,
    [k, v]: [u64; 2],
    heads: CacheHeads,
    [start, n]: [usize; 2],
) -> Launch {
    let CacheHeads { n_kv_heads, k_dim, v_dim } = heads;
    let kernel = element.pick(["store_f32", "store_f16", "store_bf16", "store_q8"]);
    let args = Args::new().ptr(pages).ptr(k).ptr(v).u32(n_kv_heads).u32(k_dim);
    let args = args.u32(v_dim).u32(start);
    if element == Cached::Q8 {
        let grid = [n_kv_heads as u32, n as u32, 1];
        return Launch { kernel, grid, block: 32, shared: 0, args };
    }
    rows(kernel, n_kv_heads * k_dim.max(v_dim), n, args)
}

/// Attention of `n` queries at the positions from `start` on.
#[derive(Debug, Clone, Copy)]
pub struct AttendArgs {
    /// Type of the cached elements.
    pub element: Cached,
    /// Address of the page addresses, as for [`store`].
    pub pages: u64,
    /// Address of the queries `[n, n_heads, head_dim]` f32.
    pub q: u64,
    /// Address of the result `[n, n_heads, v_dim]` f32.
    pub out: u64,
    /// Address of the ALiBi slopes `[n_heads]` f32, or 0.
    pub slopes: u64,
    /// Address of [`partial_len`] f32.
    pub partial: u64,
    /// Query heads; a multiple of `n_kv_heads`.
    pub n_heads: usize,
    /// Key/value heads.
    pub n_kv_heads: usize,
    /// Width of a query and of a key.
    pub head_dim: usize,
    /// Width of a value.
    pub v_dim: usize,
    /// Queries.
    pub n: usize,
    /// Position of the first.
    pub start: usize,
    /// Positions seen, the own one included.
    pub window: Option<usize>,
    /// Scores are multiplied by this.
    pub scale: f32,
    /// Scores are squashed to plus or minus this.
    pub softcap: Option<f32>,
}

impl AttendArgs {
    /// Whether the tensor-core kernel can take this.
    fn tensor_cores(&self) -> bool {
        let width = PREFILL_DIMS.contains(&(self.head_dim, self.v_dim));
        self.n >= MIN_PREFILL
            && width
            && self.element != Cached::Float(Element::F32)
            && self.softcap.is_none()
    }

    /// First chunk that some query sees, and the number of chunks from there on.
    fn chunks(&self) -> (usize, usize) {
        let first = self.window.map_or(0, |w| (self.start + 1).saturating_sub(w)) / CHUNK;
        (first, (self.start + self.n).div_ceil(CHUNK) - first)
    }

    fn structure(&self) -> Args {
        let addresses = Args::new().ptr(self.pages).ptr(self.q).ptr(self.out).ptr(self.slopes);
        let heads = addresses.u32(self.n_heads).u32(self.n_kv_heads).u32(self.head_dim);
        let heads = heads.u32(self.v_dim);
        let queries = heads.u32(self.n).u32(self.start).u32(self.window.unwrap_or(0));
        Args::new().structure(&queries.f32(self.scale).f32(self.softcap.unwrap_or(0.0)))
    }
}

/// Elements of scratch memory for [`attend`], f32; 0 where it needs none.
#[must_use]
pub fn partial_len(a: &AttendArgs) -> usize {
    if a.tensor_cores() { 0 } else { a.n * a.n_heads * a.chunks().1 * (a.v_dim + 2) }
}

/// Attention over the cache.
///
/// # Panics
///
/// If `head_dim` or `v_dim` is 0 or above 256, or the heads do not form groups.
#[must_use]
pub fn attend(a: &AttendArgs) -> Vec<Launch> {
    for width in [a.head_dim, a.v_dim] {
        assert!((1..=256).contains(&width), "attend: heads of {width} elements");
    }
    assert!(
        a.n_kv_heads > 0 && a.n_heads.is_multiple_of(a.n_kv_heads),
        "attend: {} heads",
        a.n_heads
    );
    if a.tensor_cores() {
        return vec![prefill(a)];
    }
    let (first, chunks) = a.chunks();
    let merge = Args::new().ptr(a.partial).ptr(a.out).u32(chunks).u32(a.v_dim);
    let rows = (a.n * a.n_heads) as u32;
    vec![
        decode(a, first, chunks),
        Launch { kernel: "attend_merge", grid: [rows, 1, 1], block: 128, shared: 0, args: merge },
    ]
}

/// Blocks for each chunk, for each slice of heads that share a key/value head, and for each query.
fn decode(a: &AttendArgs, first: usize, chunks: usize) -> Launch {
    let kernels = a.element.pick([
        [
            "attend_decode_f32_1",
            "attend_decode_f32_2",
            "attend_decode_f32_4",
            "attend_decode_f32_8",
        ],
        [
            "attend_decode_f16_1",
            "attend_decode_f16_2",
            "attend_decode_f16_4",
            "attend_decode_f16_8",
        ],
        [
            "attend_decode_bf16_1",
            "attend_decode_bf16_2",
            "attend_decode_bf16_4",
            "attend_decode_bf16_8",
        ],
        ["attend_decode_q8_1", "attend_decode_q8_2", "attend_decode_q8_4", "attend_decode_q8_8"],
    ]);
    let group = a.n_heads / a.n_kv_heads;
    let heads = group.next_power_of_two().min(8);
    let (pieces, v_pieces) = (a.head_dim.div_ceil(8), a.v_dim.div_ceil(8));
    // Queries, scores, and the sums of the threads that share a piece of a head.
    let floats = heads * (pieces * 8 + CHUNK + 128 / v_pieces * v_pieces * 8);
    let grid = [chunks as u32, (a.n_kv_heads * group.div_ceil(heads)) as u32, a.n as u32];
    let args = a.structure().ptr(a.partial).u32(first);
    Launch {
        kernel: kernels[heads.ilog2() as usize],
        grid,
        block: 128,
        shared: 4 * floats as u32,
        args,
    }
}

fn prefill(a: &AttendArgs) -> Launch {
    let kernels = match a.head_dim {
        64 => ["", "attend_prefill_f16_64", "attend_prefill_bf16_64", "attend_prefill_q8_64"],
        80 => ["", "attend_prefill_f16_80", "attend_prefill_bf16_80", "attend_prefill_q8_80"],
        96 => ["", "attend_prefill_f16_96", "attend_prefill_bf16_96", "attend_prefill_q8_96"],
        128 => ["", "attend_prefill_f16_128", "attend_prefill_bf16_128", "attend_prefill_q8_128"],
        192 => [
            "",
            "attend_prefill_f16_192_128",
            "attend_prefill_bf16_192_128",
            "attend_prefill_q8_192_128",
        ],
        _ => ["", "attend_prefill_f16_256", "attend_prefill_bf16_256", "attend_prefill_q8_256"],
    };
    let kernel = a.element.pick(kernels);
    let shared = prefill_shared(a.element == Cached::Q8, a.head_dim, a.v_dim);
    Launch {
        kernel,
        grid: [(a.n as u32).div_ceil(64), a.n_heads as u32, 1],
        block: 128,
        shared,
        args: a.structure(),
    }
}
