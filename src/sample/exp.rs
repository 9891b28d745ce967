//! eˣ for x ≤ 0 from additions and multiplications alone.
//!
//! The standard library asks the platform for `exp`, so the last bit, and with it a drawn token, could
//! depend on the machine. This one is the same everywhere, and the compiler vectorises it.

/// eˣ for x ≤ 0, within 2 units in the last place; 0 below -87, where f32 has no normal number left.
///
/// x = n·ln 2 + r with |r| ≤ ln 2 / 2, then eˣ = 2ⁿ·eʳ with eʳ from its Taylor series to r⁷ (rest: 6e-9).
#[inline]
pub(super) fn exp(x: f32) -> f32 {
    // Added to a small number, it leaves no bit for fractions: the sum ends in the rounded integer.
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2²³
    // ln 2 in two parts, the first so short that n times it is exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;

    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = (x - n * LN_2_HIGH) - n * LN_2_LOW;
    let series = [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
    let e_r = series.iter().fold(1.0 / 5040.0, |sum, c| sum * r + c);
    let exponent = rounded.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127);
    if x < -87.0 { 0.0 } else { e_r * f32::from_bits(exponent << 23) }
}

/// Σ exp((l - max) / temperature) over all `logits`, in an order that depends on nothing but their number.
pub(super) fn total_weight(logits: &[f32], max: f32, temperature: f32) -> f64 {
    let mut total = 0.0;
    for some in logits.chunks(128) {
        // Eight sums side by side fill a vector register; few enough additions that f32 is exact to 1e-6.
        let mut lanes = [0f32; 8];
        for eight in some.chunks(8) {
            for (lane, &l) in lanes.iter_mut().zip(eight) {
                *lane += exp((l - max) / temperature);
            }
        }
        total += f64::from(lanes.iter().sum::<f32>());
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_the_standard_library() {
        for i in 0..=870_000 {
            let x = -(i as f32) * 1e-4;
            let expected = f64::from(x).exp();
            let error = (f64::from(exp(x)) - expected).abs() / expected;
            assert!(error < 2.4e-7, "exp({x}): relative error {error:e}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(f32::MIN), 0.0);
    }

    #[test]
    fn the_total_is_the_sum() {
        let logits: Vec<f32> = (0..1003).map(|i| (i as f32 * 0.7).sin() * 9.0).collect();
        let expected: f64 = logits.iter().map(|&l| ((f64::from(l) - 9.0) / 0.7).exp()).sum();
        assert!((total_weight(&logits, 9.0, 0.7) / expected - 1.0).abs() < 1e-6);
    }
}
