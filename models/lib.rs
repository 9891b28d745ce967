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
