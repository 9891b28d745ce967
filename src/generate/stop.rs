//! Stop strings in a text that arrives in pieces.

/// Lets text through until one of several strings appears, and holds back what may become one.
#[derive(Debug, Default)]
pub(super) struct StopStrings {
    strings: Vec<String>,
    held: String,
}

impl StopStrings {
    pub(super) fn new(strings: &[String]) -> Self {
        let strings = strings.iter().filter(|s| !s.is_empty()).cloned().collect();
        Self { strings, held: String::new() }
    }

    /// Text that is certain now, and whether a stop string has appeared: the text then ends before it.
    pub(super) fn push(&mut self, text: &str) -> (String, bool) {
        if self.strings.is_empty() {
            return (text.to_owned(), false);
        }
        self.held += text;
        if let Some(at) = self.strings.iter().filter_map(|s| self.held.find(s.as_str())).min() {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let keep = self.strings.iter().map(|s| overlap(&self.held, s)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// What was held back, when nothing follows.
    pub(super) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Length in bytes of the longest end of `text` with which `stop` begins.
fn overlap(text: &str, stop: &str) -> usize {
    let starts = text.char_indices().map(|(i, _)| i);
    starts.map(|i| &text[i..]).find(|end| stop.starts_with(end)).map_or(0, str::len)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let mut s = StopStrings::new(&stops.iter().map(ToString::to_string).collect::<Vec<_>>());
        let mut out = String::new();
        for piece in pieces {
            let (text, stopped) = s.push(piece);
            out += &text;
            if stopped {
                return (out, true);
            }
        }
        (out + &s.finish(), false)
    }

    #[test]
    fn a_stop_string_over_several_pieces_is_found_and_left_out() {
        assert_eq!(run(&["fin."], &["la f", "i", "n", ". après"]), ("la ".into(), true));
    }

    #[test]
    fn text_that_only_looked_like_one_is_let_through() {
        assert_eq!(run(&["fin."], &["la fi", "nesse, la fi"]), ("la finesse, la fi".into(), false));
        assert_eq!(run(&["aab"], &["a", "a", "a", "b", "c"]), ("a".into(), true));
    }

    #[test]
    fn the_earliest_of_several_counts() {
        assert_eq!(run(&["é!", "x"], &["à x é!"]), ("à ".into(), true));
    }

    #[test]
    fn none_at_all_holds_nothing_back() {
        assert_eq!(run(&[""], &["a", "b"]), ("ab".into(), false));
    }
}
