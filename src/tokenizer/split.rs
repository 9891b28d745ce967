//! Cutting text by a tokenizer's regular expression, in bounded time.
//!
//! Nearly every byte-level tokenizer ends its pattern in `|\s+(?!\S)|\s+`: a run of white space leaves
//! its last character to the word after it. The look-ahead would need a backtracking engine, which
//! gives up on long runs; here the pattern is read without it, in linear time, and the last character
//! is given back by hand.

use std::ops::Range;
use std::time::{Duration, Instant};

use fancy_regex::{Regex, RegexBuilder};

use crate::error::{Error, Result};

/// How many tokenizer patterns end.
const TAIL: &str = r"|\s+(?!\S)|\s+";
/// The name of the group that stands for [`TAIL`] after rewriting.
const TAIL_GROUP: &str = "white_space_tail";
/// The longest pattern that is compiled, in bytes; the known ones have some hundreds.
const MAX_PATTERN: usize = 16 << 10;

/// A compiled pattern.
#[derive(Debug)]
pub(super) struct Splitter {
    regex: Regex,
    /// The pattern ended in [`TAIL`], which is now one named group.
    has_tail: bool,
}

impl Splitter {
    /// Compiles `pattern`.
    ///
    /// # Errors
    ///
    /// If it is not a regular expression, or an extravagantly large one.
    pub(super) fn new(pattern: &str) -> Result<Self> {
        if pattern.len() > MAX_PATTERN {
            return Err(Error::bad_model(format!(
                "the splitting pattern has {} bytes, expected at most {MAX_PATTERN}",
                pattern.len()
            )));
        }
        let (source, has_tail) = match pattern.strip_suffix(TAIL) {
            Some(body) if !body.is_empty() => (format!(r"{body}|(?<{TAIL_GROUP}>\s+)"), true),
            Some(_) | None => (pattern.to_owned(), false),
        };
        let build = |source: &str| RegexBuilder::new(source).backtrack_limit(1_000_000).build();
        match build(&source) {
            Ok(regex) => Ok(Self { regex, has_tail }),
            // The suffix may have been part of something else: the pattern as it stands decides.
            Err(_) if has_tail => build(pattern).map(|regex| Self { regex, has_tail: false }),
            Err(e) => Err(e),
        }
        .map_err(|e| {
            Error::bad_model(format!("the splitting pattern `{pattern}` is not usable: {e}"))
        })
    }

    /// Hands all of `text` to `each` in order: matches (`true`) and what lies between them (`false`).
    ///
    /// # Errors
    ///
    /// If the pattern needs far more time than a sensible one.
    pub(super) fn split(&self, text: &str, mut each: impl FnMut(Range<usize>, bool)) -> Result<()> {
        let mut clock = Clock::new(text.len());
        let mut done = 0;
        let mut at = 0;
        while at <= text.len() {
            clock.check()?;
            let found = self.regex.find_from_pos(text, at).map_err(|e| gave_up(&e.to_string()))?;
            let Some(found) = found.map(|m| m.range()) else { break };
            let found = if self.has_tail { self.give_back(text, found)? } else { found };
            if done < found.start {
                each(done..found.start, false);
            }
            // An empty match still separates, but there is nothing to hand over; go on behind the next character.
            at = if found.is_empty() {
                found.end + text[found.end..].chars().next().map_or(1, char::len_utf8)
            } else {
                each(found.clone(), true);
                found.end
            };
            done = found.end;
        }
        if done < text.len() {
            each(done..text.len(), false);
        }
        Ok(())
    }

    /// A run of white space that the tail matched leaves its last character to the word behind it.
    fn give_back(&self, text: &str, found: Range<usize>) -> Result<Range<usize>> {
        let run = &text[found.clone()];
        let mut chars = run.char_indices();
        let Some((last, c)) = chars.next_back() else { return Ok(found) };
        if found.end == text.len() || last == 0 || !c.is_whitespace() {
            return Ok(found);
        }
        // Only now is it worth asking which alternative matched.
        if !run.chars().all(char::is_whitespace) {
            return Ok(found);
        }
        let captures = self.regex.captures_from_pos(text, found.start);
        let captures = captures.map_err(|e| gave_up(&e.to_string()))?;
        let by_tail = captures.is_some_and(|c| c.name(TAIL_GROUP).is_some());
        Ok(if by_tail { found.start..found.start + last } else { found })
    }
}

