//! The speed that one token of Mistral 7B can have on three GPUs, on paper: from the very launches that the runtime
//! makes. `kernels/cuda/SPEED.md` must hold these numbers; `TRAMONTANE_WRITE=1` writes them.

use std::fmt::Write as _;

use tramontane_kernels::cpu::elementwise::{Activation, Rope, RopeStyle};
use tramontane_kernels::cuda::{self, AttendArgs, Cached, Element, Input, Launch, Norm, Target};
use tramontane_kernels::packed::Format;

/// Mistral 7B v0.3.
const HIDDEN: usize = 4096;
const INNER: usize = 14336;
const LAYERS: usize = 32;
const HEADS: usize = 32;
const KV_HEADS: usize = 8;
const HEAD_DIM: usize = 128;
const VOCAB: usize = 32768;

/// Positions in the cache.
const PAST: usize = 1024;

/// Name, bytes per second, and published tokens per second of other engines in 16, 8 and 4 bits.
const GPUS: [(&str, f64, [&str; 3]); 3] = [
    ("A100 80 GB", 2.04e12, ["gpt-fast 105 (Llama 2 7B)", "gpt-fast 156", "gpt-fast 197"]),
    ("H100 SXM", 3.35e12, ["–", "–", "–"]),
    ("RTX 4090", 1.008e12, ["calm 65, yalm 64, llama.cpp 61", "calm 127", "calm 237"]),
];

/// What is assumed for the expected speed: the share of the bandwidth that products reach, and the seconds that a
/// kernel of a graph takes before and after its work.
const SHARE: f64 = 0.85;
const LAUNCH: f64 = 1.5e-6;

/// What one token costs.
#[derive(Default)]
struct Token {
    launches: usize,
    bytes: usize,
    operations: usize,
}

impl Token {
    fn run(&mut self, launches: &[Launch], bytes: usize) {
        self.launches += launches.len();
        self.bytes += bytes;
    }

    /// Products of one input with matrices of so many rows each.
    fn products(&mut self, format: Format, rows: &[usize], cols: usize) {
        let input = Input { x: 0, rounded: 0, n: 1, cols };
        let target = |&rows: &usize| Target { w: 0, out: 0, rows };
        let targets: Vec<Target> = rows.iter().map(target).collect();
        let packed = |format| cuda::matmul_packed(format, input, &targets);
        let dense = |element| cuda::matmul(element, input, &targets);
        let launches = match format {
            Format::Q8 => packed(cuda::Packed::Q8),
            Format::Q4 => packed(cuda::Packed::Q4),
            Format::F32 => dense(Element::F32),
            Format::F16 => dense(Element::F16),
            Format::Bf16 => dense(Element::Bf16),
        };
        let bytes = rows.iter().map(|rows| format.packed_len(*rows, cols).unwrap_or(0)).sum();
        self.run(&launches, bytes);
        self.operations += 2 * rows.iter().sum::<usize>() * cols;
    }

    /// A norm; where `adds`, it first adds what the last layer left.
    fn norm(&mut self, adds: bool) {
        let norm = Norm { weight: 0, bias: 0, width: HIDDEN, eps: 1e-5, centred: false };
        let moved = if adds { 20 * HIDDEN } else { 12 * HIDDEN };
        self.run(&[cuda::norm(&norm, 0, 0, 0, 1)], moved);
    }

