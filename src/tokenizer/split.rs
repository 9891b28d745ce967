//! Cutting text by a tokenizer's regular expression, in bounded time.
//!
//! Patterns come with the model, so they are hostile until shown otherwise. They are read by a lazy
//! automaton, one step for each byte, which no pattern can make backtrack; what an automaton cannot do
//! (look-around, back-references, possessive repetition) is refused by name when the file is loaded.
//! What is left to a hostile pattern is to look far ahead at every place, and large automata: a limit
//! on the time of the processor ends both.
//!
//! One look-ahead is in nearly every byte-level tokenizer: patterns end in `|\s+(?!\S)|\s+`, so that a
//! run of white space leaves its last character to the word after it. Here the pattern is read without
//! that end, and the last character is given back by hand.

use std::ops::Range;
use std::time::Duration;

use regex_automata::hybrid::dfa::{Cache, DFA};
use regex_automata::nfa::thompson::{self, WhichCaptures};
use regex_automata::util::pool::Pool;
use regex_automata::util::syntax;
use regex_automata::{Anchored, Input, MatchKind, PatternID};
use regex_syntax::ast::{self, Ast};

use crate::error::{Error, Result};
use crate::platform;

/// How tokenizer patterns end; the second form means the same.
const TAILS: [&str; 2] = [r"|\s+(?!\S)|\s+", r"|\s+(?!\S)|\s"];
/// What stands for the end of the pattern: a second pattern, tried after the first.
const TAIL: &str = r"\s+";
/// Its number.
const TAIL_ID: PatternID = PatternID::new_unchecked(1);
/// The longest pattern that is compiled, in bytes; the known ones have some hundreds.
const MAX_PATTERN: usize = 16 << 10;
/// The most memory that a compiled pattern may take, in bytes; the known ones take less than one MiB.
const MAX_COMPILED: usize = 8 << 20;
/// The memory for the states of the automaton that were met so far, in bytes, for each thread.
const CACHE: usize = 8 << 20;

/// A compiled pattern.
pub(super) struct Splitter {
    automaton: DFA,
    /// Memory of the automaton, for each thread that uses it.
    caches: Pool<Cache, Box<dyn Fn() -> Cache + Send + Sync>>,
}

impl std::fmt::Debug for Splitter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Splitter").finish_non_exhaustive()
    }
}

impl Splitter {
    /// Compiles `pattern`.
    ///
    /// # Errors
    ///
    /// If it is not a regular expression, an extravagantly large one, or one that no automaton can read.
    pub(super) fn new(pattern: &str) -> Result<Self> {
        if pattern.len() > MAX_PATTERN {
            return Err(Error::bad_model(format!(
                "the splitting pattern has {} bytes, expected at most {MAX_PATTERN}",
                pattern.len()
            )));
        }
        let body = TAILS.iter().find_map(|tail| pattern.strip_suffix(tail));
        let automaton = match body.filter(|body| !body.is_empty()) {
            Some(body) => compile(&[body, TAIL]),
            None => compile(&[pattern]),
        }
        .map_err(|e| {
            Error::not_supported(format!("the splitting pattern `{pattern}` is not usable: {e}"))
                .so("only patterns without look-around and back-references are read, in linear time")
        })?;
        let for_cache = automaton.clone();
        let caches: Box<dyn Fn() -> Cache + Send + Sync> =
            Box::new(move || for_cache.create_cache());
        Ok(Self { automaton, caches: Pool::new(caches) })
    }

    /// Hands all of `text` to `each` in order: matches (`true`) and what lies between them (`false`).
    ///
    /// # Errors
    ///
    /// If the pattern needs far more time than a sensible one.
    pub(super) fn split(&self, text: &str, mut each: impl FnMut(Range<usize>, bool)) -> Result<()> {
        let mut search = Search {
            automaton: &self.automaton,
            cache: &mut self.caches.get(),
            text,
            clock: Clock::new(text.len()),
        };
        let mut done = 0;
        let mut at = 0;
        while at < text.len() {
            let found = search.match_at(at)?;
            // Where nothing or nothing but an empty match is found, the text goes on with the next character;
            // an empty match still separates.
            match found.filter(|end| *end > at) {
                Some(end) => {
                    if done < at {
                        each(done..at, false);
                    }
                    each(at..end, true);
                    (done, at) = (end, end);
                }
                None => {
                    if found.is_some() && done < at {
                        each(done..at, false);
                        done = at;
                    }
                    at += text[at..].chars().next().map_or(1, char::len_utf8);
                }
            }
        }
        if done < text.len() {
            each(done..text.len(), false);
        }
        Ok(())
    }