fn gave_up(why: &str) -> Error {
    Error::bad_model(format!("the splitting pattern of the tokenizer gave up on this text: {why}"))
        .hint("use a tokenizer whose pattern does not backtrack without end")
}

/// Ends the work of a pattern that is slower than linear.
///
/// A sensible pattern takes less than a microsecond for a byte even in a debug build.
struct Clock {
    start: Instant,
    limit: Duration,
    calls: u32,
}

impl Clock {
    fn new(bytes: usize) -> Self {
        let limit = Duration::from_secs(5) + Duration::from_micros(5 * bytes as u64);
        Self { start: Instant::now(), limit, calls: 0 }
    }

    fn check(&mut self) -> Result<()> {
        self.calls = self.calls.wrapping_add(1);
        // Reading the clock costs as much as a short match.
        if self.calls.is_multiple_of(64) && self.start.elapsed() > self.limit {
            return Err(gave_up(&format!("no end after {:.0?}", self.limit)));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

    fn pieces<'t>(splitter: &Splitter, text: &'t str) -> Vec<&'t str> {
        let mut out = Vec::new();
        splitter.split(text, |r, _| out.push(&text[r])).unwrap();
        out
    }

    #[test]
    fn digits_stand_alone_and_case_boundaries_split() {
        let s = Splitter::new(TEKKEN).unwrap();
        assert_eq!(pieces(&s, "2026 pH"), ["2", "0", "2", "6", " p", "H"]);
        assert_eq!(
            pieces(&s, "C'est  l'été\n\n fin  "),
            ["C", "'est", " ", " l", "'été", "\n\n", " fin", "  "]
        );
    }

    /// The linear reading equals the pattern as it is written, which a backtracking engine takes.
    #[test]
    fn the_linear_reading_equals_the_pattern() {
        let fast = Splitter::new(TEKKEN).unwrap();
        assert!(fast.has_tail);
        let slow = Splitter { regex: Regex::new(TEKKEN).unwrap(), has_tail: false };
        let alphabet = [
            "a", "É", "é", " ", "  ", "\u{a0}", "\n", "\r\n", "\t", "1", "!", "'", "\u{3000}", "/",
            "中", "\u{301}",
        ];
        let mut state = 1u32;
        for _ in 0..3000 {
            let text: String = (0..12)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    alphabet[(state >> 16) as usize % alphabet.len()]
                })
                .collect();
            assert_eq!(pieces(&fast, &text), pieces(&slow, &text), "{text:?}");
        }
    }

    #[test]
    fn long_runs_of_space_are_one_piece() {
        let s = Splitter::new(TEKKEN).unwrap();
        let text = " ".repeat(3_000_000) + "a";
        let found = pieces(&s, &text);
        assert_eq!((found.len(), found[1]), (2, " a"));
    }

    #[test]
    fn a_pattern_that_backtracks_without_end_is_an_error() {
        let s = Splitter::new(r"(?:a+)+(?!a)b").unwrap();
        let e = s.split(&"a".repeat(1 << 20), |_, _| ()).unwrap_err().to_string();
        assert!(e.contains("gave up"), "{e}");
        assert!(Splitter::new("(").is_err());
        assert!(Splitter::new(&"a".repeat(MAX_PATTERN + 1)).is_err());
    }

    #[test]
    fn everything_is_handed_over_even_what_does_not_match() {
        let s = Splitter::new("b|x*").unwrap();
        assert_eq!(pieces(&s, "aébxx"), ["a", "é", "b", "xx"]);
        let s = Splitter::new("b").unwrap();
        assert_eq!(pieces(&s, "aébcc"), ["aé", "b", "cc"]);
        assert!(pieces(&s, "").is_empty());
    }
}
