//! The driver's C interface: the part of it that the program calls through `cudarc`.
//!
//! Names, arguments and result codes are those of the CUDA driver API. Work runs at once, but as on a real
//! device a kernel's mistake shows only at a later call, and from then on every call fails.
//!
//! `TRAMONTANE_EMULATED_CUDA` switches the device on and says how it behaves: settings `key=value` joined by
//! commas (see [`Settings`]); any other word, such as `on`, is a plain device.

#![expect(clippy::missing_safety_doc, reason = "the contracts are those of the driver API")]

/// Declares functions of the driver API.
macro_rules! api {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $body:block)+) => {
        $($(#[$doc])*
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($arg: $ty),*) -> CuResult $body)+
    };
}

mod codes;
pub mod graph;
pub mod kernels;

use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::{c_char, c_int, c_uint, c_void};
use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use crate::device::{Device, MAX_SHARED};
use crate::settings::Settings;
use codes::{
    ILLEGAL_ADDRESS, INVALID_CONTEXT, INVALID_DEVICE, INVALID_VALUE, NO_DEVICE, OUT_OF_MEMORY,
    SUCCESS, error_text,
};
use graph::Graphs;
use kernels::{FREE_SHARED, Function};

/// Result code of a driver call.
pub type CuResult = c_int;

/// The emulated machine.
struct Machine {
    settings: Settings,
    devices: Vec<Device>,
    allocations: AtomicUsize,
    launches: AtomicUsize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The first failure; from then on everything fails with it.
    broken: CuResult,
    modules: HashMap<usize, Vec<Arc<Function>>>,
    functions: HashMap<usize, Arc<Function>>,
    graphs: Graphs,
    next: usize,
}

impl State {
    /// A handle that nobody has.
    fn handle(&mut self) -> usize {
        self.next += 1;
        self.next
    }
}

static MACHINE: LazyLock<Machine> = LazyLock::new(|| {
    let settings = Settings::from_environment();
    let devices = (0..settings.devices).map(|_| Device::new(settings.memory)).collect();
    Machine {
        settings,
        devices,
        allocations: AtomicUsize::new(0),
        launches: AtomicUsize::new(0),
        state: Mutex::default(),
    }
});

thread_local! {
    /// Number of the current context: the device's number plus one; 0 for none.
    static CURRENT: Cell<usize> = const { Cell::new(0) };
}

impl Machine {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a line to the log that the settings name.
    fn log(&self, line: &str) {
        append(self.settings.log.as_deref(), line);
    }

    /// Writes a line about a call to the trace that the settings name.
    fn trace(&self, line: impl FnOnce() -> String) {
        if self.settings.trace.is_some() {
            append(self.settings.trace.as_deref(), &line());
        }
    }

    fn break_with(&self, code: CuResult, line: &str) -> CuResult {
        self.log(line);
        let mut state = self.state();
        if state.broken == SUCCESS {
            state.broken = code;
        }
        code
    }
}

fn append(path: Option<&Path>, line: &str) {
    if let Some(path) = path
        && let Ok(mut file) = std::fs::OpenOptions::new().create(true).append(true).open(path)
    {
        // A log that cannot be written must not change what the device does.
        let _ = writeln!(file, "{line}");
    }
}

/// The current device, or the code to answer with.
fn device() -> Result<&'static Device, CuResult> {
    let broken = MACHINE.state().broken;
    if broken != SUCCESS {
        return Err(broken);
    }
    CURRENT.get().checked_sub(1).and_then(|i| MACHINE.devices.get(i)).ok_or(INVALID_CONTEXT)
}

fn code(result: Result<(), CuResult>) -> CuResult {
    result.err().unwrap_or(SUCCESS)
}

/// Writes a result through a pointer of the caller.
///
/// # Safety
///
/// `out` is null or valid for writing a `T`.
unsafe fn give<T>(out: *mut T, value: T) -> CuResult {
    if out.is_null() {
        return INVALID_VALUE;
    }
    // SAFETY: not null, and the caller promised the rest.
    unsafe { out.write(value) };
    SUCCESS
}

