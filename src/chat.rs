//! messages → prompt, by the model's own template.
