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

// A cache in 8 bits. Behind a page's keys and values [kv_heads, PAGE, dim] stand their scales in f32: those of keys
// [kv_heads, PAGE, groups], one for each GROUP elements, then those of values [kv_heads, PAGE].
constexpr u32 GROUP = 32;

DEV u32 groups_of(u32 k_dim) { return (k_dim + GROUP - 1) / GROUP; }
DEV float *key_scales(void *page, u32 kv_heads, u32 k_dim, u32 v_dim) {
  return (float *)((u8 *)page + (u64)kv_heads * PAGE * (k_dim + v_dim));
}
DEV float *value_scales(void *page, u32 kv_heads, u32 k_dim, u32 v_dim) {
  return key_scales(page, kv_heads, k_dim, v_dim) + (u64)kv_heads * PAGE * groups_of(k_dim);
}

// Byte k of `bytes`, minus 128, by way of the mantissa of 2^23: cheaper than a conversion.
template <int K> DEV float unbiased_byte(u32 bytes) {
  return as_float(permute(bytes, 0x4b000000u, 0x7540 + K)) - (8388608.f + 128.f);
}

// Its elements, without the scales.
struct I8 {
  DEV float load(const void *p, u64 i) { return (float)((const signed char *)p)[i]; }
  // Eight elements, the first at a multiple of 8 bytes.
  DEV void load8(const void *p, u64 i, float (&v)[8]) {
    u64 bytes = *(const u64 *)((const u8 *)p + i);
    widen8((u32)bytes, (u32)(bytes >> 32), v);
  }
  DEV void widen8(u32 low, u32 high, float (&v)[8]) {
    low ^= 0x80808080u;
    high ^= 0x80808080u;
    v[0] = unbiased_byte<0>(low);
    v[1] = unbiased_byte<1>(low);
    v[2] = unbiased_byte<2>(low);
    v[3] = unbiased_byte<3>(low);
    v[4] = unbiased_byte<0>(high);
    v[5] = unbiased_byte<1>(high);
    v[6] = unbiased_byte<2>(high);
    v[7] = unbiased_byte<3>(high);
  }
};

// Whether the elements of a cache have scales.
template <class T> struct Scaled { static constexpr bool YES = false; };
template <> struct Scaled<I8> { static constexpr bool YES = true; };
