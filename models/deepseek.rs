//! DeepSeek-V3 (671B; the layout of Mistral Large 3): latent attention, and experts behind the first layers.
//!
//! DeepSeek-AI 2024, arXiv:2412.19437. The choice of experts is corrected by a stored number per expert, within the
//! best groups of experts; the weights are sigmoids. One expert is shared by all tokens.

use serde_json::json;

use crate::config::{Config, ConfigError};
use crate::names::{DEEPSEEK, MISTRAL_NATIVE};
use crate::rope;
use crate::spec::{
    Architecture, Dense, Embedding, Experts, Head, Latent, Layer, Mixer, Mlp, Norm, NormKind,
    Residual, RopeStyle, Scores, Stored,
};
use crate::{experts, llama};

/// More heads, or elements of one, than any model has.
const MAX_SIZE: usize = 1 << 16;
/// In transformers the latents' norms do not follow `rms_norm_eps`, but the default of their class. Mistral's own files
/// have one `norm_eps` for all.
const LATENT_EPS: f32 = 1e-6;

pub(crate) fn describe(c: &Config) -> Result<Architecture, ConfigError> {
    c.only("scoring_func", &[json!("sigmoid")])?;
    c.only("topk_method", &[json!("noaux_tc")])?;
    describe_with(c, Scores::Sigmoid, true)
}

/// DeepSeek-V3 with another router.
pub(crate) fn describe_with(
    c: &Config,
    scores: Scores,
    correction: bool,
) -> Result<Architecture, ConfigError> {
    let vocab = llama::below(c, "vocab_size", llama::MAX_VOCAB)?;
    let norm = Norm { kind: NormKind::Rms, eps: c.positive("rms_norm_eps")? as f32 };
    let layers = layers(c, &norm, scores, correction)?;
    let max = llama::MAX_LAYERS;
    let extra_layers = experts::whole(c, "num_nextn_predict_layers", max)?.unwrap_or(0);
    Ok(Architecture {
        family: String::new(),
        hidden: c.count("hidden_size")?,
        vocab,
        max_positions: llama::max_positions(c)?,
        embedding: Embedding::default(),
        layers,
        final_norm: norm,
        head: Head { tied: c.flag("tie_word_embeddings", false)?, bias: false },
        stored: Stored { extra_layers, ..stored(c) },
        bos: c.ids("bos_token_id", vocab)?.first().copied(),
        eos: c.ids("eos_token_id", vocab)?,
    })
}

fn stored(c: &Config) -> Stored {
    if !c.is_native() {
        return Stored::plain(&DEEPSEEK);
    }
    llama::ignore_native(c);
    Stored::plain(&MISTRAL_NATIVE)
}

/// The experts and the number of layers before them. Mistral's own files tell both in a section.
fn read_experts(
    c: &Config,
    dense: &Dense,
    (scores, correction): (Scores, bool),
    n_layers: usize,
) -> Result<(Experts, usize), ConfigError> {
    let moe = if c.is_native() { c.section("moe")? } else { None };
    let m = moe.as_ref().unwrap_or(c);
    let experts = experts::read(m, dense.activation, scores, correction)?;
    m.only("moe_layer_freq", &[json!(1)])?;
    let Some(n_dense) = experts::whole(m, "first_k_dense_replace", n_layers)? else {
        return Err(ConfigError::bad(format!(
            "{} is missing, expected the number of layers without experts",
            m.name("first_k_dense_replace")
        )));
    };
    if let Some(moe) = &moe {
        // How the training was spread over machines.
        moe.ignore(&["expert_parallel", "expert_model_parallel"]);
        moe.finish()?;
    }
    Ok((experts, n_dense))
}

/// The blocks: dense MLPs first, then experts.
fn layers(
    c: &Config,
    norm: &Norm,
    scores: Scores,
    correction: bool,
) -> Result<Vec<Layer>, ConfigError> {
    let activation = llama::activation(c, "hidden_act")?;
    let latent = latent(c, norm)?;
    let dense = Dense { inner: c.count("intermediate_size")?, activation, bias: false };
    let n_layers = llama::below(c, "num_hidden_layers", llama::MAX_LAYERS)?;
    let (experts, n_dense) = read_experts(c, &dense, (scores, correction), n_layers)?;
    let layer = |i| Layer {
        mixer_norm: Some(norm.clone()),
        mixer: Some(Mixer::Latent(latent.clone())),
        post_mixer_norm: None,
        mlp_norm: Some(norm.clone()),
        mlp: Some(if i < n_dense {
            Mlp::Gated(dense.clone())
        } else {
            Mlp::Experts(experts.clone())
        }),
        post_mlp_norm: None,
        residual: Residual::Sequential,
    };
    Ok((0..n_layers).map(layer).collect())
}

fn latent(c: &Config, norm: &Norm) -> Result<Latent, ConfigError> {
    let size = |key| llama::below(c, key, MAX_SIZE);
    let n_heads = size("num_attention_heads")?;
    let (nope_dim, rope_dim) = (size("qk_nope_head_dim")?, size("qk_rope_head_dim")?);
    check_widths(c, n_heads, nope_dim, rope_dim)?;
    let interleaved = c.flag("rope_interleave", true)?;
    let style = if interleaved { RopeStyle::Interleaved } else { RopeStyle::Halves };
    let rope = rope::read(c, rope_dim, style)?;
    let magnitude = rope::latent_magnitude(c)?;
    Ok(Latent {
        n_heads,
        q_rank: c.maybe_count("q_lora_rank")?,
        kv_rank: c.count("kv_lora_rank")?,
        nope_dim,
        v_dim: size("v_head_dim")?,
        rope,
        scale: (magnitude / ((nope_dim + rope_dim) as f64).sqrt()) as f32,
        bias: c.flag("attention_bias", false)?,
        norm: if c.is_native() {
            norm.clone()
        } else {
            Norm { kind: NormKind::Rms, eps: LATENT_EPS }
        },
        query_scale: None,
    })
}

/// Other keys say the widths once more; what they say must agree.
fn check_widths(c: &Config, n_heads: usize, nope: usize, rope: usize) -> Result<(), ConfigError> {
    let whole = nope + rope;
    for (key, allowed) in [
        ("num_key_value_heads", [n_heads, n_heads]),
        ("qk_head_dim", [whole, whole]),
        // The one family says the width of a head, the other that of its rotated part.
        ("head_dim", [whole, rope]),
    ] {
        if let Some(n) = c.maybe_count(key)?.filter(|n| !allowed.contains(n)) {
            let name = c.name(key);
            return Err(ConfigError::bad(format!("{name} is {n}, expected {}", allowed[0])));
        }
    }
    let factor = match c.section("rope_parameters")? {
        Some(section) => section.maybe_positive("partial_rotary_factor")?,
        None => None,
    };
    let rotated = |width: usize, factor: f64| (width as f64 * factor) as usize;
    match factor {
        Some(f) if rotated(whole, f) != rope && rotated(rope, f) != rope => {
            Err(ConfigError::bad(format!(
                "`rope_parameters.partial_rotary_factor` is {f}, expected {rope} of {whole} elements as in `qk_rope_head_dim`"
            )))
        }
        _ => Ok(()),
    }
}
