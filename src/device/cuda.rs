//! A model on an NVIDIA GPU, and what happens when the GPU cannot take it or fails later.
//!
//! Where the caller left the choice, a sequence keeps the ids that made it: when the GPU fails in the midst of a text,
//! the model is loaded on the CPU, the ids pass there once more, and the text goes on.

use std::any::Any;
use std::sync::{Mutex, OnceLock, PoisonError};

use super::{Notes, Opened, Placement, Request, on_cpu};
use crate::cache::{Runtime, State};
use crate::error::{Error, ErrorKind, Result};
use crate::memory::buffer_bytes;
use crate::nn::graph::{Graph, Logits, Rows};
use crate::ops::{Cuda, KvFormat, Ops as _, cuda};

/// Opens CUDA device `number`, or the first one that the kernels run on, if it can take the model.
fn find(request: &Request, number: Option<usize>) -> Result<Cuda> {
    let device = Cuda::new(number)?;
    device.check_supported(&request.architecture)?;
    let architecture = &request.architecture;
    let buffers =
        buffer_bytes(architecture, Cuda::CHUNK) + Cuda::scratch_bytes(architecture, Cuda::CHUNK);
    let others: Vec<_> =
        request.estimates.iter().map(|(f, other)| (*f, other.on_gpu(buffers))).collect();
    let estimate = request.estimate.on_gpu(buffers);
    estimate.check_room(&device.name(), device.room()?, &others)?;
    Ok(device)
}

/// Where the model would run on CUDA device `number`.
pub(super) fn place(request: &Request, number: Option<usize>) -> Result<Placement> {
    let device = find(request, number)?;
    let free = Some(device.room()?);
    Ok(Placement { device: device.name(), threads: 1, free, reason: None })
}

