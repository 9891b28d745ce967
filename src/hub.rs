//! model name → files.
