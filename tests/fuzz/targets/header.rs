//! A safetensors file of any bytes: an error or tensors inside the file, never a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tramontane::checkpoint::Checkpoint;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(checkpoint) = Checkpoint::from_bytes(bytes.to_vec(), "fuzz.safetensors") {
        for tensor in checkpoint.tensors() {
            let values: usize = tensor.shape.iter().product();
            assert_eq!(tensor.bytes.len() * 8, values * tensor.dtype.bitsize());
            if let Ok(read) = tensor.to_f32() {
                assert_eq!(read.len(), values);
            }
        }
    }
});
