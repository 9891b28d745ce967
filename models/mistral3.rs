//! Mistral 3 with a vision tower (Small 3.1 and 3.2, Ministral 3): the text model, by its own `text_config`.
//!
//! Images are not read, and the tower's weights are left alone.

use crate::config::{Config, ConfigError};
use crate::spec::Architecture;
use crate::{ministral3, mistral, mistral4};

pub(crate) fn describe(c: &Config) -> Result<Architecture, ConfigError> {
    let Some(text) = c.section("text_config")? else {
        return Err(ConfigError::bad(
            "`text_config` is missing, expected the configuration of the text model",
        ));
    };
    c.ignore(&[
        "vision_config",
        "vision_feature_layer",
        "image_token_index",
        "image_token_id",
        "spatial_merge_size",
        "projector_hidden_act",
        "multimodal_projector_bias",
    ]);
    let kind = text.maybe_text("model_type")?.unwrap_or("mistral").to_owned();
    let mut model = match kind.as_str() {
        "mistral" => mistral::describe(&text)?,
        "ministral3" => ministral3::describe(&text)?,
        "mistral4" => mistral4::describe(&text)?,
        other => {
            return Err(ConfigError::unsupported(format!(
                "`text_config.model_type` is \"{other}\", which is not among: mistral, ministral3, mistral4"
            )));
        }
    };
    // The outer value is the one that transformers ties by.
    model.head.tied = c.flag("tie_word_embeddings", model.head.tied)?;
    for warning in text.finish()? {
        c.warn(warning);
    }
    Ok(model)
}
