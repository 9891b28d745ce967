//! How fast this machine reads memory: the ceiling of a decoded token.

use std::hint::black_box;
use std::time::Instant;

use crate::Pool;
use crate::memory::{Arena, OutOfMemory};

/// Bytes that are read: far more than any cache holds.
const LEN: usize = 512 << 20;

/// Pieces that each thread reads side by side, as the kernels read weights.
const STREAMS: usize = 4;

/// Passes, of which the fastest counts: the others were disturbed.
const PASSES: usize = 9;

/// Bytes per second that all threads of the pool together read from memory with huge pages, in several streams each.
///
/// # Errors
/// When there is no memory for it.
pub fn read_bandwidth(pool: &Pool) -> Result<f64, OutOfMemory> {
    let mut block = Arena::new().take(LEN)?;
    block.bytes_mut().fill(1);
    let (lines, _) = block.as_ref().as_chunks::<64>();
    let parts = pool.n_threads() * 8;
    let pass = || {
        let start = Instant::now();
        pool.run(parts, &|part| {
            let piece = lines.len() / parts / STREAMS;
            let at = |stream: usize| &lines[(part * STREAMS + stream) * piece..][..piece];
            let streams: [_; STREAMS] = std::array::from_fn(at);
            let mut sums = [[0_u64; 8]; STREAMS];
            for i in 0..piece {
                for (sums, stream) in sums.iter_mut().zip(streams) {
                    for (sum, word) in sums.iter_mut().zip(stream[i].as_chunks::<8>().0) {
                        *sum ^= u64::from_ne_bytes(*word);
                    }
                }
            }
            black_box(sums);
        });
        LEN as f64 / start.elapsed().as_secs_f64()
    };
    Ok((0..PASSES).map(|_| pass()).fold(0.0, f64::max))
}
