//! Which names of repositories, revisions and files are taken from the outside.
//!
//! They become parts of paths and of addresses, so everything that could mean something else there is refused.

use crate::error::{Error, Result};

/// Checks the name of a repository, `org/name`.
///
/// The rules are the hub's own: letters, digits, `-`, `_` and `.`; no `--` and no `..`; 96 characters at most.
pub(super) fn check_repo(repo: &str) -> Result<()> {
    let bad = |why: &str| {
        Err(Error::bad_input(format!("`{repo}` cannot be a model on the hub: {why}"))
            .hint("org/name or org/name@revision"))
    };
    let parts: Vec<&str> = repo.split('/').collect();
    if parts.len() != 2 {
        return bad("expected one `/`");
    }
    if repo.len() > 96 || repo.contains("--") || repo.contains("..") || repo.ends_with(".git") {
        return bad("no more than 96 characters, no `--`, `..` or ending `.git`");
    }
    let letter = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let edge = |c: char| matches!(c, '-' | '.');
    for part in parts {
        if part.is_empty() || part.starts_with(edge) || part.ends_with(edge) {
            return bad("a part is empty, or begins or ends with `-` or `.`");
        }
        if !part.chars().all(letter) {
            return bad("expected letters, digits, `-`, `_` and `.`");
        }
    }
    Ok(())
}

/// Checks the name of a branch, a tag or a commit, which becomes a path under `refs/`.
pub(super) fn check_revision(revision: &str) -> Result<()> {
    let letter = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | '+');
    let safe = !revision.is_empty()
        && revision.len() <= 200
        && revision.chars().all(letter)
        && revision.split('/').all(|part| !part.is_empty() && !part.starts_with('.'));
    if safe {
        return Ok(());
    }
    Err(Error::bad_input(format!("`{revision}` cannot be the name of a revision"))
        .hint("a branch, a tag or a commit, such as main or v1.0"))
}

/// Whether `text` is `n` hexadecimal digits in lower case.
#[cfg(feature = "hub")]
pub(super) fn is_hex(text: &str, n: usize) -> bool {
    text.len() == n && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_follow_the_rules_of_the_hub() {
        for good in ["mistralai/Mistral-7B-v0.1", "a/b", "OpenLLM-France/Lucie_7B.x"] {
            check_repo(good).unwrap();
        }
        let long = format!("a/{}", "b".repeat(95));
        for bad in [
            "a",
            "a/",
            "/b",
            "a/b/c",
            "a/..",
            "a/b..c",
            "a/b--c",
            "a/.b",
            "a/b-",
            "a/b c",
            "a/b%2f",
            "a\\b/c",
            "a/b.git",
            "à/b",
            "a/b\u{1b}",
            &long,
        ] {
            assert!(check_repo(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn revisions_stay_under_refs() {
        for good in ["main", "refs/pr/1", "v1.0", "0123456789abcdef"] {
            check_revision(good).unwrap();
        }
        for bad in ["", "/", "a/", "../x", "a/../b", ".hidden", "a\\b", "a:b", "a b", "a\n", "C:/x"]
        {
            assert!(check_revision(bad).is_err(), "{bad}");
        }
    }
}
