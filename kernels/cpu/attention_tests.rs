use super::*;
use crate::cases::{ATTENTION, AttentionCase, Numbers, assert_close, assert_same_bits};
use crate::memory::Recycler;
use crate::reference;

const FORMATS: [KvFormat; 3] = [KvFormat::F32, KvFormat::F16, KvFormat::Q8];

/// Those of every device, and some with whole groups of [`TILED`] positions.
fn cases() -> Vec<AttentionCase> {
    let base = ATTENTION[3];
    let tiled = AttentionCase { n: 100, start: 250, n_heads: 6, k_dim: 80, v_dim: 48, ..base };
    let more = [
        tiled,
        AttentionCase { n: 70, n_heads: 2, k_dim: 37, v_dim: 19, ..tiled },
        AttentionCase { n: 290, start: 300, n_heads: 2, window: Some(70), ..base },
        AttentionCase { n: 64, start: 128, n_heads: 2, softcap: Some(3.0), ..base },
        AttentionCase { n: 96, start: 200, alibi: true, ..base },
    ];
    [ATTENTION, &more].concat()
}

/// Whether some of the positions of a case are computed in tiles.
fn in_tiles(case: &AttentionCase, format: KvFormat, isa: Isa) -> bool {
    let shape = KvShape { n_kv_heads: 1, k_dim: 1, v_dim: 1, format };
    let kv = KvView { first: 0, blocks: &[Arc::new(new_block(shape))] };
    !tiled(isa, &kv, case.start..case.start + case.n).is_empty()
}

/// A cache with random content; what was not stored is NaN where the format has it.
struct Cache {
    first: usize,
    blocks: Vec<Arc<KvBlock>>,
}

fn new_block(shape: KvShape) -> KvBlock {
    KvBlock::new(shape, &Recycler::new()).expect("memory")
}

impl Cache {
    fn new(case: &AttentionCase, format: KvFormat, isa: Isa) -> Self {
        let (mut numbers, pool) = (Numbers::new(case.start as u64), Pool::new(2));
        let AttentionCase { n_kv_heads, k_dim, v_dim, .. } = *case;
        let end = case.start + case.n;
        let from = case.window.map_or(0, |window| (case.start + 1).saturating_sub(window));
        let first = from / BLOCK * BLOCK;
        let block = |at: usize| {
            let n = BLOCK.min(end - first - at);
            let mut block = new_block(KvShape { n_kv_heads, k_dim, v_dim, format });
            let nothing = |dim| vec![f32::NAN; BLOCK * n_kv_heads * dim];
            block.store(isa, &pool, 0, &nothing(k_dim), &nothing(v_dim));
            // In two steps, as a prompt and a first token would.
            for (at, n) in [(0, n / 2), (n / 2, n - n / 2)] {
                let (k, v) = (
                    numbers.normal(n * n_kv_heads * k_dim),
                    numbers.normal(n * n_kv_heads * v_dim),
                );
                block.store(isa, &pool, at, &k, &v);
            }
            Arc::new(block)
        };
        Self { first, blocks: (0..end - first).step_by(BLOCK).map(block).collect() }
    }

    fn view(&self) -> KvView<'_> {
        KvView { first: self.first, blocks: &self.blocks }
    }
}

fn slopes(case: &AttentionCase) -> Vec<f32> {
    (0..case.n_heads).map(|head| 0.5_f32.powi(head as i32 + 1)).collect()
}

fn shape<'a>(case: &AttentionCase, slopes: &'a [f32]) -> Attention<'a> {
    Attention {
        n_heads: case.n_heads,
        n_kv_heads: case.n_kv_heads,
        k_dim: case.k_dim,
        v_dim: case.v_dim,
        scale: 1.0 / (case.k_dim as f32).sqrt(),
        window: case.window,
        softcap: case.softcap,
        alibi_slopes: case.alibi.then_some(slopes),
    }
}

