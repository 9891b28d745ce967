//! JSON between the conversation, the template and the prompt, as Python reads and writes it.
//!
//! Prompts hold tool schemas and arguments as `json.dumps` of Python 3 writes them, in the settings that the
//! `tojson` of Hugging Face transformers has: any other spacing or number format is another prompt.

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind, State};
use serde_json::Value as Json;

/// Containers inside containers that are still written as JSON; deeper ones come from a hostile template.
const MAX_DEPTH: usize = 100;

/// The template's value for the JSON value `json`.
pub(super) fn to_template(json: &Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(b) => Value::from(*b),
        Json::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(n), _) => Value::from(n),
            (None, Some(n)) => Value::from(n),
            (None, None) => Value::from(n.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => items.iter().map(to_template).collect(),
        Json::Object(fields) => Value::from_pairs(
            fields.iter().map(|(name, value)| (name.as_str(), to_template(value))),
        ),
    }
}

/// `number` as Python writes it: the shortest digits that read back equal, an exponent from 1e16 on.
pub(super) fn float(number: f64) -> String {
    if number.is_nan() {
        return "NaN".into();
    }
    if number.is_infinite() {
        return if number > 0.0 { "Infinity".into() } else { "-Infinity".into() };
    }
    let size = number.abs();
    if size != 0.0 && !(1e-4..1e16).contains(&size) {
        // Rust writes 1e-5 where Python writes 1e-05.
        let scientific = format!("{number:e}");
        let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
        let (sign, exponent) =
            exponent.strip_prefix('-').map_or(("+", exponent), |exponent| ("-", exponent));
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    let plain = format!("{number}");
    if plain.contains('.') { plain } else { plain + ".0" }
}

/// How `json.dumps` is to write.
struct Dumps {
    ascii: bool,
    indent: Option<String>,
    item: String,
    pair: String,
    sorted: bool,
}

impl Dumps {
    /// `json.dumps(value, ensure_ascii=False)`.
    fn plain() -> Self {
        Self { ascii: false, indent: None, item: ", ".into(), pair: ": ".into(), sorted: false }
    }
}

/// `json` as `json.dumps(…, ensure_ascii=False)` writes it.
pub(super) fn dumps(json: &Json) -> String {
    let mut out = String::new();
    // No limit on steps: a JSON value was parsed under a depth limit of its own and holds nothing that JSON has not.
    match write(&mut out, &to_template(json), &Dumps::plain(), 0, &|_| Ok(())) {
        Ok(()) => out,
        Err(_) => json.to_string(),
    }
}

/// The filter `tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
pub(super) fn tojson(
    state: &State,
    value: &Value,
    ensure_ascii: Option<Value>,
    indent: Option<Value>,
    kwargs: Kwargs,
) -> Result<String, Error> {
    let ensure_ascii = ensure_ascii.or(kwargs.get("ensure_ascii")?);
    let indent = indent.or(kwargs.get("indent")?);
    let separators: Option<Value> = kwargs.get("separators")?;
    let sorted: Option<Value> = kwargs.get("sort_keys")?;
    kwargs.assert_all_used()?;
    let mut how = Dumps::plain();
    how.ascii = ensure_ascii.is_some_and(|value| value.is_true());
    how.sorted = sorted.is_some_and(|value| value.is_true());
    how.indent = indent.filter(|value| !value.is_none()).map(indentation).transpose()?;
    if how.indent.is_some() {
        how.item = ",".into();
    }
    if let Some(pair) = separators.filter(|value| !value.is_none()) {
        how.item = pair.get_item_by_index(0)?.to_string();
        how.pair = pair.get_item_by_index(1)?.to_string();
    }
    let mut out = String::new();
    write(&mut out, value, &how, 0, &|steps| state.consume_fuel(steps))?;
    Ok(out)
}

/// One level of `indent`, which is a number of spaces or the text itself.
fn indentation(indent: Value) -> Result<String, Error> {
    if let Some(text) = indent.as_str() {
        return Ok(text.to_owned());
    }
    let spaces = usize::try_from(indent).unwrap_or(0);
    if spaces > 64 {
        return Err(Error::new(ErrorKind::InvalidOperation, format!("tojson indents by {spaces}")));
    }
    Ok(" ".repeat(spaces))
}

/// Pays for steps.
type Pay<'a> = &'a dyn Fn(u64) -> Result<(), Error>;

fn write(
    out: &mut String,
    value: &Value,
    how: &Dumps,
    depth: usize,
    pay: Pay<'_>,
) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(Error::new(
            ErrorKind::InvalidOperation,
            "tojson: the value is nested too deeply",
        ));
    }
    // A step for the value, and one for every 64 bytes of it.
    pay(1 + value.as_str().map_or(0, str::len) as u64 / 64)?;
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number if value.is_integer() => out.push_str(&value.to_string()),
        ValueKind::Number => out.push_str(&float(f64::try_from(value.clone())?)),
        ValueKind::String => quote(out, value.as_str().unwrap_or_default(), how.ascii),
        ValueKind::Seq | ValueKind::Iterable => {
            let items = value.try_iter()?;
            container(out, ('[', ']'), items, how, depth, |out, item| {
                write(out, item, how, depth + 1, pay)
            })?;
        }
        ValueKind::Map => {
            let mut keys = value.try_iter()?.collect::<Vec<_>>();
            if how.sorted {
                keys.sort();
            }
            container(out, ('{', '}'), keys.into_iter(), how, depth, |out, key| {
                if key.kind() == ValueKind::String {
                    write(out, key, how, depth + 1, pay)?;
                } else {
                    // Python writes the keys 1, true and null as text.
                    out.push('"');
                    write(out, key, how, depth + 1, pay)?;
                    out.push('"');
                }
                out.push_str(&how.pair);
                write(out, &value.get_item(key)?, how, depth + 1, pay)
            })?;
        }
        kind @ (ValueKind::Undefined
        | ValueKind::Bytes
        | ValueKind::Plain
        | ValueKind::Invalid
        | _) => {
            return Err(Error::new(
                ErrorKind::BadSerialization,
                format!("a value of the kind {kind} cannot be written as JSON"),
            ));
        }
    }
    Ok(())
}

