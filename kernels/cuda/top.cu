// The k largest of many values, in order: what sampling needs of 128k logits, so that only these cross the bus.
//
// Each block sorts SPAN values in shared memory (bitonic) and writes the first k with their indices. The host runs the
// kernel again on what came out until one block is enough. Equal values are ordered by index, NaN comes first.
#include "dev.cuh"

constexpr int SPAN = 1024;
constexpr int THREADS = 512;

// values [n], indices [n] or null (then a value's index is its place) → the k largest of each span.
KERNEL __launch_bounds__(THREADS) top_k(const float *values, const u32 *indices, u32 n, u32 k, float *out_values, u32 *out_indices) {
  __shared__ u64 keys[SPAN];
  const u32 first = blockIdx.x * SPAN, count = smaller_int(SPAN, n - first);
#pragma unroll
  for (int j = 0; j < SPAN / THREADS; j++) {
    u32 i = threadIdx.x + j * THREADS;
    keys[i] = i < count ? sort_key(values[first + i], indices ? indices[first + i] : first + i) : 0;
  }
  for (u32 size = 2; size <= SPAN; size *= 2)
    for (u32 step = size / 2; step > 0; step /= 2) {
      block_sync();
      u32 i = threadIdx.x / step * step * 2 + threadIdx.x % step;
      u64 a = keys[i], b = keys[i + step];
      bool falling = (i & size) == 0;
      if (falling ? a < b : a > b) {
        keys[i] = b;
        keys[i + step] = a;
      }
    }
  block_sync();
  for (u32 i = threadIdx.x; i < k; i += THREADS) {
    u64 key = keys[i];
    // A short span is filled up with the smallest value and no index.
    out_values[(u64)blockIdx.x * k + i] = i < count ? sort_value(key) : -infinity();
    out_indices[(u64)blockIdx.x * k + i] = i < count ? sort_index(key) : 0xffffffffu;
  }
}
