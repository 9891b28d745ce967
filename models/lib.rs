//! What each model family is, as data: no tensors, no arithmetic, no files.
//!
//! 1. [`config::Config`] reads a `config.json` or a Mistral `params.json` strictly: every value is checked, every
//!    key that changes numbers is either understood or refused by name.
//!    [`json`] refuses keys that stand twice.
//! 2. [`FAMILIES`] maps the architecture's name to a function that describes it as an [`Architecture`].
//! 3. [`spec`] is the vocabulary of that description, layer by layer; [`names`] tells how checkpoints name the tensors.
//! 4. [`catalogue`] lists open French models by short names, with sizes and licences.
//!
//! Adding a family is one small file, one line in [`FAMILIES`] and one fixture; adding a variation is one variant in
//! [`spec`], and the compiler then lists every place that must be taught.
#![forbid(unsafe_code)]

mod bloom;
pub mod catalogue;
pub mod config;
mod deepseek;
mod experts;
mod falcon;
mod fp8;
mod gpt2;
mod gptj;
mod helium;
pub mod json;
mod llama;
mod mamba2;
mod ministral;
mod ministral3;
mod mistral;
mod mistral3;
mod mistral4;
mod mixtral;
pub mod names;
mod nemotron;
mod nemotron_h;
mod olmo2;
mod qwen;
mod rope;
mod smollm3;
pub mod spec;

pub use config::{Config, ConfigError};
pub use spec::Architecture;

/// Describes a model from its configuration.
pub type Describe = fn(&Config) -> Result<Architecture, ConfigError>;

/// Every family this crate can describe, by the name that `architectures` in `config.json` gives it.
pub const FAMILIES: &[(&str, Describe)] = &[
    ("BloomForCausalLM", bloom::describe),
    ("DeepseekV3ForCausalLM", deepseek::describe),
    ("FalconForCausalLM", falcon::describe),
    ("GPT2LMHeadModel", gpt2::describe),
    ("GPTJForCausalLM", gptj::describe),
    ("HeliumForCausalLM", helium::describe),
    ("LlamaForCausalLM", llama::describe),
    ("Mamba2ForCausalLM", mamba2::describe),
    ("MinistralForCausalLM", ministral::describe),
    ("Ministral3ForCausalLM", ministral3::describe),
    ("MistralForCausalLM", mistral::describe),
    ("Mistral3ForConditionalGeneration", mistral3::describe),
    ("Mistral4ForCausalLM", mistral4::describe),
    ("MixtralForCausalLM", mixtral::describe),
    ("NemotronForCausalLM", nemotron::describe),
    ("NemotronHForCausalLM", nemotron_h::describe),
    ("Olmo2ForCausalLM", olmo2::describe),
    ("Qwen2ForCausalLM", qwen::describe_2),
    ("Qwen3ForCausalLM", qwen::describe_3),
    ("RWForCausalLM", falcon::describe),
    ("SmolLM3ForCausalLM", smollm3::describe),
];