/// Writes `items` between brackets, on lines of their own if `how` indents.
fn container(
    out: &mut String,
    (open, close): (char, char),
    items: impl Iterator<Item = Value>,
    how: &Dumps,
    depth: usize,
    mut one: impl FnMut(&mut String, &Value) -> Result<(), Error>,
) -> Result<(), Error> {
    let line = |out: &mut String, depth: usize| {
        if let Some(indent) = &how.indent {
            out.push('\n');
            (0..depth).for_each(|_| out.push_str(indent));
        }
    };
    out.push(open);
    let mut empty = true;
    for item in items {
        if !empty {
            out.push_str(&how.item);
        }
        empty = false;
        line(out, depth + 1);
        one(out, &item)?;
    }
    if !empty {
        line(out, depth);
    }
    out.push(close);
    Ok(())
}

fn quote(out: &mut String, text: &str, ascii: bool) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if c < ' ' || (ascii && c > '~') => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn floats_are_written_as_python_writes_them() {
        let cases = [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (31.5, "31.5"),
            (1.0, "1.0"),
            (0.1 + 0.2, "0.30000000000000004"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e-7, "1.5e-07"),
            (1e-4, "0.0001"),
            (-1e-5, "-1e-05"),
            (1e300, "1e+300"),
            (f64::NEG_INFINITY, "-Infinity"),
        ];
        for (number, text) in cases {
            assert_eq!(float(number), text);
        }
    }

    #[test]
    fn json_is_written_as_python_writes_it() {
        let value =
            json!({"z": [1, -2.0, true, null], "a": "é \"\\\n\u{1}\u{7f}<&'", "e": {}, "l": []});
        let text = "{\"z\": [1, -2.0, true, null], \"a\": \"é \\\"\\\\\\n\\u0001\u{7f}<&'\", \"e\": {}, \"l\": []}";
        assert_eq!(dumps(&value), text);
    }
}
