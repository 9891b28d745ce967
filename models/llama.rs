//! Llama and everything that shares its block: Lucie, CroissantLLM, Pleias, Gaperon 1B and 8B, EuroLLM, SmolLM2.
//!
//! Touvron et al. 2023, arXiv:2302.13971: RMSNorm, rotary halves, grouped key/value heads, gated SiLU.

use crate::config::{Config, ConfigError};
use crate::names::{HUGGING_FACE, MISTRAL_NATIVE};
use crate::rope;
use crate::spec::{
    Activation, Architecture, Attention, Dense, Embedding, Head, Layer, Mixer, Mlp, Norm, NormKind,
    Position, Residual, RopeStyle, Stored,
};

/// More layers than any model has.
pub(crate) const MAX_LAYERS: usize = 4096;
/// A larger vocabulary than any model has.
pub(crate) const MAX_VOCAB: usize = 1 << 24;
/// A larger context than any model claims.
const MAX_POSITIONS: usize = 1 << 30;

pub(crate) fn describe(c: &Config) -> Result<Architecture, ConfigError> {
    let norm = Norm { kind: NormKind::Rms, eps: c.positive("rms_norm_eps")? as f32 };
    describe_with_norm(c, norm)
}

/// Llama with another norm.
pub(crate) fn describe_with_norm(c: &Config, norm: Norm) -> Result<Architecture, ConfigError> {
    let hidden = c.count("hidden_size")?;
    let vocab = below(c, "vocab_size", MAX_VOCAB)?;
    let attention = attention(c, hidden)?;
    let mlp = Dense {
        inner: c.count("intermediate_size")?,
        activation: activation(c, "hidden_act")?,
        bias: c.flag("mlp_bias", false)?,
    };
    let layer = Layer {
        mixer_norm: Some(norm.clone()),
        mixer: Some(Mixer::Attention(attention)),
        post_mixer_norm: None,
        mlp_norm: Some(norm.clone()),
        mlp: Some(Mlp::Gated(mlp)),
        post_mlp_norm: None,
        residual: Residual::Sequential,
    };
    let n_layers = below(c, "num_hidden_layers", MAX_LAYERS)?;
    Ok(Architecture {
        family: String::new(),
        hidden,
        vocab,
        max_positions: max_positions(c)?,
        embedding: Embedding::default(),
        layers: vec![layer; n_layers],
        final_norm: norm,
        head: Head { tied: c.flag("tie_word_embeddings", false)?, bias: false },
        stored: stored(c),
        bos: c.ids("bos_token_id", vocab)?.first().copied(),
        eos: c.ids("eos_token_id", vocab)?,
    })
}

/// Attention with rotary halves over whole heads.
fn attention(c: &Config, hidden: usize) -> Result<Attention, ConfigError> {
    let n_heads = c.count("num_attention_heads")?;
    let n_kv_heads = c.maybe_count("num_key_value_heads")?.unwrap_or(n_heads);
    if !n_heads.is_multiple_of(n_kv_heads) {
        return Err(ConfigError::bad(format!(
            "{} is {n_kv_heads}, expected a divisor of {}, which is {n_heads}",
            c.name("num_key_value_heads"),
            c.name("num_attention_heads")
        )));
    }
    let head_dim = match c.maybe_count("head_dim")? {
        Some(head_dim) => head_dim,
        None if hidden.is_multiple_of(n_heads) => hidden / n_heads,
        None => {
            return Err(ConfigError::bad(format!(
                "{} is {n_heads}, which does not divide {} {hidden}, and there is no `head_dim`",
                c.name("num_attention_heads"),
                c.name("hidden_size")
            )));
        }
    };
    let bias = c.flag("attention_bias", false)?;
    let rope = rope::read(c, head_dim, RopeStyle::Halves)?;
    Ok(Attention {
        n_heads,
        n_kv_heads,
        head_dim,
        position: Position::Rope(rope),
        window: None,
        scale: 1.0 / (head_dim as f32).sqrt(),
        qkv_bias: bias,
        o_bias: bias,
        qk_norm: None,
        query_scale: None,
    })
}

/// Mistral's own files name the tensors otherwise and interleave the rows of queries and keys.
fn stored(c: &Config) -> Stored {
    if c.is_native() {
        ignore_native(c);
        Stored { qk_rows: RopeStyle::Interleaved, ..Stored::plain(&MISTRAL_NATIVE) }
    } else {
        Stored::plain(&HUGGING_FACE)
    }
}

/// Keys of a `params.json` that are about images, or about how many positions the model was made for, of which the file
/// may say two.
pub(crate) fn ignore_native(c: &Config) {
    c.ignore(&["vision_encoder", "multimodal", "max_position_embeddings", "model_parallel"]);
}

/// A required count of at most `max`.
pub(crate) fn below(c: &Config, key: &str, max: usize) -> Result<usize, ConfigError> {
    match c.count(key)? {
        n if n <= max => Ok(n),
        n => Err(ConfigError::bad(format!("{} is {n}, expected at most {max}", c.name(key)))),
    }
}

/// The number of positions, where the configuration says one that makes sense.
pub(crate) fn max_positions(c: &Config) -> Result<Option<usize>, ConfigError> {
    match c.maybe_count("max_position_embeddings")? {
        Some(n) if n > MAX_POSITIONS => Err(ConfigError::bad(format!(
            "{} is {n}, expected at most {MAX_POSITIONS}",
            c.name("max_position_embeddings")
        ))),
        other => Ok(other),
    }
}

/// The activation function that `key` names. A `params.json` names none: Mistral's is SiLU.
pub(crate) fn activation(c: &Config, key: &str) -> Result<Activation, ConfigError> {
    match c.maybe_text(key)? {
        Some("silu" | "swish") => Ok(Activation::Silu),
        Some("gelu") => Ok(Activation::Gelu),
        Some("gelu_new" | "gelu_pytorch_tanh" | "gelu_fast") => Ok(Activation::GeluTanh),
        Some("relu") => Ok(Activation::Relu),
        Some("relu2") => Ok(Activation::Relu2),
        Some(other) => Err(ConfigError::unsupported(format!(
            "{} is \"{other}\", which is not among: silu, gelu, gelu_new, gelu_pytorch_tanh, relu, relu2",
            c.name(key)
        ))),
        None if c.is_native() => Ok(Activation::Silu),
        None => Err(ConfigError::bad(format!(
            "{} is missing, expected the name of an activation",
            c.name(key)
        ))),
    }
}
