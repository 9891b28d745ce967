//! `list`: the models that are on this machine, or all that the catalogue knows.

mod catalogue;

use std::process::ExitCode;
use std::time::SystemTime;

use jiff::Timestamp;
use serde_json::{Value, json};
use tramontane::error::{Result, printable};
use tramontane::hub::{self, BUILT_IN, CachedModel, HubOptions};

use super::generate::print;
use super::talk;
use catalogue::Filter;

/// List the models on this machine, or the open French models that are known
///
/// The models on this machine are the built-in one and those in the cache of the hub.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Print a JSON list instead of a table
    #[arg(long, env = "TRAMONTANE_JSON")]
    json: bool,

    #[command(flatten)]
    filter: Filter,
}

pub(super) fn run(args: Args) -> Result<ExitCode> {
    if args.filter.catalogue {
        catalogue::list(&args.filter, args.json)?;
        return Ok(ExitCode::SUCCESS);
    }
    let models = hub::list_cached(&HubOptions::from_env())?;
    if args.json {
        let models: Vec<Value> =
            built_in_json().into_iter().chain(models.iter().map(report)).collect();
        print(&format!("{}\n", Value::from(models)))?;
    } else {
        print(&table(&models))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// How the built-in model stands in the list; `None` if there is none.
fn built_in_json() -> Option<Value> {
    cfg!(feature = "embedded").then(|| {
        json!({
            "name": BUILT_IN,
            "revisions": [],
            "commit": null,
            "path": null,
            "bytes": null,
            "complete": true,
            "last_used": null,
        })
    })
}

/// The JSON object of one model: its field names are stable.
fn report(model: &CachedModel) -> Value {
    json!({
        "name": model.name,
        "revisions": model.revisions,
        "commit": model.commit,
        "path": model.path.to_string_lossy(),
        "bytes": model.bytes,
        "complete": model.complete,
        "last_used": last_used(model.last_used),
    })
}

/// A time as RFC 3339 has it, to the second.
fn last_used(time: Option<SystemTime>) -> Option<String> {
    let time = Timestamp::try_from(time?).ok()?;
    Some(Timestamp::from_second(time.as_second()).ok()?.to_string())
}

/// The list as a table for people.
fn table(models: &[CachedModel]) -> String {
    let mut rows = vec![["NAME", "REVISION", "SIZE", "STATE", "LAST USED"].map(str::to_owned)];
    if cfg!(feature = "embedded") {
        rows.push([BUILT_IN, "", "", "built in", ""].map(str::to_owned));
    }
    rows.extend(models.iter().map(row));
    talk::columns(&rows)
}

fn row(model: &CachedModel) -> [String; 5] {
    let revision = match &model.revisions[..] {
        [] => model.commit.chars().take(12).collect(),
        names => names.join(", "),
    };
    [
        // Names of folders: anybody may have made them.
        printable(&model.name),
        printable(&revision),
        talk::bytes(model.bytes),
        if model.complete { "complete" } else { "incomplete" }.to_owned(),
        last_used(model.last_used).map_or(String::new(), |time| time.chars().take(10).collect()),
    ]
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_table_is_aligned() {
        let model = CachedModel {
            name: "org/a-long-name".into(),
            revisions: Vec::new(),
            commit: "0123456789abcdef".into(),
            path: "/c".into(),
            bytes: 9_380_000_000,
            complete: false,
            last_used: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1)),
        };
        let table = table(&[model]);
        let lines: Vec<&str> = table.lines().collect();
        let last = lines[lines.len() - 1];
        assert_eq!(last.find("0123456789ab  "), lines[0].find("REVISION"));
        assert_eq!(last.find("incomplete"), lines[0].find("STATE"));
        assert!(last.ends_with("incomplete  1970-01-01") && last.contains("9.38 GB"), "{last}");
    }
}
