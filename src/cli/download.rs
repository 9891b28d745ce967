//! What a download shows: a bar on a terminal, a line for each thing worth knowing elsewhere.

use std::sync::Mutex;

use indicatif::{ProgressBar, ProgressStyle};
use tramontane::generate::CancelToken;
use tramontane::hub::{Event, Progress};

use super::talk;

/// A file whose check is worth a line where there is no bar, in bytes.
const LARGE: u64 = 100_000_000;

/// Shows the progress of a download on stderr.
pub(super) struct DownloadBar {
    show: bool,
    /// Stops the download.
    cancel: CancelToken,
    state: Mutex<State>,
}

/// How far the download is, in bytes.
#[derive(Default)]
struct State {
    /// Drawn on a terminal only.
    bar: Option<ProgressBar>,
    /// What the files that are complete brought.
    done: u64,
    /// Where the current file began, and where it is.
    begin: u64,
    position: u64,
}

impl DownloadBar {
    /// A bar that is drawn if `show`, for a download that `cancel` stops.
    pub(super) fn new(show: bool, cancel: CancelToken) -> Self {
        Self { show, cancel, state: Mutex::default() }
    }

    /// Removes the bar.
    pub(super) fn done(&self) {
        if let Some(bar) = self.state().bar.take() {
            bar.finish_and_clear();
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // A panic elsewhere does not make the numbers of a progress bar unusable.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl State {
    /// Says a line without disturbing the bar.
    fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| talk::say(line)),
            None => talk::say(line),
        }
    }

    fn plan(&mut self, files: usize, bytes: u64) {
        if !talk::is_fancy() {
            let files = if files == 1 { "1 file".to_owned() } else { format!("{files} files") };
            talk::say(&format!("fetching {} in {files}", talk::bytes(bytes)));
            return;
        }
        let template = "{msg:28!} [{bar:24}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";
        let style = ProgressStyle::with_template(template)
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .progress_chars("=> ");
        self.bar = Some(ProgressBar::new(bytes).with_style(style));
    }

    fn draw(&self, message: Option<&str>) {
        let Some(bar) = &self.bar else { return };
        if let Some(message) = message {
            bar.set_message(message.to_owned());
        }
        bar.set_position(self.done + self.position.saturating_sub(self.begin));
    }
}

impl Progress for DownloadBar {
    fn event(&self, event: Event<'_>) {
        if !self.show {
            return;
        }
        let mut state = self.state();
        match event {
            Event::Planned { bytes: 0, .. } => {}
            Event::Planned { files, bytes } => state.plan(files, bytes),
            Event::Checking { file, size } if size >= LARGE && state.bar.is_none() => {
                state.say(&format!("checking {file}"));
            }
            Event::Checking { file, .. } => state.draw(Some(&format!("checking {file}"))),
            Event::Started { file, position, .. } => {
                (state.begin, state.position) = (position, position);
                state.draw(Some(file));
            }
            Event::Advanced { position, .. } => {
                // A server that made the file begin again takes back what was counted.
                state.begin = state.begin.min(position);
                state.position = position;
                state.draw(None);
            }
            Event::Finished { .. } => {
                state.done += state.position.saturating_sub(state.begin);
                (state.begin, state.position) = (0, 0);
                state.draw(None);
            }
            Event::Waiting { file } => {
                state.say(&format!("waiting for another process that downloads {file}"));
            }
            Event::Retrying { file, reason, delay } => {
                let delay = delay.as_secs_f32();
                state.say(&format!("{file}: {reason}; trying again in {delay:.1} s"));
            }
            // Events that later versions add are not needed for the bar.
            _ => {}
        }
    }

    fn cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }
}
