//! Mistral Small 4 (119B, 6.5B active) and Leanstral: DeepSeek-V3 with a softmax router and queries that are scaled by
//! their position.
//!
//! Nothing corrects the choice of the experts. The query scale is that of Ministral 3, on the whole query.

use serde_json::json;

use crate::config::{Config, ConfigError};
use crate::spec::{Architecture, Mixer, Scores};
use crate::{deepseek, ministral3};

pub(crate) fn describe(c: &Config) -> Result<Architecture, ConfigError> {
    c.only("scoring_func", &[json!("softmax")])?;
    let mut model = deepseek::describe_with(c, Scores::Softmax, false)?;
    let scale = ministral3::query_scale(c)?;
    for layer in &mut model.layers {
        if let Some(Mixer::Latent(latent)) = &mut layer.mixer {
            latent.query_scale = scale;
        }
    }
    Ok(model)
}
