//! A decoded token allocates nothing: counted by the allocator itself.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use tramontane::model::Plan;
use tramontane::nn::graph::{Graph, Logits, Rows};
use tramontane::ops::Cpu;
use tramontane::{Format, KvFormat, LoadOptions};

/// The system's allocator, with a count of what it was asked for.
struct Counting;

static COUNT: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, SeqCst);
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        COUNT.fetch_add(1, SeqCst);
        // SAFETY: as the caller promised.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The only test of this file: what other tests allocate must not be counted.
#[test]
fn a_decoded_token_allocates_nothing() {
    let plan = Plan::load("", &LoadOptions::default()).unwrap();
    for (format, kv) in [(Format::Bf16, KvFormat::F16), (Format::Q4, KvFormat::Q8)] {
        let device = Cpu::new(Some(2)).unwrap();
        let (architecture, checkpoint) = (plan.architecture.clone(), &plan.checkpoint);
        let graph = Graph::load(device, architecture, checkpoint, format, &mut |_, _| {}).unwrap();
        let mut sequence = graph.sequence(kv).unwrap();
        let mut logits = Logits::default();
        let mut decode = |ids: &[u32]| {
            logits.clear();
            graph.forward(ids, &mut sequence, Rows::Last, &mut logits, &|| true).unwrap();
        };
        // A prompt, and tokens until each thread has had every kind of part once. The cache grows by blocks of 128
        // positions, so that the tokens that are counted stay inside the first.
        decode(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
        (0..20).for_each(|id| decode(&[id]));
        let before = COUNT.load(SeqCst);
        (0..80).for_each(|id| decode(&[id]));
        let allocations = COUNT.load(SeqCst) - before;
        assert_eq!(allocations, 0, "{format} weights, {kv} cache: allocations of 80 tokens");
    }
}
