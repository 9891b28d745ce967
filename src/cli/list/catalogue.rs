//! `list --catalogue`: the open French models that are known, and which of them fit this machine.

use serde_json::{Value, json};
use tramontane::error::Result;
use tramontane::{Format, memory};
use tramontane_models::catalogue::{self, Entry};

use crate::cli::args::FormatArg;
use crate::cli::generate::print;
use crate::cli::talk;

/// Formats that the table tells the memory for; `--json` tells all.
const COLUMNS: [Format; 3] = [Format::Q4, Format::Q8, Format::Bf16];
/// What a model needs besides its weights, as a share of them: the cache of a short conversation, and buffers.
const BESIDES: f64 = 0.1;
/// Languages that the table names.
const N_LANGUAGES: usize = 4;

/// Which models of the catalogue are listed.
#[derive(clap::Args)]
#[command(next_help_heading = "Catalogue")]
pub(in crate::cli) struct Filter {
    /// List the open French models that are known instead of those on this machine
    #[arg(long, env = "TRAMONTANE_CATALOGUE")]
    pub(in crate::cli) catalogue: bool,

    /// Only models of this family: a part of its name in `architectures`, such as mistral
    #[arg(long, value_name = "NAME", env = "TRAMONTANE_FAMILY", requires = "catalogue")]
    family: Option<String>,

    /// Only models under this licence: a part of its identifier, such as apache
    #[arg(long, value_name = "NAME", env = "TRAMONTANE_LICENCE", requires = "catalogue")]
    licence: Option<String>,

    /// Only models made for this language, by its two letters, such as fr
    #[arg(long, value_name = "CODE", env = "TRAMONTANE_LANGUAGE", requires = "catalogue")]
    language: Option<String>,

    /// Only models that run here: in the memory that is free now, with weights in this format
    #[arg(
        long,
        value_enum,
        value_name = "FORMAT",
        env = "TRAMONTANE_FITS",
        requires = "catalogue"
    )]
    fits: Option<FormatArg>,
}

impl Filter {
    fn takes(&self, entry: &Entry, free: Option<u64>) -> bool {
        let within = |part: &Option<String>, whole: &str| {
            part.as_ref().is_none_or(|part| whole.to_lowercase().contains(&part.to_lowercase()))
        };
        let speaks = |code: &String| entry.languages.iter().any(|l| l.eq_ignore_ascii_case(code));
        within(&self.family, &entry.family)
            && within(&self.licence, &entry.licence)
            && self.language.as_ref().is_none_or(speaks)
            && self.fits.is_none_or(|format| {
                entry.runs() && fits(entry, format.format(), free) == Some(true)
            })
    }
}

/// Prints the models of the catalogue that `filter` takes.
pub(in crate::cli) fn list(filter: &Filter, as_json: bool) -> Result<()> {
    let free = memory::available();
    let entries = catalogue::entries().iter().filter(|entry| filter.takes(entry, free));
    if as_json {
        let list: Vec<Value> = entries.map(|entry| report(entry, free)).collect();
        return print(&format!("{}\n", Value::from(list)));
    }
    print(&table(&entries.collect::<Vec<_>>(), free))
}

/// Bytes that a model needs with weights in `format` and a short conversation. Weights stored in a mix of formats
/// take about what 16 bits do.
fn needed(entry: &Entry, format: Format) -> u64 {
    let weights = entry.bytes(format.bits().unwrap_or(16.0));
    weights + (weights as f64 * BESIDES) as u64
}

/// Whether a model fits into what is free; `None` where that is not known.
fn fits(entry: &Entry, format: Format, free: Option<u64>) -> Option<bool> {
    Some(needed(entry, format) <= free?)
}

/// The JSON object of one model: its field names are stable.
fn report(entry: &Entry, free: Option<u64>) -> Value {
    let need = |format: &Format| {
        let need = json!({ "bytes": needed(entry, *format), "fits": fits(entry, *format, free) });
        (format.to_string(), need)
    };
    let mut value = serde_json::to_value(entry).unwrap_or_default();
    value["runs"] = entry.runs().into();
    value["memory"] = Value::Object(Format::ALL.iter().map(need).collect());
    value
}