    fn attention(&mut self) {
        let (style, offset, head_dim) = (RopeStyle::Halves, 0, HEAD_DIM);
        let rope = Rope { n_heads: HEADS, head_dim, offset, rotary_dim: HEAD_DIM, style };
        let rotate = cuda::rotate_both(&rope, [0, 0], 0, 0, KV_HEADS, 1);
        self.run(&[rotate], 8 * (HEADS + KV_HEADS) * HEAD_DIM);
        let heads = cuda::CacheHeads { n_kv_heads: KV_HEADS, k_dim: HEAD_DIM, v_dim: HEAD_DIM };
        self.run(
            &[cuda::store(Cached::Float(Element::F16), 0, [0, 0], heads, [PAST, 1])],
            12 * KV_HEADS * HEAD_DIM,
        );
        let args = AttendArgs {
            element: Cached::Float(Element::F16),
            pages: 0,
            q: 0,
            out: 0,
            slopes: 0,
            partial: 0,
            n_heads: HEADS,
            n_kv_heads: KV_HEADS,
            head_dim: HEAD_DIM,
            v_dim: HEAD_DIM,
            n: 1,
            start: PAST,
            window: None,
            scale: 1.0,
            softcap: None,
        };
        let cache = 4 * (PAST + 1) * KV_HEADS * HEAD_DIM;
        self.run(&cuda::attend(&args), cache + 8 * cuda::partial_len(&args));
        self.operations += 4 * (PAST + 1) * HEADS * HEAD_DIM;
    }

    fn layer(&mut self, format: Format, number: usize) {
        let (width, kv_width) = (HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM);
        self.norm(number > 0);
        self.products(format, &[width, kv_width, kv_width], HIDDEN);
        self.attention();
        self.products(format, &[HIDDEN], width);
        self.norm(true);
        self.products(format, &[INNER, INNER], HIDDEN);
        self.run(&[cuda::gate(Activation::Silu, 0, 0, INNER)], 12 * INNER);
        self.products(format, &[HIDDEN], INNER);
    }

    fn new(format: Format) -> Self {
        let mut token = Self::default();
        token.run(&[cuda::embed(Element::Bf16, 0, 0, 0, 1, HIDDEN)], 6 * HIDDEN);
        (0..LAYERS).for_each(|number| token.layer(format, number));
        token.run(&[cuda::add(0, 0, HIDDEN)], 12 * HIDDEN);
        token.norm(false);
        let head = if format == Format::Q4 { Format::Q8 } else { format };
        token.products(head, &[VOCAB], HIDDEN);
        // Greedy decoding: the best token, and one more to see whether it ties.
        token.run(&cuda::top(0, VOCAB, 2, [0, 0]).0, 4 * VOCAB);
        token
    }
}

fn tables() -> String {
    let mut text =
        String::from("| weights | launches | GB moved | billion operations |\n|---|--:|--:|--:|\n");
    let formats = [Format::Bf16, Format::Q8, Format::Q4];
    for format in formats {
        let t = Token::new(format);
        let (gb, operations) = (t.bytes as f64 / 1e9, t.operations as f64 / 1e9);
        let _ = writeln!(text, "| {format} | {} | {gb:.2} | {operations:.2} |", t.launches);
    }
    text += "\n| GPU | weights | ceiling, tokens/s | expected | of the ceiling | published |\n|---|---|--:|--:|--:|---|\n";
    for (gpu, bandwidth, published) in GPUS {
        for (format, published) in formats.into_iter().zip(published) {
            let t = Token::new(format);
            let ceiling = bandwidth / t.bytes as f64;
            let seconds = t.bytes as f64 / (SHARE * bandwidth) + LAUNCH * t.launches as f64;
            let (expected, share) = (1.0 / seconds, 100.0 / seconds / ceiling);
            let _ = writeln!(
                text,
                "| {gpu} | {format} | {ceiling:.0} | {expected:.0} | {share:.0} % | {published} |"
            );
        }
    }
    text
}

#[test]
fn the_paper_speeds_are_those_of_the_launches() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../kernels/cuda/SPEED.md");
    let text = std::fs::read_to_string(path).expect("SPEED.md");
    let (begin, end) = ("<!-- tables -->\n", "<!-- end -->\n");
    let (head, rest) = text.split_once(begin).expect("the beginning of the tables");
    let (now, tail) = rest.split_once(end).expect("the end of the tables");
    if std::env::var_os("TRAMONTANE_WRITE").is_some() {
        std::fs::write(path, format!("{head}{begin}{}{end}{tail}", tables())).expect("SPEED.md");
    } else {
        assert_eq!(now, tables(), "TRAMONTANE_WRITE=1 writes what the launches give now");
    }
}
