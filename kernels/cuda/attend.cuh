// What both attentions share: which keys a query sees, and what is added to their scores.
#pragma once
#include "dev.cuh"

// One layer's attention. Pages as in `store` (elementwise.cu).
struct Attend {
  const u64 *pages;
  const float *q;       // [n, heads, head_dim]
  float *out;           // [n, heads, v_dim]
  const float *slopes;  // [heads], or null
  u32 heads, kv_heads;
  u32 head_dim, v_dim;  // width of a query or key, and of a value
  u32 n, start;         // the first query's position
  u32 window;           // positions seen, the own one included; 0 for all
  float scale;
  float softcap;        // scores are squashed to ± this; 0 for not (decode only)
};

DEV u32 first_seen(const Attend &a, u32 pos) { return a.window && pos + 1 > a.window ? pos + 1 - a.window : 0; }

// The score of a key at distance `back` behind the query, in powers of two.
DEV float biased(float score, float slope, u32 back) { return (score - slope * (float)back) * LOG2E; }

DEV float capped(const Attend &a, float score) {
  return a.softcap > 0.f ? a.softcap * tanh_fast(score / a.softcap) : score;
}
