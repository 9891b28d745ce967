// Products with dense weights; see matmul.cuh.
#include "matmul.cuh"

#define GEMV(NAME, T, N)                                                                                         \
  KERNEL __launch_bounds__(GEMV_WARPS * 32, N > 2 ? 4 : 6) NAME(Targets targets, const float *x, u32 cols) {     \
    Target t = my_target(targets);                                                                               \
    gemv<T, N>(t.w, x, t.out, t.rows, cols);                                                                     \
  }
#define GEMVS(NAME, T) GEMV(NAME##_1, T, 1) GEMV(NAME##_2, T, 2) GEMV(NAME##_4, T, 4) GEMV(NAME##_8, T, 8)
GEMVS(gemv_f32, F32)
GEMVS(gemv_f16, F16)
GEMVS(gemv_bf16, BF16)

#define GEMM(NAME, T)                                                                                        \
  KERNEL __launch_bounds__(128) NAME(const u16 *w, const u16 *x, float *out, u32 n, u32 rows, u32 cols) {     \
    gemm<T>(w, x, out, Straight{n}, rows, cols);                                                             \
  }
GEMM(gemm_f16, F16)
GEMM(gemm_bf16, BF16)
KERNEL __launch_bounds__(256) gemm_f32(const float *w, const float *x, float *out, u32 n, u32 rows, u32 cols) {
  gemm_whole(w, x, out, Straight{n}, rows, cols);
}
