//! The forms of the report.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Map, Value};
use tramontane::Error;
use tramontane::error::Result;

use super::{Form, Record};
use crate::cli::talk;

/// Speeds of an earlier report: what identifies a test, and its median tokens per second.
pub(super) type Earlier = Vec<(String, f64)>;

/// Reads the json or jsonl report at `path`.
pub(super) fn read_earlier(path: &Path) -> Result<Earlier> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    let bad = |e: String| {
        Error::bad_input(format!("not a report in json or jsonl: {e}")).at(path.display())
    };
    let values: Vec<Value> = if text.trim_start().starts_with('[') {
        serde_json::from_str(&text).map_err(|e| bad(e.to_string()))?
    } else {
        text.lines()
            .map(serde_json::from_str)
            .collect::<std::result::Result<_, _>>()
            .map_err(|e| bad(e.to_string()))?
    };
    let speed = |value: &Value| {
        let ts = value["median_ts"].as_f64().or(value["avg_ts"].as_f64());
        ts.map(|ts| (key(value), ts)).ok_or_else(|| bad("a record has no avg_ts".to_owned()))
    };
    values.iter().map(speed).collect()
}

/// What identifies a test within reports of one model. llama-bench has no `format`; its records match any.
fn key(value: &Value) -> String {
    let fields = ["n_prompt", "n_gen", "n_depth", "n_threads"].map(|f| value[f].to_string());
    format!("{} {}", fields.join(" "), value["format"].as_str().unwrap_or(""))
}

fn find(earlier: Option<&[(String, f64)]>, record: &Value) -> Option<f64> {
    let own = key(record);
    let any_format = own.rsplit_once(' ').map_or("", |(test, _)| test);
    let found = |k: &String| *k == own || k.trim_end() == any_format;
    earlier?.iter().find(|(k, _)| found(k)).map(|(_, ts)| *ts)
}

/// The report.
pub(super) fn text(form: Form, records: &[Record], earlier: Option<&[(String, f64)]>) -> String {
    let objects: Vec<Map<String, Value>> = records.iter().map(|r| object(r, earlier)).collect();
    match form {
        Form::Md => table(records, earlier),
        Form::Json => serde_json::to_string_pretty(&objects).unwrap_or_default() + "\n",
        Form::Jsonl => {
            objects.iter().map(|o| Value::Object(o.clone()).to_string() + "\n").collect()
        }
        Form::Csv => csv(&objects),
        Form::Sql => sql(&objects),
    }
}

fn object(record: &Record, earlier: Option<&[(String, f64)]>) -> Map<String, Value> {
    let Ok(Value::Object(mut object)) = serde_json::to_value(record) else { return Map::new() };
    if let Some(ts) = find(earlier, &Value::Object(object.clone())) {
        object.insert("earlier_ts".to_owned(), ts.into());
        object.insert("ratio".to_owned(), (record.median_ts / ts).into());
    }
    object
}

fn table(records: &[Record], earlier: Option<&[(String, f64)]>) -> String {
    let Some(first) = records.first() else { return String::new() };
    let compare = if earlier.is_some() { " earlier | ratio |" } else { "" };
    let rule = if earlier.is_some() { "--:|--:|" } else { "" };
    let mut out = format!(
        "| model | size | params | backend | threads | format | kv | test | t/s | median | ceiling | chars/s | words/s |{compare}\n\
         |---|--:|--:|---|--:|---|---|---|--:|--:|--:|--:|--:|{rule}\n"
    );
    let maybe =
        |x: Option<f64>, unit: &str| x.map_or_else(|| "–".to_owned(), |x| format!("{x:.0}{unit}"));
    for r in records {
        let _ = write!(
            out,
            "| {} | {} | {} | {} | {} | {} | {} | {} | {:.2} ± {:.2} | {:.2} | {} | {} | {} |",
            r.model_filename,
            talk::bytes(r.model_size),
            talk::count(r.model_n_params),
            r.isa,
            r.n_threads,
            r.format,
            r.type_k,
            r.test,
            r.avg_ts,
            r.stddev_ts,
            r.median_ts,
            maybe(r.roofline_percent, " %"),
            maybe(r.chars_s, ""),
            maybe(r.words_s, ""),
        );
        if earlier.is_some() {
            let value = serde_json::to_value(r).unwrap_or_default();
            let _ = match find(earlier, &value) {
                Some(ts) => write!(out, " {ts:.2} | {:.2} |", r.median_ts / ts),
                None => write!(out, " – | – |"),
            };
        }
        out.push('\n');
    }
    let _ = writeln!(
        out,
        "\n{}, {} on {}; governor {}; memory read at {:.1} GB/s (the ceiling); one uncounted run before each test; \
         tokenising and sampling are outside the timer",
        first.engine, first.isa, first.cpu_info, first.governor, first.bandwidth_gb_s
    );
    for r in records.iter().filter(|r| r.load_cold_ms.is_some()) {
        let cold = r.load_cold_ms.unwrap_or(r.load_ms);
        let line = format!(
            "loaded as {} in {:.0} ms, {cold:.0} with the files out of the page cache\n",
            r.format, r.load_ms
        );
        if !out.contains(&line) {
            out += &line;
        }
    }
    out
}

fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => value.to_string(),
    }
}

fn csv(objects: &[Map<String, Value>]) -> String {
    let quoted = |text: String| format!("\"{}\"", text.replace('"', "\"\""));
    let Some(first) = objects.first() else { return String::new() };
    let mut out = first.keys().cloned().collect::<Vec<_>>().join(",") + "\n";
    for object in objects {
        let fields: Vec<String> = first
            .keys()
            .map(|key| quoted(object.get(key).map(plain).unwrap_or_default()))
            .collect();
        out += &(fields.join(",") + "\n");
    }
    out
}

fn sql(objects: &[Map<String, Value>]) -> String {
    let Some(first) = objects.first() else { return String::new() };
    let kind = |value: &Value| {
        if value.is_f64() {
            "REAL"
        } else if value.is_number() {
            "INTEGER"
        } else {
            "TEXT"
        }
    };
    let columns: Vec<String> =
        first.iter().map(|(name, value)| format!("  {name} {}", kind(value))).collect();
    let mut out =
        format!("CREATE TABLE IF NOT EXISTS tramontane_bench (\n{}\n);\n\n", columns.join(",\n"));
    for object in objects {
        let values: Vec<String> = first
            .keys()
            .map(|key| {
                format!("'{}'", object.get(key).map(plain).unwrap_or_default().replace('\'', "''"))
            })
            .collect();
        let names = first.keys().cloned().collect::<Vec<_>>().join(", ");
        let _ =
            writeln!(out, "INSERT INTO tramontane_bench ({names}) VALUES ({});", values.join(", "));
    }
    out
}