/// Loads the model on CUDA device `number`, or the first one that the kernels run on.
pub(super) fn open(
    request: &Request,
    number: Option<usize>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Opened> {
    let device = find(request, number)?;
    for heads in cuda::head_shapes(&request.architecture) {
        device.self_test(request.stored, request.kv, heads)?;
    }
    device.self_test_layers(request.stored, &request.architecture)?;
    let name = device.name();
    let (architecture, checkpoint) = (request.architecture.clone(), &request.checkpoint);
    let graph = Graph::load(device, architecture, checkpoint, request.format, progress)?;
    Ok(Opened::new(graph, name, 1))
}

/// Loads the model on a GPU if there is one that can take it, else on the CPU.
///
/// A machine without a driver is nothing to speak of: the reason is kept, but no note is made.
pub(super) fn open_or_cpu(request: &Request, progress: &mut dyn FnMut(u64, u64)) -> Result<Opened> {
    let e = match open(request, None, progress) {
        Ok(opened) => return Ok(with_fallback(opened, request)),
        Err(e) if is_device(&e) => e,
        Err(e) => return Err(e),
    };
    let mut opened = on_cpu(request, progress)?;
    if cuda::has_driver() {
        opened.notes.add(format!("computing on the CPU: {}", reason(&e)));
    }
    opened.reason = Some(reason(&e));
    Ok(opened)
}

fn with_fallback(opened: Opened, request: &Request) -> Opened {
    let notes = Notes::default();
    let fallback = Fallback {
        first: opened.runtime,
        request: request.clone(),
        cpu: OnceLock::new(),
        loading: Mutex::default(),
        notes: notes.clone(),
    };
    Opened { runtime: Box::new(fallback), notes, ..opened }
}

/// Whether an error is the device's and not the model's.
fn is_device(e: &Error) -> bool {
    matches!(e.kind(), ErrorKind::Device | ErrorKind::NoMemory | ErrorKind::NotSupported)
}

/// The first line of an error.
pub(super) fn reason(e: &Error) -> String {
    e.to_string().lines().next().unwrap_or_default().to_owned()
}

/// A model on a GPU, and on the CPU from the moment when the GPU fails.
struct Fallback {
    first: Box<dyn Runtime>,
    request: Request,
    cpu: OnceLock<Box<dyn Runtime>>,
    /// Held while the model is loaded on the CPU, so that two sequences do not load it twice.
    loading: Mutex<()>,
    notes: Notes,
}

/// A sequence, with the ids that made it.
struct Replayable {
    state: Box<dyn State>,
    on_cpu: bool,
    kv: KvFormat,
    ids: Vec<u32>,
}

impl State for Replayable {
    fn len(&self) -> usize {
        self.ids.len()
    }

    fn bytes(&self) -> u64 {
        self.state.bytes()
    }

    fn truncate(&mut self, len: usize) -> bool {
        let kept = self.state.truncate(len);
        self.ids.truncate(self.state.len());
        kept
    }

    fn fork(&self) -> Box<dyn State> {
        let (state, ids) = (self.state.fork(), self.ids.clone());
        Box::new(Self { state, ids, on_cpu: self.on_cpu, kv: self.kv })
    }
}

impl Fallback {
    /// The model on the CPU, loaded when it is first needed.
    fn cpu(&self) -> Result<&dyn Runtime> {
        let _loading = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cpu) = self.cpu.get() {
            return Ok(&**cpu);
        }
        let opened = on_cpu(&self.request, &mut |_, _| {})?;
        Ok(&**self.cpu.get_or_init(|| opened.runtime))
    }

    /// Moves a sequence to the CPU, where its ids pass again.
    fn move_over(&self, sequence: &mut Replayable, go_on: &dyn Fn() -> bool) -> Result<()> {
        let cpu = self.cpu()?;
        let mut state = cpu.sequence(sequence.kv)?;
        if !sequence.ids.is_empty() {
            cpu.forward(&sequence.ids, &mut *state, Rows::None, &mut Logits::default(), go_on)?;
        }
        (sequence.state, sequence.on_cpu) = (state, true);
        Ok(())
    }

    /// Passes `ids` through the model where the sequence is, and on the CPU if that fails.
    fn pass(
        &self,
        ids: &[u32],
        sequence: &mut Replayable,
        rows: Rows,
        logits: &mut Logits,
        go_on: &dyn Fn() -> bool,
    ) -> Result<()> {
        if !sequence.on_cpu {
            let before = logits.values.len();
            match self.first.forward(ids, &mut *sequence.state, rows, logits, go_on) {
                Err(e) if is_device(&e) => {
                    logits.values.truncate(before);
                    if self.cpu.get().is_none() {
                        self.notes.add(format!("going on on the CPU: {}", reason(&e)));
                    }
                    self.move_over(sequence, go_on)?;
                }
                result => return result,
            }
        }
        self.cpu()?.forward(ids, &mut *sequence.state, rows, logits, go_on)
    }
}

impl Runtime for Fallback {
    fn sequence(&self, kv: KvFormat) -> Result<Box<dyn State>> {
        let on_cpu = self.cpu.get().is_some();
        let state = if on_cpu { self.cpu()?.sequence(kv)? } else { self.first.sequence(kv)? };
        Ok(Box::new(Replayable { state, on_cpu, kv, ids: Vec::new() }))
    }

    fn forward(
        &self,
        ids: &[u32],
        state: &mut dyn State,
        rows: Rows,
        logits: &mut Logits,
        go_on: &dyn Fn() -> bool,
    ) -> Result<()> {
        let state: &mut dyn Any = state;
        let Some(sequence) = state.downcast_mut::<Replayable>() else {
            return Err(Error::bad_input(
                "the cache belongs to another device, expected one made by this model",
            ));
        };
        let result = self.pass(ids, sequence, rows, logits, go_on);
        match result {
            Ok(()) => sequence.ids.extend(ids),
            // A recurrent layer that has moved on leaves nothing.
            Err(_) => sequence.ids.truncate(sequence.state.len()),
        }
        result
    }
}