api! {
    /// Begins; fails where the settings give no device.
    fn cuInit(_flags: c_uint) {
        if MACHINE.devices.is_empty() { NO_DEVICE } else { SUCCESS }
    }

    /// The CUDA version of the driver.
    fn cuDriverGetVersion(version: *mut c_int) {
        // SAFETY: the caller's pointer, as the driver API asks.
        unsafe { give(version, MACHINE.settings.driver) }
    }

    /// Number of devices.
    fn cuDeviceGetCount(count: *mut c_int) {
        // SAFETY: the caller's pointer, as the driver API asks.
        unsafe { give(count, MACHINE.devices.len() as c_int) }
    }

    /// Handle of a device.
    fn cuDeviceGet(out: *mut c_int, ordinal: c_int) {
        if usize::try_from(ordinal).is_ok_and(|i| i < MACHINE.devices.len()) {
            // SAFETY: the caller's pointer, as the driver API asks.
            unsafe { give(out, ordinal) }
        } else {
            INVALID_DEVICE
        }
    }

    /// Name of a device, cut to `len` bytes.
    fn cuDeviceGetName(name: *mut c_char, len: c_int, _device: c_int) {
        let text = b"Emulated GPU";
        if name.is_null() || len < 1 {
            return INVALID_VALUE;
        }
        let n = text.len().min(len as usize - 1);
        for (i, &b) in text[..n].iter().chain(&[0]).enumerate() {
            // SAFETY: i ≤ n < len, which the caller promised to be the size of the buffer.
            unsafe { name.add(i).write(b as c_char) };
        }
        SUCCESS
    }

    /// Memory of a device, bytes.
    fn cuDeviceTotalMem_v2(bytes: *mut usize, _device: c_int) {
        // SAFETY: the caller's pointer, as the driver API asks.
        unsafe { give(bytes, MACHINE.settings.memory) }
    }

    /// An attribute of a device.
    fn cuDeviceGetAttribute(value: *mut c_int, attribute: c_uint, _device: c_int) {
        let answer = match attribute {
            1 => 1024,                              // threads in a block
            8 => FREE_SHARED as c_int,              // shared memory of a block
            10 => 32,                               // warp size
            16 => 4,                                // multiprocessors
            75 => MACHINE.settings.capability / 10, // compute capability, major
            76 => MACHINE.settings.capability % 10, // and minor
            97 => MAX_SHARED as c_int,              // shared memory of a block that asks for it
            _ => 0,
        };
        // SAFETY: the caller's pointer, as the driver API asks.
        unsafe { give(value, answer) }
    }

    /// The context of a device.
    fn cuDevicePrimaryCtxRetain(context: *mut *mut c_void, device: c_int) {
        // SAFETY: the caller's pointer, as the driver API asks.
        unsafe { give(context, (device as usize + 1) as *mut c_void) }
    }

    /// Lets a context go.
    fn cuDevicePrimaryCtxRelease_v2(_device: c_int) { SUCCESS }

    /// Makes a context current on this thread.
    fn cuCtxSetCurrent(context: *mut c_void) {
        CURRENT.set(context as usize);
        SUCCESS
    }

    /// The current context of this thread.
    fn cuCtxGetCurrent(context: *mut *mut c_void) {
        // SAFETY: the caller's pointer, as the driver API asks.
        unsafe { give(context, CURRENT.get() as *mut c_void) }
    }

    /// Waits for all work.
    fn cuCtxSynchronize() { code(device().map(|_| ())) }

    /// Free and total memory, bytes.
    fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) {
        match device() {
            Err(e) => e,
            Ok(d) => {
                let room = d.room();
                // SAFETY: the caller's pointers, as the driver API asks.
                unsafe { give(free, room.0).max(give(total, room.1)) }
            }
        }
    }

    /// Allocates.
    fn cuMemAlloc_v2(address: *mut u64, bytes: usize) {
        match allocate(bytes) {
            // SAFETY: the caller's pointer, as the driver API asks.
            Ok(at) => unsafe { give(address, at) },
            Err(e) => e,
        }
    }

    /// Frees.
    fn cuMemFree_v2(address: u64) {
        code(device().and_then(|d| if d.free(address) { Ok(()) } else { Err(INVALID_VALUE) }))
    }

    /// Copies from the host.
    fn cuMemcpyHtoD_v2(to: u64, from: *const c_void, bytes: usize) {
        MACHINE.trace(|| format!("write {bytes}"));
        // SAFETY: the caller promises `bytes` readable bytes at `from`.
        code(unsafe { copy_in(to, from, bytes) })
    }

    /// Copies from the host, in the order of a stream.
    fn cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, bytes: usize, _stream: *mut c_void) {
        MACHINE.trace(|| format!("write {bytes}"));
        // SAFETY: the caller promises `bytes` readable bytes at `from`.
        code(unsafe { copy_in(to, from, bytes) })
    }

    /// Copies to the host.
    fn cuMemcpyDtoH_v2(to: *mut c_void, from: u64, bytes: usize) {
        MACHINE.trace(|| format!("read {bytes}"));
        // SAFETY: the caller promises `bytes` writable bytes at `to`.
        code(unsafe { copy_out(to, from, bytes) })
    }

    /// Copies to the host, in the order of a stream.
    fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, bytes: usize, _stream: *mut c_void) {
        MACHINE.trace(|| format!("read {bytes}"));
        // SAFETY: the caller promises `bytes` writable bytes at `to`.
        code(unsafe { copy_out(to, from, bytes) })
    }

    /// Copies on the device, in the order of a stream.
    fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, _stream: *mut c_void) {
        MACHINE.trace(|| format!("copy {bytes}"));
        let mut data = vec![0u8; bytes];
        // SAFETY: `data` has `bytes` bytes, and is read after it was filled.
        code(unsafe { copy_out(data.as_mut_ptr().cast(), from, bytes).and_then(|()| copy_in(to, data.as_ptr().cast(), bytes)) })
    }

    /// Fills with a byte, in the order of a stream.
    fn cuMemsetD8Async(to: u64, value: u8, bytes: usize, _stream: *mut c_void) {
        MACHINE.trace(|| format!("clear {bytes}"));
        // SAFETY: the vector has `bytes` bytes.
        code(unsafe { copy_in(to, vec![value; bytes].as_ptr().cast(), bytes) })
    }

    /// Memory of the host that the device can reach.
    fn cuMemHostAlloc(out: *mut *mut c_void, bytes: usize, _flags: c_uint) {
        let words = bytes.div_ceil(16).max(1) + 1;
        let mut block = vec![0u128; words].into_boxed_slice();
        // The first word remembers the size.
        block[0] = words as u128;
        let start = Box::into_raw(block).cast::<u128>();
        // SAFETY: the block has at least two words; the caller's pointer is as the driver API asks.
        unsafe { give(out, start.add(1).cast()) }
    }

    /// Frees what `cuMemHostAlloc` gave.
    fn cuMemFreeHost(at: *mut c_void) {
        if at.is_null() {
            return INVALID_VALUE;
        }
        // SAFETY: the caller passes what `cuMemHostAlloc` gave: the word before it holds the size of the block.
        unsafe {
            let start = at.cast::<u128>().sub(1);
            drop(Box::from_raw(std::ptr::slice_from_raw_parts_mut(start, *start as usize)));
        }
        SUCCESS
    }

    /// A new stream: all streams are one here.
    fn cuStreamCreate(stream: *mut *mut c_void, _flags: c_uint) {
        // SAFETY: the caller's pointer, as the driver API asks.
        unsafe { give(stream, std::ptr::dangling_mut()) }
    }

    /// Waits for a stream.
    fn cuStreamSynchronize(_stream: *mut c_void) { code(device().map(|_| ())) }

    /// Ends a stream.
    fn cuStreamDestroy_v2(_stream: *mut c_void) { SUCCESS }

    /// Name of a result code.
    fn cuGetErrorName(error: CuResult, out: *mut *const c_char) {
        // SAFETY: the caller's pointer, as the driver API asks.
        unsafe { give(out, error_text(error).0.as_ptr()) }
    }

    /// Description of a result code.
    fn cuGetErrorString(error: CuResult, out: *mut *const c_char) {
        // SAFETY: the caller's pointer, as the driver API asks.
        unsafe { give(out, error_text(error).1.as_ptr()) }
    }
}

