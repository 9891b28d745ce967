// Which rows of `x` the tokens of a product are, and which rows of `out` take their results.
#pragma once
#include "dev.cuh"

// The same for all.
struct Straight {
  u32 n;
  __device__ __forceinline__ u32 from(u32 t) const { return t; }
  __device__ __forceinline__ u32 to(u32 t) const { return t; }
};

// Out of lists.
struct Listed {
  u32 n;
  const u32 *sources, *targets;
  __device__ __forceinline__ u32 from(u32 t) const { return sources[t]; }
  __device__ __forceinline__ u32 to(u32 t) const { return targets[t]; }
};
