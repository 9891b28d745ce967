//! What the catalogue says about one model, for `pull` and `inspect`.

use tramontane_models::catalogue::{self, Entry};

/// The entry of the model that reports call `name`: a repository with or without a revision, or a folder of the
/// hub's cache.
pub(super) fn entry_of(name: &str) -> Option<&'static Entry> {
    if let Some((_, rest)) = name.rsplit_once("models--") {
        let folder = rest.split(['/', '\\']).next().unwrap_or_default();
        return catalogue::by_repository(&folder.replacen("--", "/", 1));
    }
    catalogue::by_repository(name.split('@').next().unwrap_or(name))
}

/// What somebody should know before taking the model, line by line.
pub(super) fn notices(entry: &Entry, endpoint: &str) -> Vec<String> {
    let doubt = if entry.is_verified("licence") { "" } else { " (as far as is known)" };
    let limits = entry.limits.as_ref().map(|limits| format!(": {limits}")).unwrap_or_default();
    let mut lines = vec![format!("licence {}{doubt}{limits}", entry.licence)];
    if entry.gated == Some(true) {
        lines.push(format!(
            "gated: agree to the conditions at {endpoint}/{} first, and set HF_TOKEN",
            entry.repository
        ));
    }
    if let Some(why) = &entry.refused {
        lines.push(format!("does not run yet: {why}"));
    } else if !entry.runs() {
        lines.push(format!("{} is not among the families that run yet", entry.family));
    }
    lines.extend(entry.note.clone());
    lines
}

/// The facts of an entry that a model's own files do not tell: label and value.
pub(super) fn facts(entry: &Entry) -> Vec<(&'static str, String)> {
    let mut facts = vec![("short name", entry.name.clone())];
    let licence = notices(entry, "").swap_remove(0);
    facts.push(("licence", licence.trim_start_matches("licence ").to_owned()));
    if !entry.languages.is_empty() {
        let french =
            entry.french.map(|share| format!(" ({share} % of the training data is French)"));
        facts.push(("languages", entry.languages.join(", ") + &french.unwrap_or_default()));
    }
    facts.extend(entry.note.clone().map(|note| ("note", note)));
    facts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_and_conditions_are_told() {
        let lines =
            notices(catalogue::by_name("pixtral-large-124b").unwrap(), "https://hub.example");
        assert!(lines[0].contains("MRL-0.1: research only"), "{lines:?}");
        assert!(lines[1].contains("https://hub.example/mistralai/Pixtral-Large"), "{lines:?}");
        assert!(lines[2].contains("not among the families"), "{lines:?}");
        let plain = notices(catalogue::by_name("mistral-7b").unwrap(), "");
        assert_eq!(plain, ["licence Apache-2.0"]);
    }

    #[test]
    fn models_are_known_by_repository_revision_and_folder_of_the_cache() {
        for name in [
            "openllm-france/Lucie-7B",
            "OpenLLM-France/Lucie-7B@main",
            "/c/models--OpenLLM-France--Lucie-7B/snapshots/0123",
        ] {
            assert_eq!(entry_of(name).map(|e| &*e.name), Some("lucie-7b-base"), "{name}");
        }
        assert_eq!(entry_of("/some/folder"), None);
    }
}
