//! logits → id.