    /// `text` with `to` in the place of every match.
    ///
    /// # Errors
    ///
    /// As [`Self::split`].
    pub(super) fn replace_all(&self, text: &str, to: &str) -> Result<String> {
        let mut out = String::with_capacity(text.len());
        self.split(text, |range, found| out.push_str(if found { to } else { &text[range] }))?;
        Ok(out)
    }
}

/// Compiles patterns for one automaton; the first ones go first.
fn compile(patterns: &[&str]) -> Result<DFA, String> {
    for pattern in patterns {
        check_repetitions(pattern)?;
    }
    let config = DFA::config()
        .match_kind(MatchKind::LeftmostFirst)
        .cache_capacity(CACHE)
        .skip_cache_capacity_check(true);
    let size = thompson::Config::new()
        .which_captures(WhichCaptures::None)
        .nfa_size_limit(Some(MAX_COMPILED));
    let mut builder = DFA::builder();
    builder.configure(config).thompson(size).syntax(syntax::Config::new());
    builder.build_many(patterns).map_err(|e| {
        let mut why = e.to_string();
        let mut cause = std::error::Error::source(&e);
        while let Some(inner) = cause {
            why = inner.to_string();
            cause = inner.source();
        }
        why
    })
}

/// Refuses repetitions of repetitions: `a++` means a possessive one in the engines that tokenizers are
/// made with, and something else in ours.
fn check_repetitions(pattern: &str) -> Result<(), String> {
    struct Visitor;
    impl ast::Visitor for Visitor {
        type Output = ();
        type Err = String;

        fn finish(self) -> Result<(), String> {
            Ok(())
        }

        fn visit_pre(&mut self, node: &Ast) -> Result<(), String> {
            if let Ast::Repetition(outer) = node
                && matches!(&*outer.ast, Ast::Repetition(_))
            {
                return Err("a repetition follows a repetition".to_owned());
            }
            Ok(())
        }
    }
    let tree = ast::parse::Parser::new().parse(pattern).map_err(|e| e.kind().to_string())?;
    ast::visit(&tree, Visitor)
}

/// A walk through a text.
struct Search<'a> {
    automaton: &'a DFA,
    cache: &'a mut Cache,
    text: &'a str,
    clock: Clock,
}

impl Search<'_> {
    /// The end of the match that begins at `at`, if there is one.
    fn match_at(&mut self, at: usize) -> Result<Option<usize>> {
        let (automaton, text) = (self.automaton, self.text.as_bytes());
        let input = Input::new(text).range(at..).anchored(Anchored::Yes);
        let mut state = automaton
            .start_state_forward(self.cache, &input)
            .map_err(|e| gave_up(&e.to_string()))?;
        let mut found = None;
        for i in at..=text.len() {
            self.clock.tick()?;
            // A match is told one step late.
            state = match text.get(i) {
                Some(byte) => automaton.next_state(self.cache, state, *byte),
                None => automaton.next_eoi_state(self.cache, state),
            }
            .map_err(|e| gave_up(&e.to_string()))?;
            if state.is_match() {
                found = Some((automaton.match_pattern(self.cache, state, 0), i));
            } else if state.is_dead() {
                break;
            } else if state.is_quit() {
                return Err(gave_up("it needs to know where words end"));
            }
        }
        Ok(found.map(|(pattern, end)| match pattern == TAIL_ID {
            true => self.give_back(at..end),
            false => end,
        }))
    }

    /// Where a run of white space ends that leaves its last character to the word behind it.
    fn give_back(&self, run: Range<usize>) -> usize {
        let last = self.text[run.clone()].char_indices().next_back().map_or(0, |(i, _)| i);
        if run.end == self.text.len() || last == 0 { run.end } else { run.start + last }
    }
}

