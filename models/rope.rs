//! Reading rotary settings: `rope_theta` and `rope_scaling`, or the newer `rope_parameters`.
//!
//! The meaning of each type is that of transformers' `modeling_rope_utils.py`.

use serde_json::json;

use crate::config::{Config, ConfigError};
use crate::spec::{Rope, RopeScaling, RopeStyle};

/// The base that transformers assumes where an old configuration names none.
const DEFAULT_THETA: f64 = 10_000.0;

/// Reads the rotary embedding of heads of `head_dim` elements, of which `rotary_dim` are rotated.
pub(crate) fn read(c: &Config, rotary_dim: usize, style: RopeStyle) -> Result<Rope, ConfigError> {
    if !rotary_dim.is_multiple_of(2) {
        return Err(odd(rotary_dim));
    }
    if c.is_native() {
        return Ok(Rope { theta: theta(c, None)?, rotary_dim, style, scaling: native_scaling(c)? });
    }
    let (old, new) = (c.section("rope_scaling")?, c.section("rope_parameters")?);
    if old.is_some() && new.is_some() {
        return Err(ConfigError::bad(
            "`rope_scaling` and `rope_parameters` are both given, expected one of them",
        ));
    }
    let section = new.or(old);
    let theta = theta(c, section.as_ref())?;
    let scaling = match &section {
        Some(section) => scaling(c, section)?,
        None => RopeScaling::None,
    };
    Ok(Rope { theta, rotary_dim, style, scaling })
}

/// Mistral's own `yarn`, whose `beta` and `alpha` are `beta_fast` and `beta_slow`.
///
/// With latent attention the magnitude is a matter of the scores alone: see [`latent_magnitude`].
fn native_scaling(c: &Config) -> Result<RopeScaling, ConfigError> {
    let Some(section) = c.section("yarn")? else { return Ok(RopeScaling::None) };
    let factor = factor(&section)?;
    let scales = section.flag("apply_scale", true)? && !c.has("qk_nope_head_dim");
    let scaling = RopeScaling::Yarn {
        factor,
        original: section.count("original_max_position_embeddings")?,
        beta_fast: section.positive("beta")?,
        beta_slow: section.positive("alpha")?,
        magnitude: if scales { magnitude(factor, 1.0) as f32 } else { 1.0 },
        truncate: true,
    };
    section.finish()?;
    Ok(scaling)
}

/// A rotary embedding with the usual base and no scaling.
pub(crate) fn plain(rotary_dim: usize, style: RopeStyle) -> Result<Rope, ConfigError> {
    let rope = Rope { theta: DEFAULT_THETA, rotary_dim, style, scaling: RopeScaling::None };
    if rotary_dim.is_multiple_of(2) { Ok(rope) } else { Err(odd(rotary_dim)) }
}

/// The rotated elements of a head of which only the part `factor` is rotated.
pub(crate) fn partial(c: &Config, head_dim: usize, factor: f64) -> Result<usize, ConfigError> {
    let rotary_dim = (head_dim as f64 * factor) as usize;
    if factor > 1.0 {
        return Err(ConfigError::bad(format!(
            "{} is {factor}, expected at most 1",
            c.name("partial_rotary_factor")
        )));
    }
    if rotary_dim.is_multiple_of(2) { Ok(rotary_dim) } else { Err(odd(rotary_dim)) }
}

fn odd(rotary_dim: usize) -> ConfigError {
    ConfigError::bad(format!(
        "`head_dim` gives {rotary_dim} rotated elements, expected an even number for rotary positions"
    ))
}

fn theta(c: &Config, section: Option<&Config>) -> Result<f64, ConfigError> {
    let inner = section.map(|s| s.maybe_positive("rope_theta")).transpose()?.flatten();
    match (c.maybe_positive("rope_theta")?, inner) {
        (Some(outer), Some(inner)) if outer != inner => Err(ConfigError::bad(format!(
            "`rope_theta` is {outer}, but {inner} inside `rope_parameters`: the configuration contradicts itself"
        ))),
        (Some(theta), _) | (None, Some(theta)) => Ok(theta),
        (None, None) => {
            c.warn("`rope_theta` is missing: 10000 is taken, as transformers does");
            Ok(DEFAULT_THETA)
        }
    }
}

fn scaling(c: &Config, section: &Config) -> Result<RopeScaling, ConfigError> {
    let kind = match (section.maybe_text("rope_type")?, section.maybe_text("type")?) {
        (Some(a), Some(b)) if a != b => {
            return Err(ConfigError::bad(format!(
                "{} is \"{a}\", but {} is \"{b}\"",
                section.name("rope_type"),
                section.name("type")
            )));
        }
        (Some(kind), _) | (None, Some(kind)) => kind,
        (None, None) => "default",
    };
    let scaling = match kind {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: factor(section)? },
        "dynamic" => {
            RopeScaling::Dynamic { factor: factor(section)?, original: original(c, section)? }
        }
        "llama3" => llama3(c, section)?,
        "yarn" => yarn(c, section)?,
        other => {
            return Err(ConfigError::unsupported(format!(
                "{} is \"{other}\", which is not among: default, linear, dynamic, llama3, yarn; positions would be wrong",
                section.name("rope_type")
            )));
        }
    };
    // Written by transformers beside the settings of every type, or read by the family itself.
    section.ignore(&[
        "llama_4_scaling_beta",
        "max_position_embeddings",
        "original_max_position_embeddings",
        "partial_rotary_factor",
    ]);
    for warning in section.finish()? {
        c.warn(warning);
    }
    Ok(scaling)
}

