//! Modules and launches of kernels.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::codes::{
    INVALID_HANDLE, INVALID_PTX, INVALID_VALUE, LAUNCH_FAILED, NOT_FOUND, OUT_OF_RESOURCES,
    SUCCESS, of_fault,
};
use super::{CuResult, MACHINE, device, give};
use crate::decode::Kernel;
use crate::device::{LaunchError, MAX_SHARED, Shape, load_module};

pub(super) struct Function {
    pub(super) kernel: Kernel,
    /// Dynamic shared memory that `cuFuncSetAttribute` allowed, bytes.
    shared: AtomicUsize,
}

/// Dynamic shared memory that needs no permission, bytes.
pub(super) const FREE_SHARED: usize = 48 * 1024;

api! {
    /// Loads a module from PTX text that ends with a zero byte.
    fn cuModuleLoadData(module: *mut *mut c_void, image: *const c_void) {
        if image.is_null() {
            return INVALID_VALUE;
        }
        // SAFETY: the caller promises a text that ends with a zero byte.
        let text = unsafe { CStr::from_ptr(image.cast()) };
        match load(&text.to_string_lossy()) {
            // SAFETY: the caller's pointer, as the driver API asks.
            Ok(handle) => unsafe { give(module, handle as *mut c_void) },
            Err(e) => e,
        }
    }

    /// Unloads a module.
    fn cuModuleUnload(module: *mut c_void) {
        if MACHINE.state().modules.remove(&(module as usize)).is_some() { SUCCESS } else { INVALID_HANDLE }
    }

    /// A kernel of a module, by name.
    fn cuModuleGetFunction(out: *mut *mut c_void, module: *mut c_void, name: *const c_char) {
        if name.is_null() {
            return INVALID_VALUE;
        }
        // SAFETY: the caller promises a text that ends with a zero byte.
        let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
        let mut state = MACHINE.state();
        let Some(functions) = state.modules.get(&(module as usize)) else { return INVALID_HANDLE };
        let Some(found) = functions.iter().find(|f| f.kernel.name == name).cloned() else { return NOT_FOUND };
        let handle = state.handle();
        state.functions.insert(handle, found);
        // SAFETY: the caller's pointer, as the driver API asks.
        unsafe { give(out, handle as *mut c_void) }
    }

    /// Allows a kernel more dynamic shared memory (attribute 8).
    fn cuFuncSetAttribute(function: *mut c_void, attribute: c_uint, value: c_int) {
        let state = MACHINE.state();
        let Some(f) = state.functions.get(&(function as usize)) else { return INVALID_HANDLE };
        if attribute != 8 || value < 0 || value as u32 + f.kernel.shared_bytes > MAX_SHARED {
            return INVALID_VALUE;
        }
        f.shared.store(value as usize, Ordering::Relaxed);
        SUCCESS
    }

    /// Launches a kernel.
    fn cuLaunchKernel(
        function: *mut c_void, gx: c_uint, gy: c_uint, gz: c_uint, bx: c_uint, by: c_uint, bz: c_uint,
        shared: c_uint, _stream: *mut c_void, params: *mut *mut c_void, _extra: *mut *mut c_void,
    ) {
        let Some(f) = MACHINE.state().functions.get(&(function as usize)).cloned() else { return INVALID_HANDLE };
        // SAFETY: the caller passes one pointer for each parameter, to a value of its size.
        let buffer = unsafe { read_params(&f, params) };
        MACHINE.trace(|| format!("launch {}", f.kernel.name));
        launch(&f, Shape { grid: [gx, gy, gz], block: [bx, by, bz], shared }, &buffer)
    }
}

/// The parameter buffer of a kernel.
///
/// # Safety
///
/// `params` points to one pointer for each parameter, to a value of its size.
pub(super) unsafe fn read_params(f: &Function, params: *mut *mut c_void) -> Vec<u8> {
    let mut buffer = vec![0u8; f.kernel.params.last().map_or(0, |p| p.offset + p.size)];
    for (i, p) in f.kernel.params.iter().enumerate() {
        // SAFETY: promised by the caller; the buffer ends behind the last parameter.
        unsafe {
            let from = (*params.add(i)).cast::<u8>();
            std::ptr::copy_nonoverlapping(from, buffer.as_mut_ptr().add(p.offset), p.size);
        }
    }
    buffer
}

fn load(text: &str) -> Result<usize, CuResult> {
    device()?;
    let kernels = load_module(text).map_err(|e| {
        MACHINE.log(&format!("PTX {e}"));
        INVALID_PTX
    })?;
    let functions =
        kernels.into_iter().map(|kernel| Arc::new(Function { kernel, shared: FREE_SHARED.into() }));
    let mut state = MACHINE.state();
    let handle = state.handle();
    state.modules.insert(handle, functions.collect());
    Ok(handle)
}

pub(super) fn launch(f: &Function, shape: Shape, params: &[u8]) -> CuResult {
    let device = match device() {
        Ok(d) => d,
        Err(e) => return e,
    };
    let settings = &MACHINE.settings;
    let count = MACHINE.launches.fetch_add(1, Ordering::Relaxed) + 1;
    if settings.launch_fails == Some(count) {
        return MACHINE
            .break_with(LAUNCH_FAILED, &format!("launch {count} fails, as the settings ask"));
    }
    if settings.skip.as_deref() == Some(f.kernel.name.as_str()) {
        return SUCCESS;
    }
    if shape.shared as usize > f.shared.load(Ordering::Relaxed) {
        MACHINE.log(&format!(
            "kernel {}: {} bytes of shared memory were not asked for",
            f.kernel.name, shape.shared
        ));
        return INVALID_VALUE;
    }
    match device.launch(&f.kernel, shape, params) {
        Ok(()) => SUCCESS,
        Err(LaunchError::Invalid(what)) => {
            MACHINE.log(&what);
            OUT_OF_RESOURCES
        }
        Err(LaunchError::Fault(fault)) => {
            MACHINE.break_with(of_fault(fault.kind), &fault.to_string());
            // As on a device: the launch itself succeeds, the next call tells.
            SUCCESS
        }
    }
}
