//! The catalogue: open models that people in France use, with short names, sizes, licences and languages.
//!
//! It is a text file, `catalogue.toml`, which tells what each field means; it is part of the program. What was not seen
//! at its source is marked there, and [`Entry::is_verified`] passes that on.

use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

/// The text of the catalogue.
const TEXT: &str = include_str!("catalogue.toml");

static ENTRIES: LazyLock<Vec<Entry>> = LazyLock::new(|| {
    #[expect(clippy::expect_used, reason = "the text is part of the program, and a test reads it")]
    read(TEXT).expect("the catalogue is well formed")
});

/// What is known about one model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// The short name.
    pub name: String,
    /// `organisation/name` on the hub.
    pub repository: String,
    /// The name in `architectures` of its configuration.
    pub family: String,
    /// Number of parameters, in billions.
    pub parameters: f64,
    /// Parameters that one token uses, in billions, where experts are chosen.
    #[serde(default)]
    pub active: Option<f64>,
    /// Tokens that the model was made for; `None` where that is not known or without bound.
    #[serde(default)]
    pub context: Option<u64>,
    /// The licence of the weights, by its SPDX identifier where it has one.
    pub licence: String,
    /// What the licence forbids or asks for; `None` if nothing out of the ordinary.
    #[serde(default)]
    pub limits: Option<String>,
    /// How conversations are laid out; `None` if the model only completes text.
    #[serde(default)]
    pub chat: Option<String>,
    /// ISO 639-1 codes, as far as the makers name them.
    pub languages: Vec<String>,
    /// Share of French in the training data, in percent.
    #[serde(default)]
    pub french: Option<f64>,
    /// Whether the hub asks for an agreement first; `None` where that is not known.
    #[serde(default)]
    pub gated: Option<bool>,
    /// Why the model does not run although its family does.
    #[serde(default)]
    pub refused: Option<String>,
    /// Anything else worth knowing.
    #[serde(default)]
    pub note: Option<String>,
    /// The fields whose value was not seen at its source.
    #[serde(default)]
    pub unverified: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    model: Vec<Entry>,
}

impl Entry {
    /// Whether this crate can describe the model.
    #[must_use]
    pub fn runs(&self) -> bool {
        self.refused.is_none() && crate::FAMILIES.iter().any(|(family, _)| *family == self.family)
    }

    /// Whether the value of `field` was seen at its source.
    #[must_use]
    pub fn is_verified(&self, field: &str) -> bool {
        !self.unverified.iter().any(|name| name == field)
    }

    /// Bytes of all weights at `bits` per weight.
    #[must_use]
    pub fn bytes(&self, bits: f64) -> u64 {
        (self.parameters * 1e9 * bits / 8.0) as u64
    }
}

/// All models, in the order of the file.
///
/// ```
/// let entries = tramontane_models::catalogue::entries();
/// assert!(entries.iter().any(|e| e.repository == "OpenLLM-France/Lucie-7B" && e.runs()));
/// ```
#[must_use]
pub fn entries() -> &'static [Entry] {
    &ENTRIES
}

/// The model with this short name, in any case of its letters.
///
/// ```
/// use tramontane_models::catalogue;
/// let entry = catalogue::by_name("Ministral-3-3B").unwrap();
/// assert_eq!(entry.repository, "mistralai/Ministral-3-3B-Instruct-2512");
/// assert_eq!(catalogue::by_repository(&entry.repository), Some(entry));
/// ```
#[must_use]
pub fn by_name(name: &str) -> Option<&'static Entry> {
    entries().iter().find(|entry| entry.name.eq_ignore_ascii_case(name))
}

/// The model of this repository; the hub does not tell letters by their case.
#[must_use]
pub fn by_repository(repository: &str) -> Option<&'static Entry> {
    entries().iter().find(|entry| entry.repository.eq_ignore_ascii_case(repository))
}

fn read(text: &str) -> Result<Vec<Entry>, basic_toml::Error> {
    Ok(basic_toml::from_str::<File>(text)?.model)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// Families that are in the catalogue although they do not run: whoever asks for such a model learns why.
    const OTHERS: [&str; 2] = ["LlavaForConditionalGeneration", "VoxtralForConditionalGeneration"];

    #[test]
    fn the_catalogue_can_be_read() {
        assert!(read(TEXT).unwrap().len() > 90);
    }

    #[test]
    fn names_and_repositories_are_well_formed_and_occur_once() {
        let (mut names, mut repositories) = (HashSet::new(), HashSet::new());
        for e in entries() {
            let letter =
                |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
            assert!(e.name.chars().all(letter), "{}", e.name);
            assert_eq!(e.repository.split('/').count(), 2, "{}", e.repository);
            assert!(names.insert(&e.name), "{} occurs twice", e.name);
            let repository = e.repository.to_lowercase();
            assert!(repositories.insert(repository), "{} occurs twice", e.repository);
        }
    }

    #[test]
    fn every_family_runs_or_is_known_not_to() {
        for e in entries() {
            let cannot = OTHERS.contains(&&*e.family) || e.refused.is_some();
            assert!(e.runs() != cannot, "{}: {}", e.name, e.family);
        }
    }

    #[test]
    fn numbers_and_codes_make_sense() {
        for e in entries() {
            assert!((0.01..2000.0).contains(&e.parameters), "{}", e.name);
            assert!(e.active.is_none_or(|active| active > 0.0 && active < e.parameters));
            assert!(e.french.is_none_or(|share| share > 0.0 && share <= 100.0));
            let code = |l: &String| l.len() == 2 && l.bytes().all(|b| b.is_ascii_lowercase());
            assert!(e.languages.iter().all(code), "{}", e.name);
            assert!(!e.licence.is_empty() && e.limits.as_deref() != Some(""), "{}", e.name);
        }
    }

    #[test]
    fn what_is_not_verified_is_a_field_that_is_there() {
        for e in entries() {
            let fields = serde_json::to_value(e).unwrap();
            for field in &e.unverified {
                assert!(!fields[field].is_null(), "{}: `{field}` has no value", e.name);
            }
        }
    }

    #[test]
    fn an_unknown_field_is_an_error() {
        let line = "license = \"MIT\"\n";
        let text = TEXT.replacen("licence = ", &format!("{line}licence = "), 1);
        assert!(read(&text).unwrap_err().to_string().contains("license"));
    }
}
