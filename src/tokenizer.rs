//! text → ids, ids → text.
