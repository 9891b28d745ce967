//! A chat template of any text: an error or a prompt, never a panic, an endless loop or a full memory.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tramontane::chat::{ChatRequest, ChatTemplate, Message};

fuzz_target!(|text: &str| {
    if let Ok(template) = ChatTemplate::from_source(text, &[("bos_token", "<s>")]) {
        let request = ChatRequest::new(vec![Message::user("Bonjour"), Message::user("<s>")]);
        if let Ok(prompt) = template.render(&request) {
            assert!(prompt.len() < 5 << 20);
        }
    }
});
