//! A chat template in the language of jinja2: compiled once, rendered under limits.
//!
//! A template is a program that came with the model, so it gets no files and no host objects, a bounded
//! number of steps (fuel), bounded time, recursion and output. The environment is that of
//! `render_jinja_template` in Hugging Face transformers: `trim_blocks`, `lstrip_blocks`, loop controls,
//! `raise_exception`, `strftime_now` and `tojson` without escapes for HTML.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::civil::DateTime;
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind as Fault, UndefinedBehavior, Value};
use serde_json::{Map, Value as Json};

use super::watch::{Ended, watch};
use super::{json, python, syntax};
use crate::error::{Error, ErrorKind, Result};

/// The name of the only template in an environment.
const NAME: &str = "chat_template";
/// The largest template that is compiled, in bytes; the largest known one has under 30 thousand.
const MAX_SOURCE: usize = 1 << 20;
/// What a template may write beyond twice what went in, in bytes.
const MAX_OUTPUT: usize = 4 << 20;
/// The time of any rendering, which takes a few milliseconds when the template means well.
const MAX_TIME: Duration = Duration::from_secs(2);
/// The steps of any rendering; a step is an instruction or 64 bytes of text.
const BASE_FUEL: u64 = 250_000;
/// The further steps for each message. The most laborious known templates take about 300.
const FUEL_PER_MESSAGE: u64 = 4_000;

/// A compiled template.
#[derive(Debug, Clone)]
pub(super) struct Template {
    /// The source, for questions about the words it mentions.
    pub(super) source: Arc<str>,
    environment: Arc<Environment<'static>>,
    /// What `strftime_now` tells instead of the time.
    now: Option<DateTime>,
    place: String,
    /// Whether a rendering took too much time: then none is begun any more.
    endless: Arc<AtomicBool>,
}

/// The text that a template passed to `raise_exception`.
#[derive(Debug)]
struct Raised(String);

impl std::fmt::Display for Raised {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

impl Template {
    /// Compiles `source`, which came from `place`.
    ///
    /// # Errors
    ///
    /// If the source is too long or no valid template; the line is named.
    pub(super) fn compile(source: &str, place: &str) -> Result<Self> {
        if source.len() > MAX_SOURCE {
            return Err(Error::new(
                ErrorKind::Template,
                format!(
                    "the chat template has {} bytes, expected at most {MAX_SOURCE}",
                    source.len()
                ),
            )
            .at(place));
        }
        let mut environment = environment();
        environment
            .add_template_owned(NAME, syntax::prepare(source))
            .map_err(|e| explain(&e).at(place))?;
        let environment = Arc::new(environment);
        Ok(Self {
            source: source.into(),
            environment,
            now: None,
            place: place.into(),
            endless: Arc::default(),
        })
    }

    /// The same template, for which it is always `now`.
    pub(super) fn at_time(mut self, now: DateTime) -> Self {
        self.now = Some(now);
        self
    }

