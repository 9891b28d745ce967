//! What the program says on stderr, beside the result.

use std::io::{IsTerminal as _, Write as _};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use tramontane::generate::{CancelToken, Summary};
use tramontane::{LoadProgress, Model, hub};

use super::download::DownloadBar;

/// Says a line; that nobody listens any more changes nothing.
pub(crate) fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Says what happened about devices since the last time.
pub(super) fn say_notes(model: &Model) {
    for note in model.take_notes() {
        say(&format!("note: {note}"));
    }
}

/// Whether stderr is a terminal that may be decorated.
pub(super) fn is_fancy() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

/// A count as people say it: `5.2 M`, `1.3 B`.
pub(super) fn count(n: u64) -> String {
    let (n, unit) = match n {
        0..1_000 => return n.to_string(),
        1_000..1_000_000 => (n as f64 / 1e3, "k"),
        1_000_000..1_000_000_000 => (n as f64 / 1e6, "M"),
        _ => (n as f64 / 1e9, "B"),
    };
    if n < 10.0 { format!("{n:.2} {unit}") } else { format!("{n:.1} {unit}") }
}

/// Bytes as people say them: `10.4 MB`.
pub(super) fn bytes(n: u64) -> String {
    let (n, unit) = match n {
        0..1_000 => return format!("{n} B"),
        1_000..1_000_000 => (n as f64 / 1e3, "kB"),
        1_000_000..1_000_000_000 => (n as f64 / 1e6, "MB"),
        _ => (n as f64 / 1e9, "GB"),
    };
    if n < 10.0 { format!("{n:.2} {unit}") } else { format!("{n:.1} {unit}") }
}

/// Rows of cells as a table whose columns are aligned.
pub(super) fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let line = |row: &[String; N]| {
        let cells: Vec<String> =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

/// The line after a generation: speed and time to the first token.
pub(super) fn speed(s: &Summary) -> String {
    let t = &s.timings;
    format!(
        "{} tokens, {:.1} tok/s; first token after {:.0} ms (prompt: {} tokens, {:.1} tok/s)",
        s.usage.completion_tokens,
        t.decode_tok_s,
        t.ttft_ms,
        s.usage.prompt_tokens,
        t.prefill_tok_s
    )
}

/// A progress bar for bytes that are read, which only appears when that takes over a second, after that of the
/// download where there is one.
pub(super) struct LoadBar {
    download: DownloadBar,
    show: bool,
    what: &'static str,
    state: Mutex<LoadState>,
}

/// When it began, and what is drawn.
struct LoadState {
    start: Instant,
    bar: Option<ProgressBar>,
}

impl LoadBar {
    /// A bar that is drawn on a terminal, if `show`.
    pub(super) fn new(show: bool) -> Self {
        Self::of("loading", show)
    }

    /// A bar for `what` is done, drawn on a terminal if `show`.
    pub(super) fn of(what: &'static str, show: bool) -> Self {
        Self {
            download: DownloadBar::new(show, CancelToken::default()),
            show: show && is_fancy(),
            what,
            state: Mutex::new(LoadState { start: Instant::now(), bar: None }),
        }
    }

    /// Removes the bar; the next thing that is told of begins a new one.
    pub(super) fn done(&self) {
        self.download.done();
        let mut state = self.state();
        if let Some(bar) = state.bar.take() {
            bar.finish_and_clear();
        }
        state.start = Instant::now();
    }

    fn state(&self) -> MutexGuard<'_, LoadState> {
        // A panic elsewhere does not make a progress bar unusable.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl hub::Progress for LoadBar {
    fn event(&self, event: hub::Event<'_>) {
        self.download.event(event);
    }
}

impl LoadProgress for LoadBar {
    fn loaded(&self, done: u64, total: u64) {
        self.download.done();
        let mut state = self.state();
        if !self.show || state.start.elapsed() < Duration::from_secs(1) {
            return;
        }
        let bar = state.bar.get_or_insert_with(|| {
            let style = ProgressStyle::with_template(
                "{msg} [{bar:40}] {bytes}/{total_bytes} {bytes_per_sec}",
            );
            let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(total).with_style(style.progress_chars("=> ")).with_message(self.what)
        });
        bar.set_position(done);
    }
}

/// A progress bar that counts steps, drawn on a terminal.
pub(super) struct CountBar(ProgressBar);

impl CountBar {
    /// A bar of `total` steps, drawn on a terminal if `show`.
    pub(super) fn new(show: bool, total: u64) -> Self {
        if !show || !is_fancy() {
            return Self(ProgressBar::hidden());
        }
        let style = ProgressStyle::with_template("[{bar:40}] {pos}/{len}, {eta} left");
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
        Self(ProgressBar::new(total).with_style(style.progress_chars("=> ")))
    }

    /// One step is done.
    pub(super) fn advance(&self) {
        self.0.inc(1);
    }

    /// Removes the bar.
    pub(super) fn done(&self) {
        self.0.finish_and_clear();
    }
}

/// A progress bar for tokens, drawn on a terminal once their number is known.
pub(super) struct TokenBar {
    show: bool,
    bar: OnceLock<CountBar>,
}

impl TokenBar {
    /// A bar that is drawn on a terminal, if `show`.
    pub(super) fn new(show: bool) -> Self {
        Self { show, bar: OnceLock::new() }
    }

    /// `done` of `all` tokens are done.
    pub(super) fn set(&self, done: usize, all: usize) {
        self.bar.get_or_init(|| CountBar::new(self.show, all as u64)).0.set_position(done as u64);
    }

    /// Removes the bar.
    pub(super) fn done(&self) {
        if let Some(bar) = self.bar.get() {
            bar.done();
        }
    }
}
