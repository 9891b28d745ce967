//! Nemotron (Luciole 1B and 23B): LayerNorm stored minus one, squared ReLU without gate, half of each head rotated.
//!
//! Parmar et al. 2024, arXiv:2402.16819.

use crate::config::{Config, ConfigError};
use crate::spec::{Architecture, Dense, Mlp, Norm, NormKind, Position};
use crate::{llama, rope};

pub(crate) fn describe(c: &Config) -> Result<Architecture, ConfigError> {
    let norm = Norm {
        kind: NormKind::Layer { bias: true, minus_one: true },
        eps: c.positive("norm_eps")? as f32,
    };
    let mut nemotron = llama::describe_with_norm(c, norm)?;
    let factor = match c.section("rope_parameters")? {
        Some(section) => section.maybe_positive("partial_rotary_factor")?,
        None => None,
    };
    let factor = factor.or(c.maybe_positive("partial_rotary_factor")?).unwrap_or(0.5);
    for attention in nemotron.attentions_mut() {
        let rotary_dim = rope::partial(c, attention.head_dim, factor)?;
        if let Position::Rope(rope) = &mut attention.position {
            rope.rotary_dim = rotary_dim;
        }
    }
    for layer in &mut nemotron.layers {
        if let Some(Mlp::Gated(Dense { inner, activation, bias })) = layer.mlp {
            layer.mlp = Some(Mlp::Plain(Dense { inner, activation, bias }));
        }
    }
    Ok(nemotron)
}
