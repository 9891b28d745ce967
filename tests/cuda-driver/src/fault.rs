//! What a kernel did wrong, and where.

use std::fmt;

/// The kinds of mistakes that the interpreter finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// Global memory outside every live allocation.
    GlobalBounds,
    /// Shared memory outside what the block has.
    SharedBounds,
    /// An address that is not a multiple of the access size.
    Misaligned,
    /// A read of memory that nobody wrote.
    Uninitialised,
    /// Two threads touch the same shared memory between two barriers, and one of them writes.
    SharedRace,
    /// Two blocks of one launch touch the same global memory, and one of them writes.
    GlobalRace,
    /// Access to the destination of an asynchronous copy that has not been waited for.
    InFlight,
    /// A warp-wide instruction that some of the named lanes do not reach.
    Divergent,
    /// A barrier that not all threads of the block reach.
    Barrier,
    /// More instructions than any of our kernels needs: an endless loop.
    Endless,
    /// A `trap` instruction.
    Trap,
}

/// A mistake of a kernel, with the place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What kind of mistake.
    pub kind: FaultKind,
    /// Details: the address and what it hit.
    pub detail: String,
    /// Name of the kernel.
    pub kernel: String,
    /// Line of the PTX text and the instruction there.
    pub instruction: (usize, String),
    /// Block coordinates.
    pub block: [u32; 3],
    /// Thread in the block.
    pub thread: u32,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (line, text) = &self.instruction;
        write!(
            f,
            "{:?}: {} (kernel {}, block {:?}, thread {}, PTX line {line}: {text})",
            self.kind, self.detail, self.kernel, self.block, self.thread
        )
    }
}

impl std::error::Error for Fault {}

/// A mistake before its place is known: kind, lane, details.
#[derive(Debug)]
pub(crate) struct Slip {
    pub(crate) kind: FaultKind,
    pub(crate) lane: u32,
    pub(crate) detail: String,
}

pub(crate) fn a_slip(kind: FaultKind, lane: usize, detail: impl Into<String>) -> Box<Slip> {
    Box::new(Slip { kind, lane: lane as u32, detail: detail.into() })
}

pub(crate) fn slip<T>(
    kind: FaultKind,
    lane: usize,
    detail: impl Into<String>,
) -> Result<T, Box<Slip>> {
    Err(a_slip(kind, lane, detail))
}