    /// Renders the template with `variables`, of which `messages` has `n_messages`.
    ///
    /// # Errors
    ///
    /// If the template refuses the conversation, breaks a limit, or uses a value in a way that Python would
    /// not allow either.
    pub(super) fn render(
        &self,
        variables: &Map<String, Json>,
        n_messages: usize,
    ) -> Result<String> {
        let endless = || {
            Error::new(
                ErrorKind::Template,
                "the chat template does not come to an end: too much time",
            )
            .at(&self.place)
        };
        if self.endless.load(Ordering::Relaxed) {
            return Err(endless());
        }
        let size = variables.values().map(text_size).sum::<usize>();
        // A clone shares the compiled template.
        let mut environment = Environment::clone(&self.environment);
        environment.set_fuel(Some(BASE_FUEL + FUEL_PER_MESSAGE * n_messages as u64 + size as u64));
        let now = self.now;
        environment.add_function("strftime_now", move |format: &str| strftime(now, format));
        let context = Value::from_pairs(
            variables.iter().map(|(name, value)| (name.as_str(), json::to_template(value))),
        );
        let work = move || run(&environment, &context, MAX_OUTPUT + 2 * size);
        match watch(MAX_TIME + Duration::from_micros(size as u64), work) {
            Ended::Well(result) => result.map_err(|e| e.at(&self.place)),
            Ended::Late => {
                // One thread left behind is enough.
                self.endless.store(true, Ordering::Relaxed);
                Err(endless())
            }
            Ended::Badly => Err(Error::new(
                ErrorKind::Template,
                "the chat template makes the template engine fail",
            )
            .at(&self.place)),
        }
    }
}

/// Renders the template in `environment`, which may write `max` bytes.
fn run(environment: &Environment<'static>, context: &Value, max: usize) -> Result<String> {
    let mut out = Capped { text: Vec::new(), max };
    environment
        .get_template(NAME)
        .and_then(|template| template.render_captured_to(context.clone(), &mut out).map(drop))
        .map_err(|e| explain(&e))?;
    String::from_utf8(out.text).map_err(|_| {
        Error::new(ErrorKind::Template, "the chat template wrote bytes that are not UTF-8")
    })
}

/// The environment of every template, without a template in it.
fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    if let Ok(syntax) = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build() {
        environment.set_syntax(syntax);
    }
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_recursion_limit(200);
    // Line numbers in errors, the same in every build; never the template's text.
    environment.set_debug(true);
    environment.set_unknown_method_callback(python::method);
    environment.remove_global("debug");
    environment.add_filter("tojson", json::tojson);
    environment.add_filter("trim", python::trim_filter);
    environment.add_filter("int", python::int);
    environment.add_filter("float", python::float_filter);
    environment.add_test("iterable", python::is_iterable);
    environment.add_test("sequence", python::is_sequence);
    environment.set_formatter(python::print);
    environment.add_function(
        "raise_exception",
        |text: &Value| -> Result<Value, minijinja::Error> {
            let text = text.to_string();
            Err(minijinja::Error::new(Fault::InvalidOperation, text.clone())
                .with_source(Raised(text)))
        },
    );
    environment
}

/// The time `now`, or that of the clock, in the words of `format` (C's `strftime`).
fn strftime(now: Option<DateTime>, format: &str) -> Result<String, minijinja::Error> {
    let config = jiff::fmt::strtime::Config::new().lenient(true);
    let mut out = String::new();
    let written = match now {
        Some(now) => jiff::fmt::strtime::BrokenDownTime::from(now)
            .format_with_config(&config, format, &mut out),
        None => jiff::fmt::strtime::BrokenDownTime::from(&jiff::Zoned::now())
            .format_with_config(&config, format, &mut out),
    };
    match written {
        Ok(()) => Ok(out),
        Err(e) => Err(minijinja::Error::new(Fault::InvalidOperation, format!("strftime_now: {e}"))),
    }
}

/// The number of bytes of text in `json`.
fn text_size(json: &Json) -> usize {
    match json {
        Json::Null | Json::Bool(_) | Json::Number(_) => 8,
        Json::String(text) => text.len(),
        Json::Array(items) => items.iter().map(text_size).sum(),
        Json::Object(fields) => {
            fields.iter().map(|(name, value)| name.len() + text_size(value)).sum()
        }
    }
}

/// Output that takes no more than `max` bytes.
struct Capped {
    text: Vec<u8>,
    max: usize,
}

impl std::io::Write for &mut Capped {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.text.len() + bytes.len() > self.max {
            return Err(std::io::Error::other("the output is too long"));
        }
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What went wrong in a template, for a person who did not write it.
fn explain(e: &minijinja::Error) -> Error {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(e);
    while let Some(error) = cause {
        if let Some(Raised(text)) = error.downcast_ref() {
            return Error::new(ErrorKind::Template, text.trim())
                .so("the model's chat template refuses this conversation");
        }
        cause = error.source();
    }
    let line = e.line().map_or_else(String::new, |line| format!(" in line {line}"));
    let detail = e.detail().map_or_else(|| e.kind().to_string(), str::to_owned);
    let kind = e.kind();
    let what = if kind == Fault::SyntaxError {
        format!("the chat template has a syntax error{line}: {detail}")
    } else if kind == Fault::OutOfFuel {
        format!("the chat template does not come to an end{line}: too many steps")
    } else if kind == Fault::WriteFailure {
        format!("the chat template writes too much{line}: over {MAX_OUTPUT} bytes")
    } else {
        format!("the chat template fails{line}: {kind}: {detail}")
    };
    Error::new(ErrorKind::Template, what)
}
