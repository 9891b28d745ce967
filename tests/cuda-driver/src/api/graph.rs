//! Graphs of kernels: made node by node, prepared once, changed, and started as a whole.
//!
//! Stricter than a device: nodes that no chain of dependencies puts in an order run the later one first, so that a
//! forgotten dependency shows. As on a device a kernel's failure shows only after the call that started the graph.

use std::collections::HashMap;
use std::ffi::{c_uint, c_ulonglong, c_void};
use std::sync::Arc;

use super::codes::{INVALID_VALUE, NOT_SUPPORTED, SUCCESS};
use super::kernels::{Function, launch, read_params};
use super::{CuResult, MACHINE, device, give};
use crate::device::Shape;

/// All graphs, by their handles.
#[derive(Default)]
pub(super) struct Graphs {
    /// The nodes of each graph, in the order of their making.
    graphs: HashMap<usize, Vec<usize>>,
    nodes: HashMap<usize, Node>,
    prepared: HashMap<usize, Prepared>,
}

struct Node {
    graph: usize,
    after: Vec<usize>,
    work: Work,
}

/// A graph that can be started.
struct Prepared {
    graph: usize,
    /// Handles of the nodes and what they do, in the order in which they run.
    steps: Vec<(usize, Work)>,
}

#[derive(Clone)]
struct Work {
    function: Arc<Function>,
    shape: Shape,
    params: Vec<u8>,
}

/// `CUDA_KERNEL_NODE_PARAMS_v2`.
#[repr(C)]
pub struct KernelNodeParams {
    function: *mut c_void,
    grid: [c_uint; 3],
    block: [c_uint; 3],
    shared: c_uint,
    params: *mut *mut c_void,
    extra: *mut *mut c_void,
    kernel: *mut c_void,
    context: *mut c_void,
}

impl KernelNodeParams {
    /// Those of a node that launches `function`; `params` points to one pointer for each parameter.
    #[must_use]
    pub fn new(
        function: *mut c_void,
        grid: [u32; 3],
        block: [u32; 3],
        shared: u32,
        params: *mut *mut c_void,
    ) -> Self {
        let nothing: *mut c_void = std::ptr::null_mut();
        let (kernel, context) = (nothing, nothing);
        Self { function, grid, block, shared, params, extra: nothing.cast(), kernel, context }
    }
}

