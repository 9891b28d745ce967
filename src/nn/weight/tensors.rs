//! Rearranging stored matrices: rows out of a fused matrix, other orders of rows, transposition.
//!
//! All of it works on whole elements as bytes, whatever their type, and lets go of the mapped pages it has read.

use tramontane_models::names::Part;
use tramontane_models::spec::Attention;

use crate::checkpoint::{Bytes, TensorData};

/// Rows of queries or keys in the order in which row `i` of a head turns with row `i + head_dim/2`, from the
/// order in which row `2i` turns with row `2i + 1`.
pub(super) fn halves_from_neighbours(tensor: &TensorData, head_dim: usize) -> TensorData {
    let row = row_bytes(tensor);
    let mut bytes = Vec::with_capacity(tensor.bytes.len());
    for head in tensor.bytes.chunks_exact(head_dim * row) {
        for start in [0, 1] {
            head.chunks_exact(row)
                .skip(start)
                .step_by(2)
                .for_each(|row| bytes.extend_from_slice(row));
        }
    }
    rearranged(tensor, tensor.shape.clone(), bytes)
}

/// The rows of `part` (queries, keys or values) out of `fused`.
///
/// `by_group`: for each key/value head its queries, its key, its value; else all queries, all keys, all values.
pub(super) fn rows_of_qkv(
    fused: &TensorData,
    part: Part,
    a: &Attention,
    by_group: bool,
) -> TensorData {
    let per_group = a.n_heads / a.n_kv_heads;
    let (groups, queries, units) =
        if by_group { (a.n_kv_heads, per_group, 1) } else { (1, a.n_heads, a.n_kv_heads) };
    let (skip, take) = if part == Part::Q {
        (0, queries)
    } else {
        (if part == Part::K { queries } else { queries + units }, units)
    };
    let unit = a.head_dim * row_bytes(fused);
    let group = (queries + 2 * units) * unit;
    let mut bytes = Vec::with_capacity(groups * take * unit);
    for all in fused.bytes.chunks_exact(group) {
        bytes.extend_from_slice(&all[skip * unit..(skip + take) * unit]);
    }
    let mut shape = fused.shape.clone();
    shape[0] = groups * take * a.head_dim;
    rearranged(fused, shape, bytes)
}

/// `[cols, rows]` as `[rows, cols]`.
pub(super) fn transposed(tensor: &TensorData) -> TensorData {
    let (cols, rows) = (tensor.shape[0], tensor.shape[1]);
    let element = tensor.bytes.len() / tensor.len().max(1);
    let mut bytes = Vec::with_capacity(tensor.bytes.len());
    for row in 0..rows {
        for col in 0..cols {
            bytes.extend_from_slice(&tensor.bytes[(col * rows + row) * element..][..element]);
        }
    }
    rearranged(tensor, vec![rows, cols], bytes)
}

/// Bytes of one row; a bias has rows of one element.
fn row_bytes(tensor: &TensorData) -> usize {
    tensor.bytes.len() / tensor.shape[0]
}

fn rearranged(from: &TensorData, shape: Vec<usize>, bytes: Vec<u8>) -> TensorData {
    from.bytes.release();
    let mut tensor = from.clone();
    (tensor.shape, tensor.bytes) = (shape, Bytes::from(bytes));
    tensor
}
