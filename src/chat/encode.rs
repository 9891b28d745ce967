//! The ids of a rendered prompt, in which no content becomes a control token.
//!
//! The prompt is rendered as it is, and once more with the contents marked (see [`super::marks`]). Where both
//! agree, the second tells the origin of each character. Where they do not, the template looks for words in
//! the contents; then fewer characters are marked, so that it finds them. Reasoning tags in the model's own
//! answers may stay control tokens if that is what it takes: the model wrote them as such. A template that
//! looks for other control tokens does not find those that people wrote: to the model, too, they are only
//! text.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::marks::{Extent, Marked, Marks};
use super::template::Template;
use crate::error::Result;
use crate::tokenizer::{Segment, Tokenizer};

/// A prompt before it is rendered.
pub(super) struct Prompt<'a> {
    pub(super) template: &'a Template,
    pub(super) variables: &'a Map<String, Value>,
    /// The variables that are the model's own.
    pub(super) special_tokens: &'a Map<String, Value>,
    pub(super) continue_final: bool,
}

impl Prompt<'_> {
    /// The ids of the prompt.
    ///
    /// # Errors
    ///
    /// If the template refuses the conversation or the tokenizer cannot read it.
    pub(super) fn encode(&self, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        let ids: HashSet<u32> = tokenizer.control_ids().iter().copied().collect();
        let controls: Vec<String> = ids.into_iter().filter_map(|id| tokenizer.piece(id)).collect();
        let marked = self.marked(&controls)?;
        tokenizer.encode_segments(&segments(&marked))
    }

    /// The prompt, with the places of its contents.
    pub(super) fn marked(&self, controls: &[String]) -> Result<Marked> {
        let plain = super::render(self.template, self.variables.clone(), self.continue_final)?;
        for extent in [Extent::All, Extent::Edges, Extent::EdgesButReasoning] {
            if let Ok(marked) = self.with(extent, controls)
                && marked.text == plain
            {
                return Ok(marked);
            }
        }
        self.with(Extent::Edges, controls)
    }

    fn with(&self, extent: Extent, controls: &[String]) -> Result<Marked> {
        let names = controls.iter().map(String::as_str);
        let marks = Marks::new(extent, names, &self.template.source, self.variables)?;
        let mut variables = self.variables.clone();
        marks.mark(&mut variables, self.special_tokens);
        super::render(self.template, variables, self.continue_final).map(|text| marks.read(&text))
    }
}

/// `marked` as scaffold and content in turn.
fn segments(marked: &Marked) -> Vec<Segment<'_>> {
    let mut segments = Vec::with_capacity(2 * marked.content.len() + 1);
    let mut done = 0;
    for content in &marked.content {
        segments.push(Segment::Scaffold(&marked.text[done..content.start]));
        segments.push(Segment::Content(&marked.text[content.clone()]));
        done = content.end;
    }
    segments.push(Segment::Scaffold(&marked.text[done..]));
    segments
}
