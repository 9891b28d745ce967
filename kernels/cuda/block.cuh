// Sums over a block.
#pragma once
#include "dev.cuh"

// The sum of `v` over a block of THREADS, the same on every thread; the order of additions is fixed. `scratch` has a
// float for each warp.
template <int THREADS> DEV float block_sum(float v, float *scratch) {
  v = warp_sum(v);
  block_sync();
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
  block_sync();
  float sum = 0.f;
#pragma unroll
  for (int w = 0; w < THREADS / 32; w++) sum += scratch[w];
  return sum;
}