/// The list as a table for people.
fn table(entries: &[&Entry], free: Option<u64>) -> String {
    let mut rows = vec![
        [
            "NAME",
            "SIZE",
            "CONTEXT",
            "Q4",
            "Q8",
            "BF16",
            "LICENCE",
            "CHAT",
            "LANGUAGES",
            "REPOSITORY",
        ]
        .map(str::to_owned),
    ];
    rows.extend(entries.iter().map(|entry| row(entry, free)));
    let mut text = talk::columns(&rows);
    text += "\n! does not fit into the memory that is free";
    text += &free.map_or(" (unknown)".to_owned(), |free| format!(" ({})", talk::bytes(free)));
    text + "; * has limits; ? not seen at its source; (gated) asks for an agreement; (no) does not run yet\n"
}

fn row(entry: &Entry, free: Option<u64>) -> [String; 10] {
    let [q4, q8, bf16] = COLUMNS.map(|format| {
        let mark = if fits(entry, format, free) == Some(false) { "!" } else { "" };
        format!("{}{mark}", talk::bytes(needed(entry, format)))
    });
    let doubt = |field: &str| if entry.is_verified(field) { "" } else { "?" };
    let limits = if entry.limits.is_some() { "*" } else { "" };
    let mut languages = entry.languages.clone();
    let more = languages.len().saturating_sub(N_LANGUAGES);
    languages.truncate(N_LANGUAGES);
    let more = if more > 0 { format!(" +{more}") } else { String::new() };
    let gated = if entry.gated == Some(true) { " (gated)" } else { "" };
    let not_yet = if entry.runs() { "" } else { " (no)" };
    [
        format!("{}{not_yet}", entry.name),
        format!("{}{}", size(entry), doubt("parameters")),
        entry.context.map_or(String::new(), |n| format!("{n}{}", doubt("context"))),
        q4,
        q8,
        bf16,
        format!("{}{limits}{}", entry.licence, doubt("licence")),
        entry.chat.clone().unwrap_or_else(|| "no".to_owned()),
        format!("{}{more}", languages.join(" ")),
        format!("{}{gated}", entry.repository),
    ]
}

/// The number of parameters as people say it.
fn size(entry: &Entry) -> String {
    talk::count((entry.parameters * 1e9) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(filter: &Filter, free: u64) -> Vec<&'static str> {
        let entries = catalogue::entries().iter().filter(|e| filter.takes(e, Some(free)));
        entries.map(|e| e.name.as_str()).collect()
    }

    fn filter() -> Filter {
        Filter { catalogue: true, family: None, licence: None, language: None, fits: None }
    }

    #[test]
    fn filters_are_all_to_be_met() {
        let all = named(&filter(), 0);
        assert_eq!(all.len(), catalogue::entries().len());
        let french = Filter { language: Some("FR".into()), ..filter() };
        let french = named(&french, 0);
        assert!(french.contains(&"lucie-7b") && !french.contains(&"monad"));
        let few = Filter {
            family: Some("llama".into()),
            licence: Some("mit".into()),
            language: Some("fr".into()),
            ..filter()
        };
        assert_eq!(named(&few, 0), ["croissant-1b-base", "croissant-1b"]);
    }

    #[test]
    fn what_fits_depends_on_the_format() {
        let fits = |format, free| {
            let filter = Filter { fits: Some(format), ..filter() };
            named(&filter, free)
        };
        let free = 5_000_000_000;
        assert!(fits(FormatArg::Q4, free).contains(&"lucie-7b"));
        assert!(!fits(FormatArg::Q8, free).contains(&"lucie-7b"));
        assert!(!fits(FormatArg::Q4, free).contains(&"voxtral-mini-3b"), "it does not run");
        assert!(fits(FormatArg::Q4, 0).is_empty());
    }
}
