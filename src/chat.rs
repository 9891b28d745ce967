//! Messages → prompt, by the model's own template.

use crate::error::{Error, ErrorKind, Result};
use crate::files::ModelFiles;
use crate::tokenizer::Tokenizer;

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Message {
    role: String,
    content: String,
}

impl Message {
    fn new(role: &str, content: &str) -> Self {
        Self { role: role.to_owned(), content: content.to_owned() }
    }

    /// What a user says.
    #[must_use]
    pub fn user(content: &str) -> Self {
        Self::new("user", content)
    }

    /// What the system says.
    #[must_use]
    pub fn system(content: &str) -> Self {
        Self::new("system", content)
    }

    /// What the assistant said.
    #[must_use]
    pub fn assistant(content: &str) -> Self {
        Self::new("assistant", content)
    }
}

/// A conversation to be answered.
#[derive(Debug, Clone)]
pub struct ChatRequest {
    /// The messages so far.
    pub messages: Vec<Message>,
}

impl ChatRequest {
    /// A request to answer `messages`.
    #[must_use]
    pub fn new(messages: Vec<Message>) -> Self {
        Self { messages }
    }
}

/// A model's chat template.
#[derive(Debug, Clone)]
pub struct ChatTemplate;

impl ChatTemplate {
    /// The model's own template, if it has one.
    ///
    /// # Errors
    ///
    /// If a file cannot be read.
    pub fn load(_files: &ModelFiles, _tokenizer: Option<&Tokenizer>) -> Result<Option<Self>> {
        Ok(None)
    }

    /// The ids of a prompt.
    ///
    /// # Errors
    ///
    /// If the template refuses the conversation.
    pub fn encode(&self, _request: &ChatRequest, _tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        Err(Error::new(ErrorKind::Template, "there is no template"))
    }

    /// The ids that end an answer.
    #[must_use]
    pub fn stop_tokens(&self, _tokenizer: &Tokenizer) -> Vec<u32> {
        Vec::new()
    }
}
