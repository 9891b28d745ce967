//! The shapes, types and tolerances with which the kernels of every instruction set and device are tested and timed.

use crate::cpu::mamba::Mamba;

/// A matmul: `n` tokens through `[rows, cols]` weights.
#[derive(Clone, Copy, Debug)]
pub struct MatmulCase {
    /// Tokens.
    pub n: usize,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
}

/// Matmuls whose sizes do and do not fit the tiles of the kernels.
pub const MATMUL: &[MatmulCase] = &[
    matmul(1, 1, 1),
    matmul(1, 8, 32),
    matmul(1, 7, 9),
    matmul(1, 33, 100),
    matmul(1, 130, 256),
    matmul(2, 16, 64),
    matmul(2, 17, 31),
    matmul(3, 24, 96),
    matmul(3, 5, 260),
    matmul(4, 64, 128),
    matmul(7, 40, 72),
    matmul(7, 19, 33),
    matmul(13, 65, 288),
    matmul(64, 96, 64),
    matmul(65, 67, 520),
    matmul(33, 128, 1056),
    matmul(1, 100, 700),
    matmul(6, 32, 320),
    matmul(260, 48, 300),
];

const fn matmul(n: usize, rows: usize, cols: usize) -> MatmulCase {
    MatmulCase { n, rows, cols }
}

impl MatmulCase {
    /// A seed of its own for each case.
    pub fn seed(&self) -> u64 {
        (self.n * 1_000_003 + self.rows * 1009 + self.cols) as u64
    }

    /// The largest error of an f32 sum of `cols` products of standard normal numbers: the sum is about
    /// `sqrt(cols)` large, and each of the additions may lose half a unit in its last place.
    pub fn tolerance(&self) -> f32 {
        4e-7 * (self.cols as f32).sqrt() * (self.cols as f32).ln().max(1.0) + 1e-6
    }
}

/// An attention: `n` tokens at `start`.
#[derive(Clone, Copy, Debug)]
pub struct AttentionCase {
    /// Tokens.
    pub n: usize,
    /// The first one's position.
    pub start: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key/value heads.
    pub n_kv_heads: usize,
    /// Width of a query and a key head.
    pub k_dim: usize,
    /// Width of a value head.
    pub v_dim: usize,
    /// Sliding window.
    pub window: Option<usize>,
    /// Cap of the scores.
    pub softcap: Option<f32>,
    /// Whether there are ALiBi slopes.
    pub alibi: bool,
}

/// Attentions at and around the borders of blocks, with odd widths and every option.
pub const ATTENTION: &[AttentionCase] = &[
    attention(1, 0, 1, 1, 8),
    attention(1, 5, 4, 4, 16),
    attention(3, 0, 4, 2, 12),
    attention(7, 126, 8, 2, 64),
    attention(1, 127, 6, 2, 20),
    attention(1, 128, 6, 6, 32),
    attention(2, 511, 5, 1, 40),
    attention(1, 1200, 8, 2, 64),
    attention(130, 0, 4, 1, 32),
    attention(33, 500, 12, 4, 24),
    AttentionCase { v_dim: 16, ..attention(5, 130, 4, 2, 24) },
    AttentionCase { v_dim: 19, ..attention(4, 131, 10, 2, 37) },
    AttentionCase { window: Some(1), ..attention(4, 3, 2, 1, 16) },
    AttentionCase { window: Some(100), ..attention(40, 90, 4, 2, 32) },
    AttentionCase { window: Some(200), ..attention(9, 700, 8, 2, 64) },
    AttentionCase { softcap: Some(5.0), ..attention(6, 140, 4, 2, 32) },
    AttentionCase { alibi: true, ..attention(6, 140, 8, 8, 16) },
    AttentionCase {
        alibi: true,
        softcap: Some(3.0),
        window: Some(50),
        ..attention(3, 600, 9, 3, 36)
    },
];

const fn attention(
    n: usize,
    start: usize,
    n_heads: usize,
    n_kv_heads: usize,
    dim: usize,
) -> AttentionCase {
    AttentionCase {
        n,
        start,
        n_heads,
        n_kv_heads,
        k_dim: dim,
        v_dim: dim,
        window: None,
        softcap: None,
        alibi: false,
    }
}

