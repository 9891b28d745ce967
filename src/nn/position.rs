//! Rotary frequencies, the angles of each position, and ALiBi slopes.
//!
//! The formulas are those of transformers' `modeling_rope_utils.py`, evaluated in f32 in the same order, because
//! at large positions a last-bit difference in a frequency is a visible difference in an angle.

use std::f32::consts::PI;

use tramontane_models::spec::{Rope, RopeScaling};

/// The rotary frequencies of one kind of layer.
#[derive(Debug, Clone)]
pub struct Frequencies {
    rope: Rope,
    /// `[rotary_dim / 2]`; for dynamic scaling, those of the original context.
    inverse: Vec<f32>,
    /// Cosines and sines are multiplied by this.
    magnitude: f32,
}

impl Frequencies {
    /// The frequencies that `rope` describes.
    #[must_use]
    pub fn new(rope: &Rope) -> Self {
        let plain = || inverse(rope.theta, rope.rotary_dim);
        let (inverse, magnitude) = match &rope.scaling {
            RopeScaling::None | RopeScaling::Dynamic { .. } => (plain(), 1.0),
            RopeScaling::Linear { factor } => {
                (plain().iter().map(|f| f / *factor as f32).collect(), 1.0)
            }
            RopeScaling::Llama3 { factor, low, high, original } => {
                let scale = |f: &f32| {
                    llama3(*f, *factor as f32, *low as f32, *high as f32, *original as f32)
                };
                (plain().iter().map(scale).collect(), 1.0)
            }
            RopeScaling::Yarn { magnitude, .. } => (yarn(rope), *magnitude),
        };
        Self { rope: rope.clone(), inverse, magnitude }
    }

    /// What is rotated.
    #[must_use]
    pub fn rope(&self) -> &Rope {
        &self.rope
    }

    /// Cosines and sines `[n, rotary_dim / 2]` of the positions from `start` on, appended to `cos` and `sin`.
    ///
    /// `context` is the length of the sequence that is being computed: dynamic scaling depends on it. Keys that
    /// were cached when it was shorter keep their rotation, as in the reference.
    pub fn angles(
        &self,
        start: usize,
        n: usize,
        context: usize,
        cos: &mut Vec<f32>,
        sin: &mut Vec<f32>,
    ) {
        let stretched = self.stretched(context);
        let inverse = stretched.as_ref().unwrap_or(&self.inverse);
        for position in start..start + n {
            for frequency in inverse {
                let (s, c) = f64::from(position as f32 * frequency).sin_cos();
                cos.push(c as f32 * self.magnitude);
                sin.push(s as f32 * self.magnitude);
            }
        }
    }

    /// Dynamic NTK scaling, where the context is longer than that of the training.
    fn stretched(&self, context: usize) -> Option<Vec<f32>> {
        let RopeScaling::Dynamic { factor, original } = self.rope.scaling else { return None };
        if context <= original {
            return None;
        }
        let dim = self.rope.rotary_dim as f64;
        let growth = factor * context as f64 / original as f64 - (factor - 1.0);
        Some(inverse(self.rope.theta * growth.powf(dim / (dim - 2.0)), self.rope.rotary_dim))
    }
}

/// `1 / theta^(2i / dim)`.
fn inverse(theta: f64, dim: usize) -> Vec<f32> {
    powers(theta, dim).map(|p| 1.0 / p).collect()
}

/// `theta^(2i / dim)`.
fn powers(theta: f64, dim: usize) -> impl Iterator<Item = f32> {
    (0..dim).step_by(2).map(move |i| (theta as f32).powf(i as f32 / dim as f32))
}

/// Llama 3.1: long waves are divided by `factor`, short ones kept, those between blended.
fn llama3(frequency: f32, factor: f32, low: f32, high: f32, original: f32) -> f32 {
    let wavelength = 2.0 * PI / frequency;
    if wavelength > original / low {
        frequency / factor
    } else if wavelength < original / high {
        frequency
    } else {
        let smooth = (original / wavelength - low) / (high - low);
        (1.0 - smooth) * frequency / factor + smooth * frequency
    }
}

