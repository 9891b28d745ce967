// RMSNorm (arXiv:1910.07467) and LayerNorm (arXiv:1607.06450), one block of 256 threads for each row.
// `add` (may be null) is added to x first, and the sum is written back: the residual stream. The mean and then the
// squares are summed in two passes, which costs a second read from the cache and no digits.
#include "block.cuh"

constexpr int THREADS = 256;

KERNEL __launch_bounds__(THREADS)
norm_rows(const float *add, float *x, const float *weight, const float *bias, float *out, u32 width, float eps, u32 centred) {
  __shared__ float scratch[THREADS / 32];
  u64 row = (u64)blockIdx.x * width;
  float sum = 0.f;
  for (u32 i = threadIdx.x; i < width; i += THREADS) {
    float v = x[row + i];
    if (add) {
      v += add[row + i];
      x[row + i] = v;
    }
    sum += v;
  }
  float mean = centred ? block_sum<THREADS>(sum, scratch) / (float)width : 0.f;
  float squares = 0.f;
  for (u32 i = threadIdx.x; i < width; i += THREADS) {
    float v = x[row + i] - mean;
    squares += v * v;
  }
  float scale = 1.f / square_root(block_sum<THREADS>(squares, scratch) / (float)width + eps);
  for (u32 i = threadIdx.x; i < width; i += THREADS) {
    float v = (x[row + i] - mean) * scale * weight[i];
    out[row + i] = bias ? v + bias[i] : v;
  }
}
