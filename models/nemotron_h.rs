//! Nemotron-H (Luciole's hybrids, Nemotron Nano): blocks of one norm and one mixer each, which is Mamba-2, attention,
//! an MLP or experts.
//!
//! NVIDIA 2025, arXiv:2504.03624. Attention knows no positions. MLPs and experts are squared ReLU without gate.

use serde_json::json;

use crate::config::{Config, ConfigError};
use crate::names::MAMBA;
use crate::spec::{
    Architecture, Attention, Dense, Embedding, Experts, Head, Layer, Mamba, Mixer, Mlp, Norm,
    NormKind, Position, Residual, Scores, Stored,
};
use crate::{experts, llama, mamba2};

/// Where `time_step_min` is missing, transformers takes this.
const STEP_MIN: f64 = 0.001;

/// What stands in a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Mamba,
    Attention,
    Mlp,
    Experts,
}

pub(crate) fn describe(c: &Config) -> Result<Architecture, ConfigError> {
    let vocab = llama::below(c, "vocab_size", llama::MAX_VOCAB)?;
    let norm = Norm { kind: NormKind::Rms, eps: eps(c)? };
    let layers =
        kinds(c)?.into_iter().map(|kind| layer(c, kind, &norm)).collect::<Result<_, _>>()?;
    ignore(c);
    Ok(Architecture {
        family: String::new(),
        hidden: c.count("hidden_size")?,
        vocab,
        max_positions: llama::max_positions(c)?,
        embedding: Embedding::default(),
        layers,
        final_norm: norm,
        head: Head { tied: c.flag("tie_word_embeddings", false)?, bias: false },
        stored: Stored::plain(&MAMBA),
        bos: c.ids("bos_token_id", vocab)?.first().copied(),
        eos: c.ids("eos_token_id", vocab)?,
    })
}

/// Keys that the reference does not read, or that its configurations carry whatever their blocks are.
fn ignore(c: &Config) {
    c.ignore(&[
        "attention_head_dim",
        "chunk_size",
        "conv_kernel",
        "expand",
        "head_dim",
        "hidden_act",
        "intermediate_size",
        "mamba_head_dim",
        "mamba_hidden_act",
        "mamba_num_heads",
        "mamba_ssm_cache_dtype",
        "mlp_bias",
        "mlp_hidden_act",
        "moe_intermediate_size",
        "moe_shared_expert_intermediate_size",
        "moe_shared_expert_overlap",
        "mtp_hybrid_override_pattern",
        "mtp_layers_block_type",
        "n_group",
        "n_groups",
        "n_routed_experts",
        "n_shared_experts",
        "norm_topk_prob",
        "num_attention_heads",
        "num_experts_per_tok",
        "num_key_value_heads",
        "num_logits_to_keep",
        "num_nextn_predict_layers",
        "partial_rotary_factor",
        "rescale_prenorm_residual",
        "residual_in_fp32",
        "rope_theta",
        "routed_scaling_factor",
        "ssm_state_size",
        "time_step_floor",
        "time_step_limit",
        "time_step_max",
        "time_step_min",
        "topk_group",
        "use_bias",
        "use_conv_bias",
        "use_mamba_kernels",
    ]);
}

/// The `eps` of every norm; some configurations say it under several names.
fn eps(c: &Config) -> Result<f32, ConfigError> {
    let eps = c.positive("layer_norm_epsilon")?;
    for key in ["norm_eps", "rms_norm_eps"] {
        if let Some(other) = c.maybe_positive(key)?.filter(|other| *other != eps) {
            let name = c.name(key);
            return Err(ConfigError::bad(format!(
                "{name} is {other}, but `layer_norm_epsilon` is {eps}: the configuration contradicts itself"
            )));
        }
    }
    Ok(eps as f32)
}

/// The kinds of the blocks: a list of names, or a pattern of one letter each.
fn kinds(c: &Config) -> Result<Vec<Kind>, ConfigError> {
    let list = match c.maybe_texts("layers_block_type")? {
        Some(names) => Some(names),
        None => c.maybe_texts("layer_types")?,
    };
    let pattern = c.maybe_text("hybrid_override_pattern")?;
    let kinds = match (list, pattern) {
        (Some(names), _) => names.into_iter().map(kind_of_name).collect::<Result<Vec<_>, _>>()?,
        (None, Some(pattern)) => pattern.chars().map(kind_of_letter).collect::<Result<_, _>>()?,
        (None, None) => {
            return Err(ConfigError::bad(
                "`hybrid_override_pattern` is missing, expected the kinds of the layers",
            ));
        }
    };
    let said = c.maybe_count("num_hidden_layers")?.unwrap_or(kinds.len());
    if kinds.is_empty() || kinds.len() > llama::MAX_LAYERS || said != kinds.len() {
        return Err(ConfigError::bad(format!(
            "`num_hidden_layers` is {said}, but the kinds of {} layers are given; expected the same number, 1 to {}",
            kinds.len(),
            llama::MAX_LAYERS
        )));
    }
    Ok(kinds)
}