fn gave_up(why: &str) -> Error {
    Error::bad_model(format!("the splitting pattern of the tokenizer gave up on this text: {why}"))
        .hint("use a tokenizer whose pattern does not look far ahead")
}

/// Ends the work of a pattern that is slower than linear.
///
/// A sensible pattern takes some nanoseconds for a byte. It is the time of this thread that counts, not
/// that of the wall: a program that was stopped for a while does not fail.
struct Clock {
    start: Duration,
    limit: Duration,
    ticks: u32,
}

impl Clock {
    fn new(bytes: usize) -> Self {
        let limit = Duration::from_secs(1) + Duration::from_nanos(500 * bytes as u64);
        Self { start: platform::thread_time(), limit, ticks: 0 }
    }

    fn tick(&mut self) -> Result<()> {
        self.ticks = self.ticks.wrapping_add(1);
        // Asking for the time costs as much as some hundred steps.
        if self.ticks.is_multiple_of(1024)
            && platform::thread_time().saturating_sub(self.start) > self.limit
        {
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
        let slow = fancy_regex::Regex::new(TEKKEN).unwrap();
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
            let expected: Vec<&str> = slow.find_iter(&text).map(|m| m.unwrap().as_str()).collect();
            assert_eq!(pieces(&fast, &text), expected, "{text:?}");
        }
    }

    #[test]
    fn long_runs_of_space_are_one_piece() {
        let s = Splitter::new(TEKKEN).unwrap();
        let text = " ".repeat(3_000_000) + "a";
        let found = pieces(&s, &text);
        assert_eq!((found.len(), found[1]), (2, " a"));
    }

    /// A match of any length is one piece.
    #[test]
    fn nothing_is_cut_by_length() {
        let s = Splitter::new(TEKKEN).unwrap();
        for word in ["é".repeat(1 << 16), "A".repeat(1 << 17) + "é", "😀".repeat(1 << 16)] {
            let text = format!("a {word} b");
            assert_eq!(pieces(&s, &text), ["a", &format!(" {word}"), " b"]);
        }
        let text = " ".repeat(1 << 18) + "\n" + &" ".repeat(1 << 16) + "x";
        let lengths: Vec<usize> = pieces(&s, &text).iter().map(|p| p.len()).collect();
        assert_eq!(lengths, [(1 << 18) + 1, (1 << 16) - 1, 2]);
    }

    /// A run of white space gives back only where the end of the pattern found it.
    #[test]
    fn only_the_tail_gives_back() {
        let s = Splitter::new(r"\n+|\w+|\s+(?!\S)|\s+").unwrap();
        assert_eq!(pieces(&s, "a\n\nb  c"), ["a", "\n\n", "b", " ", " ", "c"]);
        let s = Splitter::new(r"\w+|\s+(?!\S)|\s").unwrap();
        assert_eq!(pieces(&s, "a   b "), ["a", "  ", " ", "b", " "]);
    }

    #[test]
    fn patterns_that_no_automaton_can_read_are_refused() {
        for pattern in
            [r"a(?=b)", r"(?<!a)b", r"(a)\1", r"a++b", r"a?+b", r"(?>a+)b", "(", r"a\", "[z-a]"]
        {
            let e = Splitter::new(pattern).unwrap_err();
            assert!(e.to_string().contains("is not usable"), "{pattern}: {e}");
        }
        assert!(Splitter::new(&"a".repeat(MAX_PATTERN + 1)).is_err());
        // Counted repetitions multiply.
        let e = Splitter::new(r"((\p{L}{100}){100}){100}").unwrap_err().to_string();
        assert!(e.contains("is not usable"), "{e}");
    }

    /// Each of these reads the rest of the text at every place.
    #[test]
    fn a_pattern_that_looks_far_ahead_is_an_error() {
        for pattern in ["a*b|a", "(?s:.*)z|a", r"a{2,4000}b"] {
            let s = Splitter::new(pattern).unwrap();
            let e = s.split(&"a".repeat(1 << 20), |_, _| ()).unwrap_err().to_string();
            assert!(e.contains("gave up"), "{pattern}: {e}");
        }
    }

    #[test]
    fn matches_are_replaced() {
        let s = Splitter::new(" {2,}").unwrap();
        assert_eq!(s.replace_all("a  b c   ", "_").unwrap(), "a_b c_");
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
