// Puts keys [n, kv_heads, k_dim] and values [n, kv_heads, v_dim] of the positions from `start` on into pages of 8 bits
// (see attend.cuh). The largest magnitude of a group becomes 127, as on the CPU; where one is not finite the scale is NaN.
// Grid (kv_heads, n), a warp each.
#include "attend.cuh"

// The unit of 32 lanes' numbers, of which `top` is each one's largest magnitude.
DEV float unit_of(float top, bool finite) {
  return lanes_where(!finite) ? as_float(0x7fffffffu) : warp_max(top) / 127.f;
}

DEV signed char rounded(float x, float unit) {
  // Adding and taking away 1.5 · 2^23 leaves no fraction bits.
  float v = (x / unit + 12582912.f) - 12582912.f;
  return unit > 0.f ? (signed char)(int)v : (signed char)0;
}

DEV float magnitude(float x) { return larger(x, -x); }

KERNEL __launch_bounds__(32)
store_q8(const u64 *pages, const float *k, const float *v, u32 kv_heads, u32 k_dim, u32 v_dim, u32 start) {
  const u32 lane = threadIdx.x, head = blockIdx.x, pos = start + blockIdx.y;
  void *page = (void *)pages[pos / PAGE];
  const u32 place = head * PAGE + pos % PAGE, groups = groups_of(k_dim);
  const float *key = k + ((u64)blockIdx.y * kv_heads + head) * k_dim, *value = v + ((u64)blockIdx.y * kv_heads + head) * v_dim;
  signed char *to = (signed char *)page + (u64)place * k_dim;
  for (u32 group = 0; group < groups; group++) {
    u32 d = group * GROUP + lane;
    float x = d < k_dim ? key[d] : 0.f;
    float unit = unit_of(magnitude(x), magnitude(x) < infinity());
    if (d < k_dim) to[d] = rounded(x, unit);
    if (lane == 0) key_scales(page, kv_heads, k_dim, v_dim)[place * groups + group] = unit;
  }
  float top = 0.f;
  bool finite = true;
  for (u32 d = lane; d < v_dim; d += 32) {
    top = larger(top, magnitude(value[d]));
    finite &= magnitude(value[d]) < infinity();
  }
  float unit = unit_of(top, finite);
  to = (signed char *)page + (u64)kv_heads * PAGE * k_dim + (u64)place * v_dim;
  for (u32 d = lane; d < v_dim; d += 32) to[d] = rounded(value[d], unit);
  if (lane == 0) value_scales(page, kv_heads, k_dim, v_dim)[place] = unit;
}
