//! Every kernel in plain loops: the definition of right. Sums and functions are in f64.

use half::{bf16, f16};

use crate::cases::ExpertsCase;
use crate::cpu::attention::{Attention, BLOCK, KvBlock, KvView};
use crate::cpu::elementwise::{Activation, Rope, RopeStyle};
use crate::cpu::mamba::{Mamba, Weights};
use crate::packed::{Format, PANEL, Packed};

/// `out = x · wᵀ`, with `w` `[rows, cols]`, `x` `[n, cols]`, `out` `[n, rows]`.
pub fn matmul(w: &[f32], rows: usize, cols: usize, x: &[f32], out: &mut [f32]) {
    for (i, out) in out.iter_mut().enumerate() {
        let (token, row) = (i / rows, i % rows);
        let dot = |k| f64::from(x[token * cols + k]) * f64::from(w[row * cols + k]);
        *out = (0..cols).map(dot).sum::<f64>() as f32;
    }
}

/// `x / sqrt(mean(x²) + eps) * weight`, for each row of `weight.len()` elements.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    for (x, out) in x.chunks(weight.len()).zip(out.chunks_mut(weight.len())) {
        let mean = x.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / x.len() as f64;
        let factor = 1.0 / (mean + f64::from(eps)).sqrt();
        for ((out, x), w) in out.iter_mut().zip(x).zip(weight) {
            *out = (f64::from(*x) * factor * f64::from(*w)) as f32;
        }
    }
}

/// `(x - mean) / sqrt(variance + eps) * weight + bias`, for each row of `weight.len()` elements.
pub fn layer_norm(x: &[f32], weight: &[f32], bias: Option<&[f32]>, eps: f32, out: &mut [f32]) {
    for (x, out) in x.chunks(weight.len()).zip(out.chunks_mut(weight.len())) {
        let n = x.len() as f64;
        let mean = x.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
        let variance = x.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n;
        let factor = 1.0 / (variance + f64::from(eps)).sqrt();
        for (i, out) in out.iter_mut().enumerate() {
            let bias = bias.map_or(0.0, |bias| f64::from(bias[i]));
            *out = ((f64::from(x[i]) - mean) * factor * f64::from(weight[i]) + bias) as f32;
        }
    }
}

/// An activation function.
pub fn activation(act: Activation, x: f32) -> f32 {
    let x = f64::from(x);
    let y = match act {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Gelu => 0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2)),
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
            0.5 * x * (1.0 + inner.tanh())
        }
        Activation::Relu => {
            if x < 0.0 {
                0.0
            } else {
                x
            }
        }
        Activation::ReluSquared => {
            if x < 0.0 {
                0.0
            } else {
                x * x
            }
        }
    };
    y as f32
}

/// The error function, by its Taylor series; at 6 and beyond it is 1 to all digits of f64.
pub fn erf(x: f64) -> f64 {
    if x.abs() >= 6.0 {
        return x.signum();
    }
    // 2/√π · e^(-x²) · Σ 2^n x^(2n+1) / (1·3·5 … (2n+1)): all terms have one sign, so nothing cancels.
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= 2.0 * x * x / f64::from(2 * n + 1);
        sum += term;
    }
    std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp() * sum
}

/// Softmax of each row of `row` elements; a row of minus infinity becomes zeros.
pub fn softmax(x: &mut [f32], row: usize) {
    for x in x.chunks_mut(row) {
        let top = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weight = |v: f32| if v == f32::NEG_INFINITY { 0.0 } else { f64::from(v - top).exp() };
        let sum: f64 = x.iter().map(|&v| weight(v)).sum();
        x.iter_mut().for_each(|v| *v = if sum == 0.0 { 0.0 } else { (weight(*v) / sum) as f32 });
    }
}

/// Rotary positions, as [`crate::cpu::elementwise::rope`].
pub fn rope(rope: &Rope, cos: &[f32], sin: &[f32], x: &mut [f32]) {
    let half = rope.rotary_dim / 2;
    for (i, head) in x.chunks_mut(rope.head_dim).enumerate() {
        let token = i / rope.n_heads;
        for j in 0..half {
            let (a, b) = match rope.style {
                RopeStyle::Halves => (rope.offset + j, rope.offset + j + half),
                RopeStyle::Interleaved => (rope.offset + 2 * j, rope.offset + 2 * j + 1),
            };
            let (cos, sin) = (f64::from(cos[token * half + j]), f64::from(sin[token * half + j]));
            let (x, y) = (f64::from(head[a]), f64::from(head[b]));
            head[a] = (x * cos - y * sin) as f32;
            head[b] = (y * cos + x * sin) as f32;
        }
    }
}

