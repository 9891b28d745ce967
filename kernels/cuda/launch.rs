//! One launch of a kernel: its name, its shape and the values of its parameters.

/// A kernel with everything that a driver needs to start it.
#[derive(Debug, Clone, PartialEq)]
pub struct Launch {
    /// Name of the kernel.
    pub kernel: &'static str,
    /// Blocks in each direction.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: u32,
    /// Dynamic shared memory, bytes.
    pub shared: u32,
    /// Parameters.
    pub args: Args,
}

/// Bytes of the parameters of the kernel that has most.
const ROOM: usize = 112;
/// Most parameters of a kernel, or fields of a structure among them.
const COUNT: usize = 16;

/// Parameters in the layout of a kernel's parameter buffer: each at a multiple of its size.
#[derive(Debug, Clone, PartialEq)]
pub struct Args {
    bytes: [u8; ROOM],
    offsets: [u8; COUNT],
    count: usize,
    len: usize,
}

impl Default for Args {
    fn default() -> Self {
        Self::new()
    }
}

impl Args {
    /// No parameters.
    #[must_use]
    pub fn new() -> Self {
        Self { bytes: [0; ROOM], offsets: [0; COUNT], count: 0, len: 0 }
    }

    /// Adds a parameter of `value.len()` bytes.
    fn put(mut self, value: &[u8], align: usize) -> Self {
        let at = self.len.next_multiple_of(align);
        self.bytes[at..at + value.len()].copy_from_slice(value);
        self.offsets[self.count] = at as u8;
        self.count += 1;
        self.len = at + value.len();
        self
    }

    /// Adds a device address.
    #[must_use]
    pub fn ptr(self, address: u64) -> Self {
        self.u64(address as usize)
    }

    /// Adds a 64-bit count.
    #[must_use]
    pub fn u64(self, value: usize) -> Self {
        self.put(&(value as u64).to_ne_bytes(), 8)
    }

    /// Adds a 32-bit count.
    ///
    /// # Panics
    ///
    /// If `value` has more than 32 bits: every caller checks its shapes at load.
    #[must_use]
    pub fn u32(self, value: usize) -> Self {
        assert!(u32::try_from(value).is_ok(), "a kernel parameter of {value} does not fit 32 bits");
        self.put(&(value as u32).to_ne_bytes(), 4)
    }

    /// Adds a float.
    #[must_use]
    pub fn f32(self, value: f32) -> Self {
        self.put(&value.to_ne_bytes(), 4)
    }

    /// Adds a structure passed by value; it must begin with an address.
    #[must_use]
    pub(super) fn structure(self, fields: &Self) -> Self {
        self.put(&fields.bytes[..fields.len.next_multiple_of(8)], 8)
    }

    /// The parameter buffer.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Offset of each parameter in [`Args::bytes`].
    pub fn offsets(&self) -> impl Iterator<Item = usize> {
        self.offsets[..self.count].iter().map(|&at| usize::from(at))
    }
}
