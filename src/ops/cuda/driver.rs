//! The NVIDIA driver, opened at run time: contexts, memory, launches. The only file that calls it.
//!
//! All work of a device goes through one stream, so it runs in the order in which it was asked for. Memory that is
//! given back is kept for the next request of the same size: the stream's order makes that safe. Launches may wait to
//! enter the stream together ([`launch`]); every other work lets them in first.
#![expect(unsafe_code, reason = "the driver is a C library")]

mod graph;
mod launch;

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::sys::{self as cu, CUdevice_attribute_enum as Attribute, CUresult};
use tramontane_kernels::cuda as kernels;

use crate::error::{Error, ErrorKind, Result};
use launch::{Function, Queue};

/// A device that the driver lists.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// Its number, as in `--device cuda:N`.
    pub number: usize,
    /// Its name.
    pub name: String,
    /// Compute capability times ten.
    pub capability: i32,
    /// Memory, bytes.
    pub memory: u64,
}

/// Whether this machine has a library of NVIDIA's driver.
#[must_use]
pub fn has_driver() -> bool {
    // SAFETY: opening a library by the names of NVIDIA's driver runs its initialisers, which are trusted.
    unsafe { cu::is_culib_present() }
}

/// The functions of the driver that are called here; a library without one of them is too old, or no driver.
const FUNCTIONS: [&str; 28] = [
    "cuCtxSetCurrent",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDeviceTotalMem_v2",
    "cuDriverGetVersion",
    "cuFuncSetAttribute",
    "cuGetErrorString",
    "cuInit",
    "cuLaunchKernel",
    "cuMemAlloc_v2",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuMemHostAlloc",
    "cuMemcpyDtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemsetD8Async",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamSynchronize",
];

/// Version of the driver (`13000` for 13.0) and the devices it lists.
///
/// # Errors
///
/// If there is no driver, or it refuses to start.
pub fn devices() -> Result<(i32, Vec<DeviceInfo>)> {
    if !has_driver() {
        return Err(Error::new(ErrorKind::Device, "no NVIDIA driver was found (libcuda)"));
    }
    check_functions()?;
    let (mut version, mut count) = (0, 0);
    // SAFETY: the pointers are valid for one integer each.
    unsafe {
        check(cu::cuInit(0), "starting the driver")?;
        check(cu::cuDriverGetVersion(&mut version), "asking for the version")?;
        check(cu::cuDeviceGetCount(&mut count), "counting the devices")?;
    }
    let list = (0..count.max(0)).map(describe).collect::<Result<_>>()?;
    Ok((version, list))
}

/// Refuses a driver that lacks a function: calling it would panic.
fn check_functions() -> Result<()> {
    match FUNCTIONS.iter().find(|name| !has_function(name)) {
        None => Ok(()),
        Some(name) => Err(Error::new(
            ErrorKind::Device,
            format!(
                "the NVIDIA driver has no function `{name}`, expected one of CUDA 11.4 or later"
            ),
        )),
    }
}

/// Whether the driver's library has a function of this name.
fn has_function(name: &str) -> bool {
    // SAFETY: the library is there; the address is not called, only looked up.
    unsafe { cu::culib().get::<*const c_void>(name.as_bytes()) }.is_ok()
}

fn describe(number: c_int) -> Result<DeviceInfo> {
    let (mut device, mut bytes) = (0, 0usize);
    let mut name = [0 as c_char; 128];
    let mut version = [0; 2];
    // SAFETY: all pointers are valid for what is written; the name is cut to the length given.
    unsafe {
        check(cu::cuDeviceGet(&mut device, number), "opening a device")?;
        check(cu::cuDeviceGetName(name.as_mut_ptr(), 128, device), "asking for a name")?;
        check(cu::cuDeviceTotalMem_v2(&mut bytes, device), "asking for the memory")?;
        for (out, what) in version.iter_mut().zip([
            Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
            Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
        ]) {
            check(cu::cuDeviceGetAttribute(out, what, device), "asking for the capability")?;
        }
    }
    let name: Vec<u8> = name.iter().take_while(|c| **c != 0).map(|c| *c as u8).collect();
    Ok(DeviceInfo {
        number: number as usize,
        name: String::from_utf8_lossy(&name).into_owned(),
        capability: 10 * version[0] + version[1],
        memory: bytes as u64,
    })
}

/// An open device.
pub(super) struct Gpu {
    pub(super) info: DeviceInfo,
    device: cu::CUdevice,
    context: cu::CUcontext,
    stream: cu::CUstream,
    functions: Mutex<HashMap<&'static str, Function>>,
    queue: Mutex<Queue>,
    /// Memory that was given back, by size.
    free: Mutex<HashMap<usize, Vec<u64>>>,
    /// Host memory that the device writes to directly.
    pinned: Mutex<Pinned>,
}