fn kind_of_name(name: &str) -> Result<Kind, ConfigError> {
    match name {
        "linear_attention" | "mamba" => Ok(Kind::Mamba),
        "full_attention" | "attention" => Ok(Kind::Attention),
        "mlp" => Ok(Kind::Mlp),
        "moe" => Ok(Kind::Experts),
        other => Err(ConfigError::unsupported(format!(
            "`layers_block_type` holds \"{other}\", which is not among: linear_attention, full_attention, mlp, moe"
        ))),
    }
}

fn kind_of_letter(letter: char) -> Result<Kind, ConfigError> {
    match letter {
        'M' => Ok(Kind::Mamba),
        '*' => Ok(Kind::Attention),
        '-' => Ok(Kind::Mlp),
        'E' => Ok(Kind::Experts),
        other => Err(ConfigError::unsupported(format!(
            "`hybrid_override_pattern` holds '{other}', which is not among: M, *, -, E"
        ))),
    }
}

fn layer(c: &Config, kind: Kind, norm: &Norm) -> Result<Layer, ConfigError> {
    let (mixer, mlp) = match kind {
        Kind::Mamba => (Some(Mixer::Mamba(mamba(c, norm.eps)?)), None),
        Kind::Attention => (Some(Mixer::Attention(attention(c)?)), None),
        Kind::Mlp => (None, Some(Mlp::Plain(dense(c, c.count("intermediate_size")?)?))),
        Kind::Experts => (None, Some(Mlp::Experts(read_experts(c)?))),
    };
    Ok(Layer {
        mixer_norm: mixer.as_ref().map(|_| norm.clone()),
        mixer,
        post_mixer_norm: None,
        mlp_norm: mlp.as_ref().map(|_| norm.clone()),
        mlp,
        post_mlp_norm: None,
        residual: Residual::Sequential,
    })
}

fn dense(c: &Config, inner: usize) -> Result<Dense, ConfigError> {
    let activation = llama::activation(c, "mlp_hidden_act")?;
    Ok(Dense { inner, activation, bias: c.flag("mlp_bias", false)? })
}

fn read_experts(c: &Config) -> Result<Experts, ConfigError> {
    c.only("n_shared_experts", &[json!(1)])?;
    let shared = dense(c, c.count("moe_shared_expert_intermediate_size")?)?;
    let experts = experts::read(c, shared.activation, Scores::Sigmoid, true)?;
    Ok(Experts { gated: false, shared: Some(shared), ..experts })
}

fn attention(c: &Config) -> Result<Attention, ConfigError> {
    let (n_heads, n_kv_heads) = (c.count("num_attention_heads")?, c.count("num_key_value_heads")?);
    if !n_heads.is_multiple_of(n_kv_heads) {
        return Err(ConfigError::bad(format!(
            "`num_key_value_heads` is {n_kv_heads}, expected a divisor of `num_attention_heads`, which is {n_heads}"
        )));
    }
    let head_dim = c.count("head_dim")?;
    if let Some(other) = c.maybe_count("attention_head_dim")?.filter(|other| *other != head_dim) {
        return Err(ConfigError::bad(format!(
            "`attention_head_dim` is {other}, but `head_dim` is {head_dim}: the configuration contradicts itself"
        )));
    }
    Ok(Attention {
        n_heads,
        n_kv_heads,
        head_dim,
        position: Position::None,
        window: None,
        scale: 1.0 / (head_dim as f32).sqrt(),
        qkv_bias: false,
        o_bias: false,
        qk_norm: None,
        query_scale: None,
    })
}

/// Time steps are at least `time_step_min`, as in transformers' prefill. (Its decoding of single tokens leaves the bound
/// out; one rule for both keeps a token's result independent of how its text was cut.)
fn mamba(c: &Config, eps: f32) -> Result<Mamba, ConfigError> {
    c.only("mamba_hidden_act", &[json!("silu")])?;
    let mamba = Mamba {
        n_heads: c.count("mamba_num_heads")?,
        head_dim: c.count("mamba_head_dim")?,
        n_groups: c.count("n_groups")?,
        state_dim: c.count("ssm_state_size")?,
        conv_width: c.count("conv_kernel")?,
        conv_bias: c.flag("use_conv_bias", true)?,
        bias: c.flag("use_bias", false)?,
        step_min: c.maybe_positive("time_step_min")?.unwrap_or(STEP_MIN) as f32,
        step_max: f32::INFINITY,
        eps,
    };
    mamba2::check(c, &mamba, "mamba_num_heads")?;
    Ok(mamba)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Vec<Kind>, ConfigError> {
        kinds(&Config::parse(text).unwrap())
    }

    #[test]
    fn patterns_and_lists_tell_the_same_kinds() {
        let want = Ok(vec![Kind::Mamba, Kind::Mlp, Kind::Attention, Kind::Experts]);
        assert_eq!(of(r#"{"hybrid_override_pattern": "M-*E", "num_hidden_layers": 4}"#), want);
        let names = r#"{"layers_block_type": ["linear_attention", "mlp", "attention", "moe"]}"#;
        assert_eq!(of(names), want);
    }

    #[test]
    fn a_pattern_of_another_length_is_refused() {
        let error = of(r#"{"hybrid_override_pattern": "M-", "num_hidden_layers": 3}"#).unwrap_err();
        assert!(error.to_string().contains("2 layers"), "{error}");
        assert!(of(r#"{"hybrid_override_pattern": "MX"}"#).unwrap_err().is_unsupported());
    }
}
