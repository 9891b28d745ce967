//! Falcon (Claire 7B, Falcon 40B and 11B, LightOn's Alfred): parallel blocks, few key/value heads, one fused matrix.
//!
//! Almazrouei et al. 2023, arXiv:2311.16867. Three layouts: 7B (one key/value head, one norm), 40B and 11B ("new
//! decoder": grouped heads, two norms or one), and RW (ALiBi, sequential, one key/value head for each query head).
//! The first custom code on the hub, `RWForCausalLM`, gives the same keys other names.

use crate::config::{Config, ConfigError};
use crate::gpt2::{self, Shape};
use crate::names::{BLOOM, FALCON_TWO_NORMS};
use crate::spec::{
    Activation, Architecture, Attention, Position, Qkv, Residual, RopeStyle, Stored,
};
use crate::{llama, rope};

pub(crate) fn describe(c: &Config) -> Result<Architecture, ConfigError> {
    let either = |new: &'static str, old: &'static str| if c.has(new) { new } else { old };
    let (n_layers, n_heads) =
        (either("num_hidden_layers", "n_layer"), either("num_attention_heads", "n_head"));
    let kv_heads = c.maybe_count(either("num_kv_heads", "n_head_kv"))?;
    let shape = Shape::read(c, "hidden_size", n_layers, n_heads)?;
    let norm = gpt2::norm(c)?;
    let grouped = c.flag("new_decoder_architecture", c.has("n_head_kv"))?;
    let multi_query = c.flag("multi_query", true)?;
    let n_kv_heads = match kv_heads {
        Some(n) if grouped => n,
        _ if multi_query && !grouped => 1,
        _ => shape.n_heads,
    };
    if !shape.n_heads.is_multiple_of(n_kv_heads) {
        return Err(ConfigError::bad(format!(
            "`num_kv_heads` is {n_kv_heads}, expected a divisor of {}",
            shape.n_heads
        )));
    }
    let bias = c.flag("bias", false)?;
    let position = position(c, &shape)?;
    let attention =
        Attention { n_kv_heads, qkv_bias: bias, o_bias: bias, ..shape.attention(position) };
    let activation =
        if c.has("activation") { llama::activation(c, "activation")? } else { Activation::Gelu };
    let inner = c.maybe_count("ffn_hidden_size")?.unwrap_or(4 * shape.hidden);
    let residual = residual(c, grouped)?;
    let mut falcon =
        shape.architecture(c, &norm, attention, shape.mlp(inner, activation, bias), residual)?;
    falcon.max_positions = llama::max_positions(c)?;
    let names = if residual == Residual::Parallel { &FALCON_TWO_NORMS } else { &BLOOM };
    let qkv = if grouped || !multi_query { Qkv::ByGroup } else { Qkv::Joined };
    falcon.stored = Stored { qkv, ..Stored::plain(names) };
    Ok(falcon)
}

/// ALiBi is added before the scores are scaled, so its slopes are scaled with them.
///
/// The reference values come from transformers' eager attention, which adds it twice: once there, and once more in the
/// mask that it shares with the fused attention (`FalconModel.forward`). They are followed here, and the reader is told;
/// no French model is concerned, because Claire and Alfred have rotary positions.
fn position(c: &Config, shape: &Shape) -> Result<Position, ConfigError> {
    let head_dim = shape.head_dim();
    if c.flag("alibi", false)? {
        c.ignore(&["rope_theta", "rope_parameters", "rope_scaling"]);
        c.warn("`alibi` is added twice, as the eager attention of transformers 5 does; its fused attention adds it once");
        return Ok(Position::Alibi { factor: 2.0 / (head_dim as f32).sqrt() });
    }
    Ok(Position::Rope(rope::read(c, head_dim, RopeStyle::Halves)?))
}

fn residual(c: &Config, grouped: bool) -> Result<Residual, ConfigError> {
    let n_norms = c.maybe_count("num_ln_in_parallel_attn")?.unwrap_or(if grouped { 2 } else { 1 });
    Ok(match (c.flag("parallel_attn", true)? || grouped, grouped && n_norms == 2) {
        (false, _) => Residual::Sequential,
        (true, true) => Residual::Parallel,
        (true, false) => Residual::ParallelSharedNorm,
    })
}