/// A mixture of experts: `n` tokens of width `hidden`.
#[derive(Clone, Copy, Debug)]
pub struct ExpertsCase {
    /// Tokens.
    pub n: usize,
    /// Experts.
    pub n_experts: usize,
    /// Experts of a token.
    pub n_active: usize,
    /// Inputs.
    pub hidden: usize,
    /// Inner width of an expert.
    pub inner: usize,
    /// Groups of experts, and how many of them may be chosen from.
    pub groups: Option<(usize, usize)>,
    /// Whether scores are a softmax over all experts; else the sigmoid of each.
    pub softmax: bool,
    /// Whether something is added to the scores for the choice.
    pub correction: bool,
    /// Whether a token's weights are divided by their sum.
    pub normalised: bool,
}

/// Mixtures with every kind of choice, with experts that no token uses and experts that most do.
pub const EXPERTS: &[ExpertsCase] = &[
    experts(1, 8, 2, 64, 48),
    experts(3, 4, 4, 40, 24),
    experts(7, 5, 1, 33, 19),
    experts(9, 8, 2, 64, 136),
    experts(70, 3, 2, 72, 40),
    experts(12, 40, 3, 33, 20),
    ExpertsCase {
        softmax: false,
        correction: true,
        groups: Some((4, 2)),
        ..experts(2, 16, 4, 32, 8)
    },
    ExpertsCase { softmax: false, groups: Some((8, 3)), ..experts(20, 64, 8, 24, 16) },
    ExpertsCase { softmax: false, correction: true, ..experts(130, 33, 6, 16, 24) },
    ExpertsCase { normalised: false, correction: true, ..experts(5, 100, 40, 16, 8) },
];

const fn experts(
    n: usize,
    n_experts: usize,
    n_active: usize,
    hidden: usize,
    inner: usize,
) -> ExpertsCase {
    ExpertsCase {
        n,
        n_experts,
        n_active,
        hidden,
        inner,
        groups: None,
        softmax: true,
        correction: false,
        normalised: true,
    }
}

/// Mamba-2 mixers: the smallest there is, a plain one, one with rests everywhere, and one with a wide state.
pub const MAMBA: &[Mamba] =
    &[mamba(1, 1, 1, 1, 1), mamba(8, 8, 2, 16, 4), mamba(6, 50, 3, 13, 3), mamba(4, 20, 1, 130, 4)];

const fn mamba(
    n_heads: usize,
    head_dim: usize,
    n_groups: usize,
    state_dim: usize,
    conv_width: usize,
) -> Mamba {
    Mamba {
        n_heads,
        head_dim,
        n_groups,
        state_dim,
        conv_width,
        step_min: 0.2,
        step_max: 1.5,
        eps: 1e-5,
    }
}

/// Numbers that are the same on every machine.
#[derive(Clone, Debug)]
pub struct Numbers(u64);

impl Numbers {
    /// A sequence of its own for each seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 random bits (SplitMix64).
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from 0 to 1, 1 excluded.
    pub fn uniform(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1 << 24) as f32
    }

    /// `n` numbers of nearly normal distribution, mean 0 and variance 1.
    pub fn normal(&mut self, n: usize) -> Vec<f32> {
        // The sum of twelve uniform numbers has variance 1; half of them are negated to centre it.
        let one = |numbers: &mut Self| (0..6).map(|_| numbers.uniform() - numbers.uniform()).sum();
        (0..n).map(|_| one(self)).collect()
    }
}

/// Checks that `got` is within `tolerance` of `want`, and NaN only where it is.
///
/// # Panics
/// With the first place where it is not.
#[track_caller]
pub fn assert_close(got: &[f32], want: &[f32], tolerance: f32, place: &str) {
    assert_eq!(got.len(), want.len(), "{place}: lengths");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let close =
            (got - want).abs() <= tolerance || got == want || (got.is_nan() && want.is_nan());
        assert!(close, "{place}: element {i} is {got}, expected {want} within {tolerance}");
    }
}

/// Checks that two results are the same to the last bit.
///
/// # Panics
/// With the first place where they are not.
#[track_caller]
pub fn assert_same_bits(got: &[f32], want: &[f32], place: &str) {
    assert_eq!(got.len(), want.len(), "{place}: lengths");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!(
            got.to_bits() == want.to_bits(),
            "{place}: element {i} is {got:e}, expected the bits of {want:e}"
        );
    }
}
