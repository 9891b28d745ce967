//! files → named tensors.
