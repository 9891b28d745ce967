//! What templates expect of Python: its string methods, and some filters and tests of jinja2.
//!
//! Chat templates are written against jinja2 and tested there only. minijinja speaks the language; this file
//! adds what it leaves to the host or answers otherwise.

use minijinja::value::{Kwargs, Tuple, Value, ValueKind, from_args};
use minijinja::{Error, ErrorKind, Output, State};

use super::json::float;

/// Whether Python's `str.isspace` holds for `c`: the separators U+001C to U+001F count, too.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// A method that a template calls and minijinja does not know.
pub(super) fn method(
    state: &mut State,
    value: &Value,
    name: &str,
    args: &[Value],
) -> Result<Value, Error> {
    if let Some(text) = value.as_str()
        && let Some(answer) = text_method(text, name, args)
    {
        return answer;
    }
    if name == "format" && value.as_str().is_some_and(|text| !has_small_widths(text)) {
        return Err(Error::new(
            ErrorKind::InvalidOperation,
            "a field is wider than 9999 characters",
        ));
    }
    if value.kind() == ValueKind::Seq
        && let Some(answer) = list_method(value, name, args)
    {
        return answer;
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)
}

/// Whether no field of a format string, as in `{:>10}`, can be very wide: padding is not paid for.
fn has_small_widths(format: &str) -> bool {
    let long_number = |digits: &str| digits.len() > 4;
    let numbers = format.split(|c: char| !c.is_ascii_digit());
    let nested = format.split('{').any(|field| field.ends_with(':') || field.ends_with('.'));
    !numbers.into_iter().any(long_number) && !nested
}

/// The methods of `str` that minijinja-contrib lacks or answers otherwise than Python.
fn text_method(text: &str, name: &str, args: &[Value]) -> Option<Result<Value, Error>> {
    let answer = match name {
        "strip" => strip(text, args, true, true),
        "lstrip" => strip(text, args, true, false),
        "rstrip" => strip(text, args, false, true),
        "removeprefix" => from_args(args)
            .map(|(prefix,): (&str,)| Value::from(text.strip_prefix(prefix).unwrap_or(text))),
        "removesuffix" => from_args(args)
            .map(|(suffix,): (&str,)| Value::from(text.strip_suffix(suffix).unwrap_or(text))),
        "partition" => from_args(args).and_then(|(by,): (&str,)| {
            let cut = non_empty(by)?.and_then(|by| text.split_once(by));
            Ok(three(cut.map_or([text, "", ""], |(before, after)| [before, by, after])))
        }),
        "rpartition" => from_args(args).and_then(|(by,): (&str,)| {
            let cut = non_empty(by)?.and_then(|by| text.rsplit_once(by));
            Ok(three(cut.map_or(["", "", text], |(before, after)| [before, by, after])))
        }),
        "rsplit" => {
            from_args(args).and_then(|(by, n): (Option<&str>, Option<i64>)| rsplit(text, by, n))
        }
        "split" if args.first().is_some_and(|by| by.as_str() == Some("")) => {
            non_empty("").map(|_| Value::UNDEFINED)
        }
        "ljust" => padded(text, args, |_| 0),
        "rjust" => padded(text, args, |n| n),
        // Python puts the odd space to the left if the text is as long as an odd number.
        "center" => padded(text, args, |n| n / 2 + (n & text.chars().count() & 1)),
        "splitlines" if args.is_empty() => Ok(lines(text)),
        "index" | "rindex" => from_args(args).and_then(|(what,): (&str,)| {
            let found = if name == "index" { text.find(what) } else { text.rfind(what) };
            found
                .map(|at| Value::from(text[..at].chars().count()))
                .ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "substring not found"))
        }),
        "zfill" => {
            from_args(args).map(|(width,): (usize,)| Value::from(zfill(text, width.min(4096))))
        }
        "casefold" => from_args(args).map(|()| Value::from(text.to_lowercase())),
        "swapcase" => from_args(args).map(|()| Value::from(swapcase(text))),
        "isdecimal" => from_args(args)
            .map(|()| Value::from(!text.is_empty() && text.chars().all(|c| c.is_ascii_digit()))),
        _ => return None,
    };
    Some(answer)
}

fn list_method(list: &Value, name: &str, args: &[Value]) -> Option<Result<Value, Error>> {
    match name {
        "index" => Some(from_args(args).and_then(|(what,): (&Value,)| {
            let place = list.try_iter()?.position(|item| item == *what);
            place.map(Value::from).ok_or_else(|| {
                Error::new(ErrorKind::InvalidOperation, format!("{what} is not in the list"))
            })
        })),
        "copy" => Some(from_args(args).map(|()| list.clone())),
        _ => None,
    }
}

fn strip(text: &str, args: &[Value], start: bool, end: bool) -> Result<Value, Error> {
    let (chars,): (Option<&str>,) = from_args(args)?;
    Ok(Value::from(trim(text, chars, start, end)))
}

fn trim<'t>(text: &'t str, chars: Option<&str>, start: bool, end: bool) -> &'t str {
    let stripped = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
    let text = if start { text.trim_start_matches(stripped) } else { text };
    if end { text.trim_end_matches(stripped) } else { text }
}

/// The filter `trim(chars=None)`: Python's `str.strip`.
pub(super) fn trim_filter(value: &Value, chars: Option<&str>) -> Result<Value, Error> {
    match value.as_str() {
        Some(text) => Ok(Value::from(trim(text, chars, true, true))),
        None if value.is_undefined() => Ok(Value::from("")),
        None => Ok(Value::from(trim(&value.to_string(), chars, true, true))),
    }
}