/// Describes the model of a `config.json` or `params.json`, and checks that every key was understood.
///
/// The warnings name keys that are unknown and do not look as if they changed numbers.
///
/// # Errors
///
/// If the family is unknown, a value is missing, out of range or contradicts another, or a key that
/// changes numbers is not understood.
///
/// ```
/// let text = r#"{"architectures": ["LlamaForCausalLM"], "vocab_size": 256, "hidden_size": 64,
///     "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4, "rms_norm_eps": 1e-5,
///     "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": false}"#;
/// let (model, warnings) = tramontane_models::describe(&tramontane_models::Config::parse(text)?)?;
/// assert_eq!(model.layers.len(), 2);
/// assert!(warnings.is_empty());
/// # Ok::<(), tramontane_models::ConfigError>(())
/// ```
pub fn describe(config: &Config) -> Result<(Architecture, Vec<String>), ConfigError> {
    let name = config.architecture()?;
    let Some((_, describe)) = FAMILIES.iter().find(|(family, _)| *family == name) else {
        let known: Vec<&str> = FAMILIES.iter().map(|(family, _)| *family).collect();
        return Err(ConfigError::unsupported(format!(
            "`architectures` is \"{name}\", which is not among the supported families: {}",
            known.join(", ")
        )));
    };
    if config.has("auto_map") {
        config.warn("`auto_map` names Python code beside the model: it is never run");
    }
    let mut architecture = describe(config)?;
    architecture.family = name;
    architecture.stored.fp8_block = fp8::block(config)?;
    let warnings = config.finish()?;
    Ok((architecture, warnings))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Configurations as they were published, with the number of their layers.
    const PUBLISHED: [(&str, usize); 3] = [
        // Mamba-Codestral 7B.
        (
            r#"{"_name_or_path": "codestral-hf", "architectures": ["Mamba2ForCausalLM"], "bos_token_id": 0,
            "chunk_size": 256, "conv_kernel": 4, "eos_token_id": 0, "expand": 2, "head_dim": 64,
            "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.1, "intermediate_size": 8192,
            "layer_norm_epsilon": 1e-05, "model_type": "mamba2", "n_groups": 8, "norm_before_gate": true,
            "num_heads": 128, "num_hidden_layers": 64, "pad_token_id": 0, "rescale_prenorm_residual": false,
            "residual_in_fp32": true, "rms_norm": true, "state_size": 128, "tie_word_embeddings": false,
            "time_step_floor": 0.0001, "time_step_init_scheme": "random", "time_step_limit": [0.0, Infinity],
            "time_step_max": 0.1, "time_step_min": 0.001, "time_step_rank": 256, "time_step_scale": 1.0,
            "torch_dtype": "bfloat16", "transformers_version": "4.44.0.dev0", "use_bias": false,
            "use_cache": true, "use_conv_bias": true, "vocab_size": 32768}"#,
            64,
        ),
        // Helium 1 preview 2B.
        (
            r#"{"architectures": ["HeliumForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
            "bos_token_id": 1, "eos_token_id": 2, "head_dim": 128, "hidden_act": "silu", "hidden_size": 2560,
            "initializer_range": 0.02, "intermediate_size": 7040, "max_position_embeddings": 4096,
            "mlp_bias": false, "model_type": "helium", "num_attention_heads": 20, "num_hidden_layers": 24,
            "num_key_value_heads": 20, "pretraining_tp": 1, "rms_norm_eps": 1e-08, "rope_theta": 100000.0,
            "tie_word_embeddings": false, "torch_dtype": "bfloat16", "transformers_version": "4.45.0.dev0",
            "use_cache": true, "vocab_size": 48000}"#,
            24,
        ),
        // Falcon 7B, in its first form; the base of its rotation is what everybody takes, and not said there.
        (
            r#"{"alibi": false, "apply_residual_connection_post_layernorm": false,
            "architectures": ["RWForCausalLM"], "attention_dropout": 0.0, "bias": false, "bos_token_id": 11,
            "eos_token_id": 11, "hidden_dropout": 0.0, "hidden_size": 4544, "initializer_range": 0.02,
            "layer_norm_epsilon": 1e-05, "model_type": "RefinedWebModel", "multi_query": true, "n_head": 71,
            "n_layer": 32, "parallel_attn": true, "rope_theta": 10000.0, "torch_dtype": "bfloat16", "transformers_version": "4.27.4",
            "use_cache": true, "vocab_size": 65024}"#,
            32,
        ),
    ];

    #[test]
    fn published_configurations_are_understood_to_the_last_key() {
        for (text, n_layers) in PUBLISHED {
            let (model, warnings) = describe(&Config::parse(text).unwrap()).unwrap();
            assert_eq!(model.layers.len(), n_layers, "{}", model.family);
            assert!(warnings.is_empty(), "{}: {warnings:?}", model.family);
        }
    }
}
