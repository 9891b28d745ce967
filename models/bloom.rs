//! BLOOM: ALiBi positions, a norm on the embedding, biases everywhere, queries, keys and values in one matrix.
//!
//! BigScience 2022, arXiv:2211.05100.

use serde_json::json;

use crate::config::{Config, ConfigError};
use crate::gpt2::{self, Shape};
use crate::names::BLOOM;
use crate::spec::{Activation, Architecture, Attention, Position, Qkv, Residual, Stored};

pub(crate) fn describe(c: &Config) -> Result<Architecture, ConfigError> {
    c.only("apply_residual_connection_post_layernorm", &[json!(false)])?;
    // How training was split over machines, and the length of its texts: ALiBi has no limit.
    c.ignore(&[
        "slow_but_exact",
        "seq_length",
        "attention_softmax_in_fp32",
        "masked_softmax_fusion",
        "bias_dropout_fusion",
        "skip_bias_add",
        "skip_bias_add_qkv",
        "offset_alibi",
        "unk_token_id",
        "n_inner",
    ]);
    let hidden = if c.has("hidden_size") { "hidden_size" } else { "n_embed" };
    let shape = Shape::read(c, hidden, "n_layer", "n_head")?;
    let norm = gpt2::norm(c)?;
    let attention = Attention {
        qkv_bias: true,
        o_bias: true,
        ..shape.attention(Position::Alibi { factor: 1.0 })
    };
    let mlp = shape.mlp(4 * shape.hidden, Activation::GeluTanh, true);
    let mut bloom = shape.architecture(c, &norm, attention, mlp, Residual::Sequential)?;
    bloom.embedding.norm = Some(norm);
    bloom.stored = Stored { qkv: Qkv::ByGroup, ..Stored::plain(&BLOOM) };
    Ok(bloom)
}