struct Pinned {
    at: *mut c_void,
    len: usize,
}

// SAFETY: the handles may be used from any thread that has made the context current, which every method does first;
// the driver is thread-safe, and `pinned` is only reached under its lock.
unsafe impl Send for Gpu {}
// SAFETY: as above.
unsafe impl Sync for Gpu {}

/// Memory on a device; given back when dropped.
pub(super) struct Memory {
    gpu: Arc<Gpu>,
    address: u64,
    bytes: usize,
}

impl Memory {
    pub(super) fn address(&self) -> u64 {
        self.address
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        lock(&self.gpu.free).entry(self.bytes).or_default().push(self.address);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Gpu {
    /// Opens the device that `info` describes.
    pub(super) fn open(info: DeviceInfo) -> Result<Arc<Self>> {
        if info.capability < kernels::MIN_CAPABILITY {
            return Err(Error::new(
                ErrorKind::Device,
                format!(
                    "{} has compute capability {}.{}, expected 8.0 or higher",
                    info.name,
                    info.capability / 10,
                    info.capability % 10
                ),
            ));
        }
        let mut gpu = Self {
            info,
            device: 0,
            context: ptr::null_mut(),
            stream: ptr::null_mut(),
            functions: Mutex::default(),
            queue: Mutex::new(Queue::new()),
            free: Mutex::default(),
            pinned: Mutex::new(Pinned { at: ptr::null_mut(), len: 0 }),
        };
        // SAFETY: the pointers are valid for one handle each; the context is current when the stream is made.
        unsafe {
            check(cu::cuDeviceGet(&mut gpu.device, gpu.info.number as c_int), "opening a device")?;
            check(cu::cuDevicePrimaryCtxRetain(&mut gpu.context, gpu.device), "opening a context")?;
            gpu.bind()?;
            check(cu::cuStreamCreate(&mut gpu.stream, 1), "making a stream")?;
        }
        Ok(Arc::new(gpu))
    }

    /// Makes the context current on this thread.
    fn bind(&self) -> Result<()> {
        // SAFETY: the context is alive as long as `self`.
        check(unsafe { cu::cuCtxSetCurrent(self.context) }, "entering the context")
    }

    /// Free memory, bytes.
    pub(super) fn room(&self) -> Result<u64> {
        self.bind()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: the pointers are valid for one integer each.
        check(unsafe { cu::cuMemGetInfo_v2(&mut free, &mut total) }, "asking for free memory")?;
        Ok(free as u64)
    }

    /// `bytes` of memory with any content.
    pub(super) fn alloc(self: &Arc<Self>, bytes: usize) -> Result<Memory> {
        let bytes = bytes.max(4);
        let kept = lock(&self.free).get_mut(&bytes).and_then(Vec::pop);
        let address = match kept {
            Some(address) => address,
            None => self.allocate(bytes)?,
        };
        Ok(Memory { gpu: self.clone(), address, bytes })
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        self.bind()?;
        let mut address = 0;
        // SAFETY: the pointer is valid for one address.
        let mut result = unsafe { cu::cuMemAlloc_v2(&mut address, bytes) };
        if result == CUresult::CUDA_ERROR_OUT_OF_MEMORY && self.release()? > 0 {
            // SAFETY: as above.
            result = unsafe { cu::cuMemAlloc_v2(&mut address, bytes) };
        }
        if result == CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            let have = self.room()? as f64 / 1e6;
            let need = bytes as f64 / 1e6;
            return Err(Error::new(
                ErrorKind::NoMemory,
                format!(
                    "{} has no room for {need:.2} MB more, {have:.0} MB are free",
                    self.info.name
                ),
            )
            .hint("a smaller context (--ctx-size), format (--format) or model, or --device cpu"));
        }
        check(result, "allocating memory")?;
        Ok(address)
    }

    /// Gives memory that is kept for later back to the driver; how many bytes.
    fn release(&self) -> Result<usize> {
        self.wait()?;
        let kept = std::mem::take(&mut *lock(&self.free));
        let mut bytes = 0;
        for (len, addresses) in kept {
            for address in addresses {
                // SAFETY: nobody owns these addresses any more, and the stream has come to rest.
                check(unsafe { cu::cuMemFree_v2(address) }, "freeing memory")?;
                bytes += len;
            }
        }
        Ok(bytes)
    }

    /// Waits until all work is done.
    pub(super) fn wait(&self) -> Result<()> {
        self.flush()?;
        // SAFETY: the stream is alive as long as `self`.
        check(unsafe { cu::cuStreamSynchronize(self.stream) }, "computing")
    }

    /// Copies `values` to `to`, `offset` bytes from its start.
    pub(super) fn upload<T: bytemuck::NoUninit>(
        &self,
        values: &[T],
        to: &Memory,
        offset: usize,
    ) -> Result<()> {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        assert!(offset + bytes.len() <= to.bytes, "upload past the end of a buffer");
        if bytes.is_empty() {
            return Ok(());
        }
        self.flush()?;
        let to = to.address + offset as u64;
        // SAFETY: both ranges are valid; from pageable memory the call returns once the bytes have been taken.
        let copy = unsafe {
            cu::cuMemcpyHtoDAsync_v2(to, bytes.as_ptr().cast(), bytes.len(), self.stream)
        };
        check(copy, "copying to the device")
    }

    /// Copies `out.len()` numbers from `from`, `offset` bytes from its start, once all work before is done.
    pub(super) fn download<T: bytemuck::Pod>(
        &self,
        from: &Memory,
        offset: usize,
        out: &mut [T],
    ) -> Result<()> {
        let out: &mut [u8] = bytemuck::cast_slice_mut(out);
        let len = out.len();
        assert!(offset + len <= from.bytes, "download past the end of a buffer");
        if len == 0 {
            return Ok(());
        }
        self.flush()?;
        let mut pinned = lock(&self.pinned);
        self.pin(&mut pinned, len)?;
        let from = from.address + offset as u64;
        // SAFETY: the pinned memory has at least `len` bytes, which the copy fills before the stream comes to rest;
        // `out` has as many, and the two do not overlap.
        unsafe {
            check(
                cu::cuMemcpyDtoHAsync_v2(pinned.at, from, len, self.stream),
                "copying from the device",
            )?;
            check(cu::cuStreamSynchronize(self.stream), "computing")?;
            ptr::copy_nonoverlapping(pinned.at.cast::<u8>(), out.as_mut_ptr(), len);
        }
        Ok(())
    }

    /// Makes the pinned memory at least `len` bytes large.
    fn pin(&self, pinned: &mut Pinned, len: usize) -> Result<()> {
        if pinned.len >= len {
            return Ok(());
        }
        let old = std::mem::replace(pinned, Pinned { at: ptr::null_mut(), len: 0 });
        // SAFETY: the old block came from cuMemHostAlloc and every copy to it has been waited for.
        unsafe {
            if !old.at.is_null() {
                check(cu::cuMemFreeHost(old.at), "freeing host memory")?;
            }
            check(cu::cuMemHostAlloc(&mut pinned.at, len, 0), "allocating host memory")?;
        }
        pinned.len = len;
        Ok(())
    }

    /// Copies all of `from` to `to`.
    pub(super) fn copy(&self, from: &Memory, to: &Memory) -> Result<()> {
        assert_eq!(from.bytes, to.bytes, "copy between buffers of different sizes");
        self.flush()?;
        // SAFETY: both ranges are valid.
        let copy =
            unsafe { cu::cuMemcpyDtoDAsync_v2(to.address, from.address, to.bytes, self.stream) };
        check(copy, "copying on the device")
    }

    /// Fills `to` with zeros.
    pub(super) fn clear(&self, to: &Memory) -> Result<()> {
        self.flush()?;
        // SAFETY: the range is valid.
        check(
            unsafe { cu::cuMemsetD8Async(to.address, 0, to.bytes, self.stream) },
            "clearing memory",
        )
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // Errors cannot be told any more; the driver frees what is left when the process ends.
        let _ = self.release();
        lock(&self.queue).forget();
        let pinned = lock(&self.pinned);
        // SAFETY: all handles are alive and nobody uses them any more.
        unsafe {
            for function in lock(&self.functions).values() {
                let _ = cu::cuModuleUnload(function.module);
            }
            if !pinned.at.is_null() {
                let _ = cu::cuMemFreeHost(pinned.at);
            }
            if !self.stream.is_null() {
                let _ = cu::cuStreamDestroy_v2(self.stream);
            }
            if !self.context.is_null() {
                let _ = cu::cuDevicePrimaryCtxRelease_v2(self.device);
            }
        }
    }
}

/// The error of a call of the driver while `doing` something (or running the kernel of that name).
fn check(result: CUresult, doing: &str) -> Result<()> {
    if result == CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let mut text = ptr::null();
    // SAFETY: the pointer is valid for one address; the driver gives a constant text.
    let name = unsafe {
        if cu::cuGetErrorString(result, &mut text) == CUresult::CUDA_SUCCESS && !text.is_null() {
            CStr::from_ptr(text).to_string_lossy().into_owned()
        } else {
            format!("error {}", result as u32)
        }
    };
    Err(Error::new(ErrorKind::Device, format!("the NVIDIA driver reports \"{name}\" ({doing})")))
}
