// Which matrices a launch multiplies; which rows of `x` the tokens of a product are, and which rows of `out` take their
// results.
#pragma once
#include "dev.cuh"

// Up to three matrices that meet the same input, each with a row of blocks: queries, keys and values, or gate and up.
struct Target {
  const void *w;
  float *out;
  u32 rows;
};
struct Targets {
  Target of[3];
};
DEV Target my_target(const Targets &t) { return blockIdx.y == 0 ? t.of[0] : blockIdx.y == 1 ? t.of[1] : t.of[2]; }

// The same rows for all.
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