/// NTK by parts: dimensions that turn often within the original context are kept, others divided by `factor`.
fn yarn(rope: &Rope) -> Vec<f32> {
    let RopeScaling::Yarn { factor, original, beta_fast, beta_slow, truncate, .. } = rope.scaling
    else {
        return inverse(rope.theta, rope.rotary_dim);
    };
    let dim = rope.rotary_dim as f64;
    // The dimension that turns `rotations` times within the original context.
    let border = |rotations: f64| {
        dim * (original as f64 / (rotations * 2.0 * std::f64::consts::PI)).ln()
            / (2.0 * rope.theta.ln())
    };
    let (mut low, mut high) = (border(beta_fast), border(beta_slow));
    if truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    let (low, mut high) = (low.max(0.0), high.min(dim - 1.0));
    if low == high {
        high += 0.001; // as the reference: the ramp must not divide by zero
    }
    let blend = |(i, power): (usize, f32)| {
        let ramp = ((i as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
        let kept = 1.0 - ramp;
        1.0 / (factor as f32 * power) * (1.0 - kept) + 1.0 / power * kept
    };
    powers(rope.theta, rope.rotary_dim).enumerate().map(blend).collect()
}

/// The slope of each of `n_heads` heads (Press et al. 2021, arXiv:2108.12409), times `factor`.
///
/// For a power of two these are `2^(-8/n), 2^(-16/n), …`; else those of the next lower power, followed by every
/// second one of the next higher.
///
/// ```
/// use tramontane::nn::position::alibi_slopes;
/// assert_eq!(alibi_slopes(4, 1.0), [0.25, 0.0625, 0.015625, 0.00390625]);
/// ```
#[must_use]
pub fn alibi_slopes(n_heads: usize, factor: f32) -> Vec<f32> {
    let lower = if n_heads.is_power_of_two() { n_heads } else { n_heads.next_power_of_two() / 2 };
    let slopes = |n: usize, step: usize| {
        (1..).step_by(step).map(move |i| 2f64.powf(-8.0 * f64::from(i) / n as f64) as f32 * factor)
    };
    slopes(lower, 1).take(lower).chain(slopes(2 * lower, 2).take(n_heads - lower)).collect()
}

#[cfg(test)]
mod tests {
    use tramontane_models::spec::RopeStyle;

    use super::*;

    fn rope(scaling: RopeScaling) -> Frequencies {
        Frequencies::new(&Rope {
            theta: 10_000.0,
            rotary_dim: 8,
            style: RopeStyle::Halves,
            scaling,
        })
    }

    #[test]
    fn linear_scaling_divides_positions() {
        let (plain, linear) = (rope(RopeScaling::None), rope(RopeScaling::Linear { factor: 4.0 }));
        let (mut a, mut b, mut sin) = (vec![], vec![], vec![]);
        plain.angles(3, 1, 4, &mut a, &mut sin);
        linear.angles(12, 1, 13, &mut b, &mut sin);
        assert_eq!(a, b);
    }

    #[test]
    fn dynamic_scaling_starts_beyond_the_original_context() {
        let dynamic = rope(RopeScaling::Dynamic { factor: 2.0, original: 32 });
        assert!(dynamic.stretched(32).is_none());
        let stretched = dynamic.stretched(64).unwrap();
        assert_eq!(stretched[0], 1.0);
        assert!(stretched[1] < dynamic.inverse[1]);
    }

    #[test]
    fn slopes_of_odd_head_counts_continue_with_every_second_of_the_next_power() {
        let slopes = alibi_slopes(6, 1.0);
        assert_eq!(slopes[..4], alibi_slopes(4, 1.0)[..]);
        assert_eq!(slopes[4..], [alibi_slopes(8, 1.0)[0], alibi_slopes(8, 1.0)[2]]);
    }
}