#[test]
fn attention_matches_the_reference() {
    let pool = Pool::new(2);
    for case in &cases() {
        for isa in Isa::available() {
            for format in FORMATS {
                let cache = Cache::new(case, format, isa);
                let q = Numbers::new(7).normal(case.n * case.n_heads * case.k_dim);
                let slopes = slopes(case);
                let a = shape(case, &slopes);
                // In 8 bits, queries and weights are rounded to 16. A weight loses half of 1/32767 of the largest at most, times
                // a value of up to 4; of 150 weights, a hundredth of what the rounding of the values to 8 bits does.
                let (rounded, tolerance) = match format {
                    // Queries and weights have 17 bits there.
                    KvFormat::F16 if in_tiles(case, format, isa) => (q.clone(), 1e-5),
                    KvFormat::F32 | KvFormat::F16 => (q.clone(), 5e-6),
                    KvFormat::Q8 => {
                        (reference::quantize(&q, case.k_dim, case.k_dim, 32767.0), 2e-4)
                    }
                };
                let mut want = vec![0.0; case.n * case.n_heads * case.v_dim];
                reference::attend(&a, &rounded, case.start, &cache.view(), &mut want);
                let mut got = vec![f32::NAN; want.len()];
                attend(isa, &pool, &a, &q, case.start, &cache.view(), &mut got);
                assert_close(&got, &want, tolerance, &format!("{case:?} {format:?} {isa:?}"));
            }
        }
    }
}

#[test]
fn the_bits_depend_on_neither_threads_nor_the_cut_of_the_prompt() {
    for case in &cases() {
        for isa in Isa::available() {
            for format in FORMATS {
                let cache = Cache::new(case, format, isa);
                let q = Numbers::new(7).normal(case.n * case.n_heads * case.k_dim);
                let slopes = slopes(case);
                let a = shape(case, &slopes);
                // Token by token; what is computed in tiles, by groups of positions.
                let size = if in_tiles(case, format, isa) { TILED } else { 1 };
                let mut in_pieces = vec![0.0; case.n * case.n_heads * case.v_dim];
                let (mut at, end) = (case.start, case.start + case.n);
                while at < end {
                    let next = end.min((at + 1).next_multiple_of(size));
                    let place = |len| (at - case.start) * len..(next - case.start) * len;
                    let q = &q[place(case.n_heads * case.k_dim)];
                    let out = &mut in_pieces[place(case.n_heads * case.v_dim)];
                    attend(isa, &Pool::new(1), &a, q, at, &cache.view(), out);
                    at = next;
                }
                // With eight threads, few heads are split by segments.
                for n_threads in [1, 2, 8] {
                    let mut got = vec![f32::NAN; in_pieces.len()];
                    let pool = Pool::new(n_threads);
                    attend(isa, &pool, &a, &q, case.start, &cache.view(), &mut got);
                    let place = format!("{case:?} {format:?} {isa:?} {n_threads} threads");
                    assert_same_bits(&got, &in_pieces, &place);
                }
            }
        }
    }
}

/// Two cases with all instruction sets and all formats.
fn everywhere(cases: [AttentionCase; 2]) -> impl Iterator<Item = (AttentionCase, Isa, KvFormat)> {
    let both = || Isa::available().into_iter().flat_map(|isa| FORMATS.map(|format| (isa, format)));
    cases.into_iter().flat_map(move |case| both().map(move |(isa, format)| (case, isa, format)))
}

/// A NaN of which every bit is set: one more in the last place, and it would be zero.
const NAN: f32 = f32::from_bits(u32::MAX);