/// The filter `int(default=0, base=10)`: what cannot be converted is the default.
pub(super) fn int(
    state: &State,
    value: &Value,
    default: Option<Value>,
    base: Option<u32>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    let default = default.or(kwargs.get("default")?).unwrap_or_else(|| Value::from(0));
    let trimmed = value.as_str().map(|text| Value::from(text.trim_matches(is_space)));
    minijinja::filters::int(state, trimmed.as_ref().unwrap_or(value), Some(default), base, kwargs)
}

/// The filter `float(default=0.0)`: what cannot be converted is the default.
pub(super) fn float_filter(
    state: &State,
    value: &Value,
    default: Option<Value>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    let default = default.or(kwargs.get("default")?).unwrap_or_else(|| Value::from(0.0));
    minijinja::filters::float(state, value, Some(default), kwargs)
}

/// The test `iterable`: null is not.
pub(super) fn is_iterable(value: &Value) -> bool {
    !value.is_none() && value.try_iter().is_ok()
}

/// The test `sequence`: what has a length and items, so text and mappings, too.
pub(super) fn is_sequence(value: &Value) -> bool {
    matches!(
        value.kind(),
        ValueKind::Seq
            | ValueKind::Map
            | ValueKind::String
            | ValueKind::Iterable
            | ValueKind::Undefined
    )
}

/// Writes the value of `{{ … }}`.
pub(super) fn print(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    if value.kind() == ValueKind::Number && !value.is_integer() {
        let number = match float(f64::try_from(value.clone())?).as_str() {
            "NaN" => "nan".to_owned(),
            "Infinity" => "inf".to_owned(),
            "-Infinity" => "-inf".to_owned(),
            finite => finite.to_owned(),
        };
        return out.write_str(&number).map_err(Error::from);
    }
    minijinja::escape_formatter(out, state, value)
}

fn non_empty(separator: &str) -> Result<Option<&str>, Error> {
    if separator.is_empty() {
        return Err(Error::new(ErrorKind::InvalidOperation, "empty separator"));
    }
    Ok(Some(separator))
}

fn three(parts: [&str; 3]) -> Value {
    Value::from(Tuple::from(parts.map(Value::from)))
}

fn rsplit(text: &str, by: Option<&str>, limit: Option<i64>) -> Result<Value, Error> {
    let times = limit.and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX - 1);
    let mut parts: Vec<&str> = match by {
        Some(by) => {
            non_empty(by)?;
            text.rsplitn(times.saturating_add(1), by).collect()
        }
        None => {
            let mut parts = Vec::new();
            let mut rest = text.trim_end_matches(is_space);
            while let Some(at) = rest.rfind(is_space).filter(|_| parts.len() < times) {
                let word = &rest[at..];
                parts.push(word.trim_start_matches(is_space));
                rest = rest[..at].trim_end_matches(is_space);
            }
            if !rest.is_empty() {
                parts.push(rest);
            }
            parts
        }
    };
    parts.reverse();
    Ok(parts.into_iter().map(Value::from).collect())
}

/// `str.splitlines()`: Python ends a line at more characters than `\n`.
fn lines(text: &str) -> Value {
    let ends = |c: char| {
        matches!(
            c,
            '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'
                ..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let joined = text.replace("\r\n", "\n");
    let mut parts: Vec<&str> = joined.split(ends).collect();
    if parts.last() == Some(&"") {
        parts.pop();
    }
    parts.into_iter().map(Value::from).collect()
}

fn zfill(text: &str, width: usize) -> String {
    let (sign, digits) = match text.strip_prefix(['-', '+']) {
        Some(digits) => text.split_at(text.len() - digits.len()),
        None => ("", text),
    };
    let zeros = width.saturating_sub(text.chars().count());
    format!("{sign}{}{digits}", "0".repeat(zeros))
}

/// Pads `text` to a width; of `n` fill characters, `before(n)` go before it.
fn padded(text: &str, args: &[Value], before: impl Fn(usize) -> usize) -> Result<Value, Error> {
    let (width, fill): (usize, Option<&str>) = from_args(args)?;
    let n = width.min(4096).saturating_sub(text.chars().count());
    let before = before(n).min(n);
    let fill = fill.unwrap_or(" ");
    Ok(Value::from(format!("{}{text}{}", fill.repeat(before), fill.repeat(n - before))))
}

fn swapcase(text: &str) -> String {
    let swap = |c: char| -> String {
        if c.is_uppercase() { c.to_lowercase().collect() } else { c.to_uppercase().collect() }
    };
    text.chars().map(swap).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_padded_as_python_pads_it() {
        let pad = |text, width: usize, how: fn(usize) -> usize| {
            padded(text, &[Value::from(width), Value::from("*")], how).unwrap().to_string()
        };
        assert_eq!(pad("ab", 5, |_| 0), "ab***");
        assert_eq!(pad("ab", 5, |n| n), "***ab");
        assert_eq!(pad("abcdef", 5, |n| n), "abcdef");
    }

    #[test]
    fn words_are_split_from_the_right() {
        let split = |text, by, n| rsplit(text, by, n).unwrap().to_string();
        assert_eq!(split(" a  b c ", None, Some(1)), "[' a  b', 'c']");
        assert_eq!(split("a,b,c", Some(","), Some(1)), "['a,b', 'c']");
        assert_eq!(split("a,b", Some(","), None), "['a', 'b']");
        assert!(rsplit("a", Some(""), None).is_err());
    }

    #[test]
    fn wide_fields_are_seen() {
        assert!(has_small_widths("{} {0:>10} {x:.2f}"));
        assert!(!has_small_widths("{:>10000}"));
        assert!(!has_small_widths("{:{}}"));
    }
}