/// Attention, as [`crate::cpu::attention::attend`].
pub fn attend(a: &Attention<'_>, q: &[f32], start: usize, kv: &KvView<'_>, out: &mut [f32]) {
    for (i, out) in out.chunks_mut(a.v_dim).enumerate() {
        let (token, head) = (i / a.n_heads, i % a.n_heads);
        let position = start + token;
        let first = a.window.map_or(0, |window| (position + 1).saturating_sub(window));
        let q = &q[i * a.k_dim..][..a.k_dim];
        let scores: Vec<f64> =
            (first..=position).map(|p| score(a, q, head, position, p, kv)).collect();
        let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - top).exp()).collect();
        let sum: f64 = weights.iter().sum();
        for (d, out) in out.iter_mut().enumerate() {
            let value = |p| {
                let (block, kv_head, place) = cached(kv, a, head, p);
                f64::from(block.value(kv_head, place, d))
            };
            let total: f64 = weights.iter().zip(first..).map(|(w, p)| w * value(p)).sum();
            *out = (total / sum) as f32;
        }
    }
}

/// The score of the key at position `p` for a query.
fn score(
    a: &Attention<'_>,
    q: &[f32],
    head: usize,
    position: usize,
    p: usize,
    kv: &KvView<'_>,
) -> f64 {
    let (block, kv_head, place) = cached(kv, a, head, p);
    let key = |d| f64::from(block.key(kv_head, place, d));
    let dot: f64 = q.iter().enumerate().map(|(d, q)| f64::from(*q) * key(d)).sum();
    let scaled = dot * f64::from(a.scale);
    let capped = a.softcap.map_or(scaled, |cap| f64::from(cap) * (scaled / f64::from(cap)).tanh());
    let slope = a.alibi_slopes.map_or(0.0, |slopes| f64::from(slopes[head]));
    capped - slope * (position - p) as f64
}

/// Where the key and value at position `p` are that query head `head` uses: the block, the head and the place in it.
fn cached<'a>(
    kv: &KvView<'a>,
    a: &Attention<'_>,
    head: usize,
    p: usize,
) -> (&'a KvBlock, usize, usize) {
    let place = p - kv.first;
    (&kv.blocks[place / BLOCK], head / (a.n_heads / a.n_kv_heads), place % BLOCK)
}

/// The experts of one token by number, and their weights times `factor`: `outputs` are the router's, one for each expert,
/// `correction` is as long or empty. Equal ranks go to the lower number.
pub fn route(
    case: &ExpertsCase,
    outputs: &[f32],
    correction: &[f32],
    factor: f32,
) -> Vec<(usize, f32)> {
    let top = outputs.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = outputs.iter().map(|x| f64::from(x - top).exp()).sum();
    let score = |x: &f32| {
        let x = f64::from(*x);
        if case.softmax { (x - f64::from(top)).exp() / sum } else { 1.0 / (1.0 + (-x).exp()) }
    };
    let scores: Vec<f64> = outputs.iter().map(score).collect();
    let correction = |e: usize| correction.get(e).map_or(0.0, |c| f64::from(*c));
    let mut ranks: Vec<f64> = scores.iter().enumerate().map(|(e, s)| s + correction(e)).collect();
    let best = |ranks: &[f64], n: usize| {
        let mut order: Vec<usize> = (0..ranks.len()).collect();
        order.sort_by(|a, b| ranks[*b].total_cmp(&ranks[*a]));
        order.truncate(n);
        order
    };
    if let Some((n_groups, n_open)) = case.groups {
        let size = ranks.len() / n_groups;
        let two_best = |group: &[f64]| best(group, 2).into_iter().map(|e| group[e]).sum();
        let sums: Vec<f64> = ranks.chunks_exact(size).map(two_best).collect();
        let open = best(&sums, n_open);
        for (group, ranks) in ranks.chunks_exact_mut(size).enumerate() {
            if !open.contains(&group) {
                ranks.fill(f64::NEG_INFINITY);
            }
        }
    }
    let mut chosen = best(&ranks, case.n_active);
    chosen.sort_unstable();
    let sum: f64 = chosen.iter().map(|e| scores[*e]).sum();
    let divisor = if case.normalised { sum } else { 1.0 };
    let weight = |e: usize| (e, (scores[e] / divisor * f64::from(factor)) as f32);
    chosen.into_iter().map(weight).collect()
}

/// Packed weights as f32, `[rows, cols]`, element by element from their bytes.
pub fn unpack(w: &Packed) -> Vec<f32> {
    let len = w.bytes().len() / w.rows().div_ceil(PANEL).max(1);
    let element = |i: usize| {
        let (row, col) = (i / w.cols(), i % w.cols());
        let panel = &w.bytes()[row / PANEL * len..][..len];
        unpack_element(w.format(), panel, row % PANEL, col)
    };
    (0..w.rows() * w.cols()).map(element).collect()
}

