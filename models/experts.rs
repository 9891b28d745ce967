//! Reading experts: how many, how wide, and how they are chosen, in the keys of DeepSeek-V3.
//!
//! The meaning is that of transformers' `DeepseekV3TopkRouter`, `Mistral4TopkRouter` and `NemotronHTopkRouter`.

use crate::config::{Config, ConfigError};
use crate::spec::{Activation, Dense, Experts, Groups, Router, Scores};

/// More experts than any model has.
const MAX_EXPERTS: usize = 4096;

/// Refuses numbers of experts that make no sense.
pub(crate) fn check(n_experts: usize, n_active: usize) -> Result<(), ConfigError> {
    if n_experts <= MAX_EXPERTS && n_active <= n_experts {
        return Ok(());
    }
    Err(ConfigError::bad(format!(
        "{n_active} of {n_experts} experts are to be used, expected at most {MAX_EXPERTS} experts, and no more used than there are"
    )))
}

/// The experts of a layer; `correction` says whether the choice is corrected by stored numbers.
pub(crate) fn read(
    c: &Config,
    activation: Activation,
    scores: Scores,
    correction: bool,
) -> Result<Experts, ConfigError> {
    let (n_experts, n_active) = (c.count("n_routed_experts")?, c.count("num_experts_per_tok")?);
    check(n_experts, n_active)?;
    let inner = c.count("moe_intermediate_size")?;
    let shared = c.count("n_shared_experts")?.checked_mul(inner).filter(|n| *n <= 1 << 31);
    let Some(shared) = shared else {
        return Err(ConfigError::bad(format!(
            "{} times {} is out of range",
            c.name("n_shared_experts"),
            c.name("moe_intermediate_size")
        )));
    };
    Ok(Experts {
        n_experts,
        n_active,
        inner,
        activation,
        gated: true,
        router: Router {
            scores,
            correction,
            groups: groups(c, n_experts, n_active)?,
            normalised: c.flag("norm_topk_prob", true)?,
            factor: c.positive("routed_scaling_factor")? as f32,
        },
        shared: Some(Dense { inner: shared, activation, bias: false }),
    })
}

/// The groups among which experts are chosen, if there is more than one.
fn groups(c: &Config, n_experts: usize, n_active: usize) -> Result<Option<Groups>, ConfigError> {
    let groups = Groups { n_groups: c.count("n_group")?, n_active: c.count("topk_group")? };
    let per_group = n_experts / groups.n_groups;
    let fits = n_experts.is_multiple_of(groups.n_groups)
        && groups.n_active <= groups.n_groups
        && n_active <= groups.n_active * per_group
        && per_group >= 2;
    match groups {
        Groups { n_groups: 1, n_active: 1 } => Ok(None),
        groups if fits => Ok(Some(groups)),
        Groups { n_groups, n_active } => Err(ConfigError::bad(format!(
            "{} is {n_groups} and {} is {n_active}, expected groups of two or more of the {n_experts} experts, and enough of them",
            c.name("n_group"),
            c.name("topk_group")
        ))),
    }
}

/// A whole number from 0 to `max`, or `None` if missing or null.
pub(crate) fn whole(c: &Config, key: &str, max: usize) -> Result<Option<usize>, ConfigError> {
    match c.maybe_number(key)? {
        None => Ok(None),
        Some(x) if x >= 0.0 && x.fract() == 0.0 && x <= max as f64 => Ok(Some(x as usize)),
        Some(x) => Err(ConfigError::bad(format!(
            "{} is {x}, expected a whole number of at most {max}",
            c.name(key)
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn experts(n: usize, groups: usize, best: usize) -> Result<Option<Groups>, ConfigError> {
        let text = format!(r#"{{"n_group": {groups}, "topk_group": {best}}}"#);
        groups_of(&text, n)
    }

    fn groups_of(text: &str, n: usize) -> Result<Option<Groups>, ConfigError> {
        groups(&Config::parse(text).unwrap(), n, 2)
    }

    #[test]
    fn groups_must_fit_the_experts() {
        assert_eq!(experts(8, 1, 1), Ok(None));
        assert_eq!(experts(8, 4, 2), Ok(Some(Groups { n_groups: 4, n_active: 2 })));
        for (n, groups, best) in [(8, 3, 1), (8, 4, 5), (8, 8, 2), (8, 16, 1)] {
            let error = experts(n, groups, best).unwrap_err().to_string();
            assert!(error.contains("`n_group`"), "{error}");
        }
    }

    #[test]
    fn more_active_experts_than_there_are_make_no_sense() {
        assert!(check(8, 9).is_err());
        assert!(check(8, 8).is_ok());
    }
}
