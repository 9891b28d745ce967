//! Mixtral: Mistral with two of eight gated MLPs per token.
//!
//! Jiang et al. 2024, arXiv:2401.04088. The router's softmax runs over all experts, then the chosen weights are
//! normalised again, which equals a softmax over the chosen ones.

use crate::config::{Config, ConfigError};
use crate::spec::{Architecture, Experts, Mlp, Router, Scores};
use crate::{experts, mistral};

pub(crate) fn describe(c: &Config) -> Result<Architecture, ConfigError> {
    let mut mixtral = mistral::describe(c)?;
    let (n_experts, n_active) = counts(c)?;
    experts::check(n_experts, n_active)?;
    for layer in &mut mixtral.layers {
        if let Some(Mlp::Gated(dense)) = &layer.mlp {
            layer.mlp = Some(Mlp::Experts(Experts {
                n_experts,
                n_active,
                inner: dense.inner,
                activation: dense.activation,
                gated: true,
                router: Router {
                    scores: Scores::Softmax,
                    correction: false,
                    groups: None,
                    normalised: true,
                    factor: 1.0,
                },
                shared: None,
            }));
        }
    }
    Ok(mixtral)
}

fn counts(c: &Config) -> Result<(usize, usize), ConfigError> {
    if !c.is_native() {
        return Ok((c.count("num_local_experts")?, c.count("num_experts_per_tok")?));
    }
    let Some(moe) = c.section("moe")? else {
        return Err(ConfigError::bad("`moe` is missing, expected the numbers of experts"));
    };
    let counts = (moe.count("num_experts")?, moe.count("num_experts_per_tok")?);
    moe.finish()?;
    Ok(counts)
}