/// The weight of a row and column of a panel.
fn unpack_element(format: Format, panel: &[u8], row: usize, col: usize) -> f32 {
    let half = |place: usize| [panel[2 * place], panel[2 * place + 1]];
    let word = |place: usize| std::array::from_fn(|i| panel[4 * place + i]);
    match format {
        Format::F32 => f32::from_le_bytes(word(PANEL * col + row)),
        Format::F16 => f16::from_le_bytes(half(PANEL * col + row)).to_f32(),
        // Row 0, row 8, row 1, row 9 …
        Format::Bf16 => bf16::from_le_bytes(half(PANEL * col + row % 8 * 2 + row / 8)).to_f32(),
        Format::Q8 => {
            let group = col / 64 * (64 + 16 * 64);
            let scale = f16::from_le_bytes(half((group + col / 32 % 2 * 32) / 2 + row));
            let place = [0, 2, 1, 3][col % 4];
            let value = panel[group + 64 + col % 64 / 4 * 64 + 4 * row + place] as i8;
            f32::from(value) * scale.to_f32()
        }
        Format::Q4 => {
            let group = 64 + col / 64 * (64 + 8 * 64);
            let scale = panel[group + col / 32 % 2 * 32 + 2 * row + col / 16 % 2] as i8;
            let byte = panel[group + 64 + col % 64 / 8 * 64 + 4 * row + col % 4];
            let code = CODES[usize::from(byte >> (col / 4 % 2 * 4) & 15)];
            (f32::from(code) * f32::from(scale)) * f32::from_le_bytes(word(row))
        }
    }
}

/// The values of the codes of [`Format::Q4`].
pub const CODES: [i8; 16] = crate::cpu::quantized::CODES;

/// Activations as the integer kernels see them: for each token and each `share` columns, whole multiples of their largest
/// magnitude divided by `limit` (127 for 8 bits, 32767 for 16).
pub fn quantize(x: &[f32], cols: usize, share: usize, limit: f32) -> Vec<f32> {
    let mut out = x.to_vec();
    for span in out.chunks_mut(cols.max(1)).flat_map(|row| row.chunks_mut(share)) {
        let top = span.iter().fold(0.0_f32, |top, x| top.max(x.abs()));
        let inverse = if top < 1e-30 { 0.0 } else { limit / top };
        span.iter_mut().for_each(|x| *x = (*x * inverse).round_ties_even() * (top / limit));
    }
    out
}

/// The core of a Mamba-2 mixer from an empty state: `x` is `[n, in_dim]`, `out` `[n, inner]`.
pub fn mamba(m: &Mamba, w: &Weights<'_>, x: &[f32], out: &mut [f32]) {
    let (inner, conv_dim, group) = (m.inner(), m.conv_dim(), m.inner() / m.n_groups);
    let silu = |x: f64| x / (1.0 + (-x).exp());
    let row = |t: usize| &x[t * m.in_dim()..][..m.in_dim()];
    let channel = |t: usize, i: usize| {
        let first = w.conv_bias.map_or(0.0, |bias| f64::from(bias[i]));
        let taps = (0..m.conv_width).filter(|back| *back <= t).map(|back| {
            let weight = w.conv[(m.conv_width - 1 - back) * conv_dim + i];
            f64::from(weight) * f64::from(row(t - back)[inner + i])
        });
        silu(first + taps.sum::<f64>())
    };
    let mut state = vec![0.0_f64; m.head_state()];
    for (t, out) in out.chunks_exact_mut(inner).enumerate() {
        for (i, out) in out.iter_mut().enumerate() {
            let head = i / m.head_dim;
            let b = inner + head / (m.n_heads / m.n_groups) * m.state_dim;
            let c = b + m.n_groups * m.state_dim;
            let dt = f64::from(row(t)[inner + conv_dim + head]) + f64::from(w.step[head]);
            let dt = dt.exp().ln_1p().clamp(f64::from(m.step_min), f64::from(m.step_max));
            let (x, kept) = (channel(t, i), (f64::from(w.decay[head]) * dt).exp());
            let mut y = f64::from(w.skip[head]) * x;
            for (j, h) in state[i * m.state_dim..][..m.state_dim].iter_mut().enumerate() {
                *h = kept * *h + dt * x * channel(t, b + j);
                y += *h * channel(t, c + j);
            }
            *out = (y * silu(f64::from(row(t)[i]))) as f32;
        }
        for (out, weight) in out.chunks_exact_mut(group).zip(w.norm.chunks_exact(group)) {
            let row = out.to_vec();
            rms_norm(&row, weight, m.eps, out);
        }
    }
}