fn factor(section: &Config) -> Result<f64, ConfigError> {
    let factor = section.positive("factor")?;
    if factor < 1.0 {
        return Err(ConfigError::bad(format!(
            "{} is {factor}, expected at least 1",
            section.name("factor")
        )));
    }
    Ok(factor)
}

fn original(c: &Config, section: &Config) -> Result<usize, ConfigError> {
    match section.maybe_count("original_max_position_embeddings")? {
        Some(n) => Ok(n),
        None => c.count("max_position_embeddings"),
    }
}

fn llama3(c: &Config, section: &Config) -> Result<RopeScaling, ConfigError> {
    let (low, high) = (section.positive("low_freq_factor")?, section.positive("high_freq_factor")?);
    if low >= high {
        return Err(ConfigError::bad(format!(
            "{} is {low} and {} is {high}, expected the first to be smaller",
            section.name("low_freq_factor"),
            section.name("high_freq_factor")
        )));
    }
    Ok(RopeScaling::Llama3 { factor: factor(section)?, low, high, original: original(c, section)? })
}

fn yarn(c: &Config, section: &Config) -> Result<RopeScaling, ConfigError> {
    let factor = factor(section)?;
    section.only("finetuned", &[json!(true), json!(false)])?;
    Ok(RopeScaling::Yarn {
        factor,
        original: original(c, section)?,
        beta_fast: section.maybe_positive("beta_fast")?.unwrap_or(32.0),
        beta_slow: section.maybe_positive("beta_slow")?.unwrap_or(1.0),
        magnitude: yarn_magnitude(section, factor)?,
        truncate: section.flag("truncate", true)?,
    })
}

/// The square of the second magnitude that latent attention multiplies its scores by: `(0.1 mscale_all_dim ln(factor) +
/// 1)²`, or 1 where the rotary embedding is not stretched or names no `mscale_all_dim`.
///
/// References disagree on Mistral Small 4: transformers and DeepSeek's own code multiply as is done here; others read
/// from Mistral's `"apply_scale": false` that nothing is multiplied. A configuration in the form of Hugging Face
/// cannot say `apply_scale`, so the reference that defines that form is followed; `"apply_scale": false` beside
/// `mscale_all_dim` is honoured all the same. Mistral's own `params.json` says `apply_scale`, which is false in that of
/// Small 4, and is followed: so the two forms of Small 4 give different logits, as they do elsewhere.
pub(crate) fn latent_magnitude(c: &Config) -> Result<f64, ConfigError> {
    if c.is_native() {
        let Some(yarn) = c.section("yarn")? else { return Ok(1.0) };
        let scales = yarn.flag("apply_scale", true)?;
        return Ok(if scales { magnitude(factor(&yarn)?, 1.0).powi(2) } else { 1.0 });
    }
    let Some(section) = c.section("rope_parameters")?.or(c.section("rope_scaling")?) else {
        return Ok(1.0);
    };
    let kind = section.maybe_text("rope_type")?.or(section.maybe_text("type")?);
    let all_dim = section.maybe_number("mscale_all_dim")?.filter(|m| *m != 0.0);
    let (Some("yarn"), Some(all_dim), true) = (kind, all_dim, section.flag("apply_scale", true)?)
    else {
        return Ok(1.0);
    };
    Ok(magnitude(factor(&section)?, all_dim).powi(2))
}

/// How much YaRN stretches the scores of a context that is `factor` times as long.
fn magnitude(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
}

/// What sines and cosines are multiplied by.
///
/// 1 if `apply_scale` is false; `attention_factor` if given; else the ratio of the two `mscale` terms if both are non-zero; else
/// `0.1 ln(factor) + 1`. An `mscale_all_dim` of 0 counts as absent, as in the reference.
fn yarn_magnitude(section: &Config, factor: f64) -> Result<f32, ConfigError> {
    let term = |mscale| magnitude(factor, mscale);
    let given = section.maybe_positive("attention_factor")?;
    let mscale = section.maybe_number("mscale")?.filter(|m| *m != 0.0);
    let all_dim = section.maybe_number("mscale_all_dim")?.filter(|m| *m != 0.0);
    let magnitude = match (given, mscale, all_dim) {
        _ if !section.flag("apply_scale", true)? => 1.0,
        (Some(given), _, _) => given,
        (None, Some(mscale), Some(all_dim)) => term(mscale) / term(all_dim),
        (None, _, _) => term(1.0),
    };
    Ok(magnitude as f32)
}