fn allocate(bytes: usize) -> Result<u64, CuResult> {
    let device = device()?;
    let count = MACHINE.allocations.fetch_add(1, Ordering::Relaxed) + 1;
    let settings = &MACHINE.settings;
    if settings.alloc_fails == Some(count) || settings.alloc_ends.is_some_and(|end| count >= end) {
        return Err(OUT_OF_MEMORY);
    }
    device.alloc(bytes).ok_or(OUT_OF_MEMORY)
}

/// # Safety
///
/// `from` has `bytes` readable bytes.
unsafe fn copy_in(to: u64, from: *const c_void, bytes: usize) -> Result<(), CuResult> {
    let device = device()?;
    if bytes == 0 {
        return Ok(());
    }
    // SAFETY: promised by the caller.
    let data = unsafe { std::slice::from_raw_parts(from.cast::<u8>(), bytes) };
    if device.write(to, data) {
        return Ok(());
    }
    MACHINE.log(&format!("copy of {bytes} bytes to {to:#x}, which is not allocated"));
    Err(INVALID_VALUE)
}

/// # Safety
///
/// `to` has `bytes` writable bytes.
unsafe fn copy_out(to: *mut c_void, from: u64, bytes: usize) -> Result<(), CuResult> {
    let device = device()?;
    if bytes == 0 {
        return Ok(());
    }
    // SAFETY: promised by the caller; the memory may be uninitialised, so it is set first.
    let data = unsafe {
        std::ptr::write_bytes(to.cast::<u8>(), 0, bytes);
        std::slice::from_raw_parts_mut(to.cast::<u8>(), bytes)
    };
    if !device.read(from, data) {
        MACHINE.log(&format!("copy of {bytes} bytes from {from:#x}, which is not allocated"));
        return Err(INVALID_VALUE);
    }
    if !device.initialised(from, bytes) {
        let line = format!("the host reads {bytes} bytes at {from:#x} that nobody wrote");
        return Err(MACHINE.break_with(ILLEGAL_ADDRESS, &line));
    }
    Ok(())
}