#[test]
fn nan_in_a_query_a_key_or_a_value_stays() {
    let one = AttentionCase { n: 1, start: 200, ..ATTENTION[3] };
    let some = AttentionCase { n: TILED, start: 192, ..one };
    for (case, isa, format) in everywhere([one, some]) {
        let a = shape(&case, &[]);
        let row = case.n_kv_heads * case.k_dim;
        for bad in ["query", "key", "value"] {
            let mut q = Numbers::new(7).normal(case.n * case.n_heads * case.k_dim);
            let mut cache = Cache::new(&case, format, isa);
            let mut block = cache.blocks[1].try_clone().unwrap();
            let with_nan = |nan: bool| {
                let mut row = vec![1.0; row];
                row[case.k_dim + 5] = if nan { NAN } else { 1.0 };
                row
            };
            let (key, value) = (with_nan(bad == "key"), with_nan(bad == "value"));
            block.store(isa, &Pool::new(1), 150 - BLOCK, &key, &value);
            cache.blocks[1] = Arc::new(block);
            // The second key/value head, which the second half of the query heads uses.
            let half = case.n_heads / 2;
            if bad == "query" {
                for (i, head) in q.chunks_mut(case.k_dim).enumerate() {
                    head[5] = if i % case.n_heads < half { head[5] } else { NAN };
                }
            }
            let mut out = vec![0.0; case.n * case.n_heads * case.v_dim];
            attend(isa, &Pool::new(1), &a, &q, case.start, &cache.view(), &mut out);
            let place = format!("{bad} {isa:?} {format:?}");
            for token in out.chunks(case.n_heads * case.v_dim) {
                let (first, second) = token.split_at(half * case.v_dim);
                assert!(first.iter().all(|v| v.is_finite()), "{place}");
                for head in second.chunks(case.v_dim) {
                    assert!(head[5].is_nan(), "{place}");
                    assert!(
                        bad != "value" || format == KvFormat::Q8 || head[6].is_finite(),
                        "{place}"
                    );
                }
            }
        }
    }
}

#[test]
fn what_a_later_token_holds_changes_no_bit_of_an_earlier_one() {
    let some = AttentionCase { n: 20, start: 120, ..ATTENTION[3] };
    let more = AttentionCase { n: 64, start: 96, ..some };
    for (case, isa, format) in everywhere([some, more]) {
        let cache = Cache::new(&case, format, isa);
        let a = shape(&case, &[]);
        let q = Numbers::new(7).normal(case.n * case.n_heads * case.k_dim);
        let mut outs = [(); 2].map(|()| vec![0.0; q.len()]);
        attend(isa, &Pool::new(1), &a, &q, case.start, &cache.view(), &mut outs[0]);
        let mut poisoned = cache.blocks.clone();
        let row = case.n_kv_heads * case.k_dim;
        let nan = vec![f32::NAN; row];
        let mut block = poisoned[1].try_clone().unwrap();
        block.store(isa, &Pool::new(1), 139 - BLOCK, &nan, &nan);
        poisoned[1] = Arc::new(block);
        let kv = KvView { first: 0, blocks: &poisoned };
        attend(isa, &Pool::new(1), &a, &q, case.start, &kv, &mut outs[1]);
        let before = (139 - case.start) * case.n_heads * case.v_dim;
        let place = format!("{case:?} {isa:?} {format:?}");
        assert_same_bits(&outs[1][..before], &outs[0][..before], &place);
        assert!(outs[1][before..].iter().all(|v| v.is_nan()));
    }
}

#[test]
fn scores_of_minus_infinity_give_zeros_and_nan_stays() {
    for isa in Isa::available() {
        for (key, want_nan) in [(f32::NEG_INFINITY, false), (f32::NAN, true)] {
            let case = AttentionCase { start: 9, ..ATTENTION[0] };
            let shape_of_block =
                KvShape { n_kv_heads: 1, k_dim: 8, v_dim: 8, format: KvFormat::F32 };
            let mut block = new_block(shape_of_block);
            block.store(isa, &Pool::new(1), 0, &[key; 8 * BLOCK], &[1.0; 8 * BLOCK]);
            let blocks = [Arc::new(block)];
            let mut out = [5.0; 8];
            let kv = KvView { first: 0, blocks: &blocks };
            attend(isa, &Pool::new(1), &shape(&case, &[]), &[1.0; 8], 9, &kv, &mut out);
            let right = |out: f32| if want_nan { out.is_nan() } else { out == 0.0 };
            assert!(out.iter().all(|&out| right(out)), "{isa:?} {key}: {out:?}");
        }
    }
}
