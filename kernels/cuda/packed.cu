// Products and rows of packed weights; see packed.cuh.
#include "packed.cuh"

#define GEMV(NAME, Q, N)                                                                                              \
  KERNEL __launch_bounds__(WARPS * 32, N > 4 ? 2 : N > 1 ? 3 : 4) NAME(Targets targets, const float *x, u32 cols) {               \
    Target t = my_target(targets);                                                                                    \
    /* The other matrices may have more panels. */                                                                    \
    if (blockIdx.x * PANEL < t.rows) gemv<Q, N>((const u8 *)t.w, x, t.out, t.rows, cols);                             \
  }
#define GEMVS(NAME, Q) GEMV(NAME##_1, Q, 1) GEMV(NAME##_2, Q, 2) GEMV(NAME##_4, Q, 4) GEMV(NAME##_8, Q, 8)
GEMVS(gemv_q8, Q8)
GEMVS(gemv_q4, Q4)

#define GEMM(NAME, Q)                                                                                        \
  KERNEL __launch_bounds__(128) NAME(const u8 *w, const u16 *x, float *out, u32 n, u32 rows, u32 cols) {      \
    gemm<Q>(w, x, out, Straight{n}, rows, cols);                                                             \
  }
GEMM(gemm_q8, Q8)
GEMM(gemm_q4, Q4)

// x[t] = table[ids[t]]; table [vocab, width] packed, x [n, width]. Grid (width / 256, n).
template <class Q> DEV void embed(const u8 *table, const u32 *ids, float *x, u32 width) {
  u32 i = blockIdx.x * blockDim.x + threadIdx.x, t = blockIdx.y, row = ids[t];
  if (i < width) x[(u64)t * width + i] = Q::weight(panel_of<Q>(table, row / PANEL, width), row % PANEL, i);
}
KERNEL embed_q8(const u8 *table, const u32 *ids, float *x, u32 width) { embed<Q8>(table, ids, x, width); }
KERNEL embed_q4(const u8 *table, const u32 *ids, float *x, u32 width) { embed<Q4>(table, ids, x, width); }