api! {
    /// A new graph.
    fn cuGraphCreate(graph: *mut *mut c_void, flags: c_uint) {
        if let Err(e) = begin("cuGraphCreate") {
            return e;
        }
        if flags != 0 {
            return INVALID_VALUE;
        }
        let mut state = MACHINE.state();
        let handle = state.handle();
        state.graphs.graphs.insert(handle, Vec::new());
        // SAFETY: the caller's pointer, as the driver API asks.
        unsafe { give(graph, handle as *mut c_void) }
    }

    /// A new node that launches a kernel after others have ended. The parameters are copied.
    fn cuGraphAddKernelNode_v2(
        node: *mut *mut c_void, graph: *mut c_void, after: *const *mut c_void, count: usize,
        params: *const KernelNodeParams,
    ) {
        if let Err(e) = begin("cuGraphAddKernelNode_v2") {
            return e;
        }
        // SAFETY: the caller passes `count` handles, and parameters as the driver API asks.
        let (after, work) = unsafe { (handles(after, count), work(params)) };
        let Some(work) = work else { return mistake("a node without a kernel") };
        let mut state = MACHINE.state();
        let handle = state.handle();
        let graph = graph as usize;
        let graphs = &mut state.graphs;
        let known = |node: &usize| graphs.nodes.get(node).is_some_and(|n| n.graph == graph);
        if !after.iter().all(known) {
            return mistake("a dependency on a node of another graph");
        }
        let Some(nodes) = graphs.graphs.get_mut(&graph) else { return mistake("a node of no graph") };
        nodes.push(handle);
        graphs.nodes.insert(handle, Node { graph, after, work });
        // SAFETY: the caller's pointer, as the driver API asks.
        unsafe { give(node, handle as *mut c_void) }
    }

    /// Prepares a graph: later changes of it do not matter.
    fn cuGraphInstantiateWithFlags(out: *mut *mut c_void, graph: *mut c_void, _flags: c_ulonglong) {
        if let Err(e) = begin("cuGraphInstantiateWithFlags") {
            return e;
        }
        let mut state = MACHINE.state();
        let Some(prepared) = state.graphs.prepare(graph as usize) else { return mistake("no graph to prepare") };
        MACHINE.trace(|| format!("prepare {}", prepared.steps.len()));
        let handle = state.handle();
        state.graphs.prepared.insert(handle, prepared);
        // SAFETY: the caller's pointer, as the driver API asks.
        unsafe { give(out, handle as *mut c_void) }
    }

    /// Changes what a node of a prepared graph does; the kernel must stay the same.
    fn cuGraphExecKernelNodeSetParams_v2(
        prepared: *mut c_void, node: *mut c_void, params: *const KernelNodeParams,
    ) {
        if let Err(e) = begin("cuGraphExecKernelNodeSetParams_v2") {
            return e;
        }
        // SAFETY: the caller passes parameters as the driver API asks.
        let Some(new) = (unsafe { work(params) }) else { return mistake("a change to no kernel") };
        let mut state = MACHINE.state();
        let graphs = &mut state.graphs;
        let node = node as usize;
        let Some(graph) = graphs.nodes.get(&node).map(|n| n.graph) else { return mistake("a change of no node") };
        let Some(prepared) = graphs.prepared.get_mut(&(prepared as usize)).filter(|p| p.graph == graph) else {
            return mistake("a change of a node of another graph");
        };
        let Some((_, old)) = prepared.steps.iter_mut().find(|(handle, _)| *handle == node) else {
            return mistake("a change of a node that was not prepared");
        };
        if !Arc::ptr_eq(&old.function, &new.function) {
            return mistake("a change to another kernel");
        }
        MACHINE.trace(|| format!("change {}", new.function.kernel.name));
        *old = new;
        SUCCESS
    }

    /// Starts a prepared graph.
    fn cuGraphLaunch(prepared: *mut c_void, _stream: *mut c_void) {
        if let Err(e) = begin("cuGraphLaunch") {
            return e;
        }
        let steps = MACHINE.state().graphs.prepared.get(&(prepared as usize)).map(|p| p.steps.clone());
        let Some(steps) = steps else { return mistake("no graph to start") };
        MACHINE.trace(|| format!("graph {}", steps.len()));
        for (_, work) in steps {
            if launch(&work.function, work.shape, &work.params) != SUCCESS {
                // The next call tells.
                break;
            }
        }
        SUCCESS
    }

    /// Ends a prepared graph.
    fn cuGraphExecDestroy(prepared: *mut c_void) {
        match MACHINE.state().graphs.prepared.remove(&(prepared as usize)) {
            Some(_) => SUCCESS,
            None => mistake("no prepared graph to end"),
        }
    }

    /// Ends a graph and its nodes.
    fn cuGraphDestroy(graph: *mut c_void) {
        let mut state = MACHINE.state();
        let Some(nodes) = state.graphs.graphs.remove(&(graph as usize)) else { return mistake("no graph to end") };
        for node in nodes {
            state.graphs.nodes.remove(&node);
        }
        SUCCESS
    }
}

impl Graphs {
    fn prepare(&self, graph: usize) -> Option<Prepared> {
        let mut left = self.graphs.get(&graph)?.clone();
        let mut steps = Vec::with_capacity(left.len());
        // Nodes only depend on older ones, so some node is always ready.
        while !left.is_empty() {
            let ready = |node: &usize| self.nodes[node].after.iter().all(|n| !left.contains(n));
            let last = left.iter().rposition(ready)?;
            let node = left.remove(last);
            steps.push((node, self.nodes[&node].work.clone()));
        }
        Some(Prepared { graph, steps })
    }
}

/// What every call that needs the device begins with: its failure, or the one that the settings ask for.
fn begin(name: &str) -> Result<(), CuResult> {
    device()?;
    if MACHINE.settings.graph_fails.as_deref() == Some(name) { Err(NOT_SUPPORTED) } else { Ok(()) }
}

/// The answer to a call that makes no sense.
fn mistake(what: &str) -> CuResult {
    MACHINE.log(&format!("graphs: {what}"));
    INVALID_VALUE
}

/// # Safety
///
/// `from` points to `count` handles.
unsafe fn handles(from: *const *mut c_void, count: usize) -> Vec<usize> {
    // SAFETY: promised by the caller.
    (0..count).map(|i| unsafe { *from.add(i) } as usize).collect()
}

/// What a node shall do; `None` where the function is unknown.
///
/// # Safety
///
/// `params` is null or points to the parameters of a node, as the driver API asks.
unsafe fn work(params: *const KernelNodeParams) -> Option<Work> {
    // SAFETY: promised by the caller.
    let p = unsafe { params.as_ref() }?;
    let function = MACHINE.state().functions.get(&(p.function as usize)).cloned()?;
    // SAFETY: there is one pointer for each parameter of the function.
    let params = unsafe { read_params(&function, p.params) };
    Some(Work { function, shape: Shape { grid: p.grid, block: p.block, shared: p.shared }, params })
}
