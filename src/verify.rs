//! Whether a model on disk is whole and works: its files, its weights, its tokenizer, its template, its numbers.
//!
//! Each [`Check`] stands for itself, and those that an earlier failure makes impossible are skipped. Nothing is
//! downloaded.

mod steps;

use serde::Serialize;

use crate::error::{Error, ErrorKind, Result};
use crate::files::ModelFiles;
use crate::model::{LoadOptions, Model, Plan};

/// What a check found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Outcome {
    /// All is as it should be.
    Passed,
    /// Something is wrong with the model.
    Failed,
    /// There was nothing to check, or an earlier failure made it impossible.
    Skipped,
}

/// One check of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was checked: `files`, `weights`, `config`, `tokenizer`, `template`, `logits` or `perplexity`.
    pub name: &'static str,
    /// What came of it.
    pub outcome: Outcome,
    /// What was found, or why nothing was looked for.
    pub detail: String,
    /// What the reader can do about a failure.
    #[serde(skip)]
    pub kind: Option<ErrorKind>,
}

impl Check {
    fn new(name: &'static str, result: Result<Found>) -> Self {
        match result {
            Ok(Found::Right(detail)) => Self { name, outcome: Outcome::Passed, detail, kind: None },
            Ok(Found::Nothing(detail)) => {
                Self { name, outcome: Outcome::Skipped, detail, kind: None }
            }
            Err(e) => {
                Self { name, outcome: Outcome::Failed, kind: Some(e.kind()), detail: e.to_string() }
            }
        }
    }

    fn skipped(name: &'static str, because: &str) -> Self {
        Self::new(name, Ok(Found::Nothing(format!("not possible: {because}"))))
    }
}

/// What a check found that did not fail.
enum Found {
    Right(String),
    Nothing(String),
}

/// Checks the model whose files are at hand, and tells each check as it is done; `name` is how reports call it. Checks
/// that read whole files tell the options' progress how far they are.
///
/// Whatever is wrong with the model is a failed check, not an error.
///
/// ```
/// use tramontane::verify::{Outcome, verify};
/// use tramontane::{LoadOptions, files::ModelFiles};
///
/// let checks = verify("brise", &ModelFiles::BuiltIn, &LoadOptions::default(), &mut |_| ());
/// assert!(checks.iter().all(|check| check.outcome != Outcome::Failed));
/// ```
pub fn verify(
    name: &str,
    files: &ModelFiles,
    options: &LoadOptions,
    tell: &mut dyn FnMut(&Check),
) -> Vec<Check> {
    let mut checks = Vec::new();
    let mut add = |check: Check| {
        tell(&check);
        checks.push(check);
    };
    let mut progress = |done, total| {
        if let Some(progress) = &options.progress {
            progress.loaded(done, total);
        }
    };
    add(Check::new("files", steps::files(files, &mut progress)));
    add(Check::new("weights", steps::weights(files, &mut progress)));
    let plan = Plan::from_files(name, files);
    add(Check::new("config", plan.as_ref().map(steps::config).map_err(Error::restated)));
    let Ok(plan) = plan else {
        for name in ["tokenizer", "template", "logits", "perplexity"] {
            add(Check::skipped(name, "the model cannot be described"));
        }
        return checks;
    };
    add(Check::new("tokenizer", steps::tokenizer(&plan)));
    add(Check::new("template", steps::template(&plan)));
    let model = Model::from_files(name, files, options);
    add(Check::new("logits", model.as_ref().map_err(Error::restated).and_then(steps::logits)));
    match model {
        Ok(model) => add(Check::new("perplexity", steps::perplexity(&model))),
        Err(_) => add(Check::skipped("perplexity", "the model cannot be loaded")),
    }
    checks
}
