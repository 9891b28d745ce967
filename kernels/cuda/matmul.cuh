// Products with dense weights, for matmul.cu and experts.cu: out = x · wᵀ, w [rows, cols] in its format, x [n, cols],
// out [n, rows] f32.
//
// gemv: 1 to 8 tokens, bound by reading w once. Each warp makes two rows, so x (which stays in the L1 cache) is read
// half as often; 16-byte loads.
// gemm: many tokens, bound by the tensor cores. Tiles of 64 tokens by 128 rows, 32 columns deep, three of them in
// flight (cp.async). Rows in shared memory are 80 bytes apart, an odd number of 16-byte pieces, so that the eight rows
// of an ldmatrix fall into different banks. Activations are rounded to the weights' type before.
// gemm_whole: the same for f32 weights, without tensor cores, for they would round to 11 bits.
#pragma once
#include "dev.cuh"
#include "rows.cuh"

constexpr int GEMV_WARPS = 4;
constexpr int GEMV_ROWS = 2;

template <class T, int N> DEV void gemv(const void *w, const float *x, float *out, u32 rows, u32 cols) {
  u32 lane = threadIdx.x % 32;
  u64 first = ((u64)blockIdx.x * GEMV_WARPS + threadIdx.x / 32) * GEMV_ROWS;
  if (first >= rows) return;
  float sums[GEMV_ROWS][N];
#pragma unroll
  for (int r = 0; r < GEMV_ROWS; r++)
#pragma unroll
    for (int t = 0; t < N; t++) sums[r][t] = 0.f;
  // The last warp may have one row only: it computes that row twice and writes it once.
  u64 at[GEMV_ROWS];
#pragma unroll
  for (int r = 0; r < GEMV_ROWS; r++) at[r] = (first + r < rows ? first + r : first) * cols;
  if (cols % 8 == 0) {
    for (u32 c = lane * 8; c < cols; c += 256) {
      float a[GEMV_ROWS][8];
#pragma unroll
      for (int r = 0; r < GEMV_ROWS; r++) T::load8(w, at[r] + c, a[r]);
#pragma unroll
      for (int t = 0; t < N; t++) {
        float b[8];
        F32::load8(x, (u64)t * cols + c, b);
#pragma unroll
        for (int r = 0; r < GEMV_ROWS; r++)
#pragma unroll
          for (int k = 0; k < 8; k++) sums[r][t] += a[r][k] * b[k];
      }
    }
  } else {
    for (u32 c = lane; c < cols; c += 32)
#pragma unroll
      for (int t = 0; t < N; t++) {
        float b = x[(u64)t * cols + c];
#pragma unroll
        for (int r = 0; r < GEMV_ROWS; r++) sums[r][t] += T::load(w, at[r] + c) * b;
      }
  }
#pragma unroll
  for (int r = 0; r < GEMV_ROWS; r++)
#pragma unroll
    for (int t = 0; t < N; t++) {
      float sum = warp_sum(sums[r][t]);
      if (lane == 0 && first + r < rows) out[(u64)t * rows + first + r] = sum;
    }
}
constexpr int TILE_TOKENS = 64, TILE_ROWS = 128, TILE_DEPTH = 32, STAGES = 3;
constexpr int PITCH = TILE_DEPTH * 2 + 16;
constexpr int STAGE_BYTES = (TILE_TOKENS + TILE_ROWS) * PITCH;

// Begins the copies of one stage: TILE_DEPTH columns from `c` on. Beyond the matrix there are zeros.
template <class R>
DEV void load_stage(u32 to, const u16 *x, const u16 *w, const R &tokens, u32 rows, u32 cols, u32 t0, u32 r0, u32 c) {
  constexpr int PIECES = TILE_DEPTH / 8;
#pragma unroll
  for (int i = 0; i < (TILE_TOKENS + TILE_ROWS) * PIECES / 128; i++) {
    u32 piece = threadIdx.x + i * 128, line = piece / PIECES, col = c + piece % PIECES * 8;
    bool is_x = line < TILE_TOKENS;
    u32 row = is_x ? t0 + line : r0 + line - TILE_TOKENS;
    bool valid = row < (is_x ? tokens.n : rows) && col < cols;
    if (is_x && valid) row = tokens.from(row);
    const u16 *from = (is_x ? x : w) + (valid ? (u64)row * cols + col : 0);
    copy_async16(to + line * PITCH + piece % PIECES * 16, from, valid);
  }
}

template <class T, class R>
DEV void gemm(const u16 *w, const u16 *x, float *out, const R &tokens, u32 rows, u32 cols) {
  DYNAMIC_SHARED(shared);
  u32 base = shared_address(shared);
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  u32 r0 = blockIdx.x * TILE_ROWS, t0 = blockIdx.y * TILE_TOKENS;
  // Four warps: two down the tokens, two along the rows; each makes 32 by 64.
  int wt = warp / 2 * 32, wr = warp % 2 * 64;
  float sums[2][8][4];
#pragma unroll
  for (int i = 0; i < 2; i++)
#pragma unroll
    for (int j = 0; j < 8; j++)
#pragma unroll
      for (int e = 0; e < 4; e++) sums[i][j][e] = 0.f;
  u32 steps = (cols + TILE_DEPTH - 1) / TILE_DEPTH;
#pragma unroll
  for (int s = 0; s < STAGES - 1; s++) {
    if (s < (int)steps) load_stage(base + s * STAGE_BYTES, x, w, tokens, rows, cols, t0, r0, s * TILE_DEPTH);
    copy_commit();
  }
  for (u32 s = 0; s < steps; s++) {
    copy_wait<STAGES - 2>();
    block_sync();
    // The stage that is filled now was read in the step before, which the barrier has ended.
    u32 ahead = s + STAGES - 1;
    if (ahead < steps) load_stage(base + ahead % STAGES * STAGE_BYTES, x, w, tokens, rows, cols, t0, r0, ahead * TILE_DEPTH);
    copy_commit();
    u32 tile = base + s % STAGES * STAGE_BYTES, weights = tile + TILE_TOKENS * PITCH;
#pragma unroll
    for (int k = 0; k < TILE_DEPTH / 16; k++) {
      u32 a[2][4];
#pragma unroll
      for (int i = 0; i < 2; i++)
        load_matrices(a[i], tile + (wt + i * 16 + lane % 16) * PITCH + k * 32 + lane / 16 * 16);
#pragma unroll
      for (int j = 0; j < 8; j += 2) {
        u32 b[4];
        load_matrices(b, weights + (wr + j * 8 + lane % 8 + lane / 16 * 8) * PITCH + k * 32 + lane / 8 % 2 * 16);
#pragma unroll
        for (int i = 0; i < 2; i++) {
          T::mma(sums[i][j], a[i], b[0], b[1]);
          T::mma(sums[i][j + 1], a[i], b[2], b[3]);
        }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 2; i++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      u32 t = t0 + wt + i * 16 + lane / 4 + h * 8;
      if (t >= tokens.n) continue;
      float *row = out + (u64)tokens.to(t) * rows;
#pragma unroll
      for (int j = 0; j < 8; j++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
          u32 r = r0 + wr + j * 8 + lane % 4 * 2 + e;
          if (r < rows) row[r] = sums[i][j][h * 2 + e];
        }
    }
}
// 64 by 64 tiles, 16 columns deep; each of 256 threads makes 4 by 4. Tiles lie transposed in shared memory, so that a
// thread reads its four values of a column at once.
constexpr int F32_TILE = 64, F32_DEPTH = 16, F32_PITCH = F32_TILE + 4;

template <class R>
DEV void gemm_whole(const float *w, const float *x, float *out, const R &tokens, u32 rows, u32 cols) {
  __shared__ __align__(16) float xs[F32_DEPTH][F32_PITCH], ws[F32_DEPTH][F32_PITCH];
  u32 r0 = blockIdx.x * F32_TILE, t0 = blockIdx.y * F32_TILE;
  int tx = threadIdx.x % 16 * 4, ty = threadIdx.x / 16 * 4;
  float sums[4][4] = {};
  for (u32 c0 = 0; c0 < cols; c0 += F32_DEPTH) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      u32 line = threadIdx.x / 16 + i * 16, k = threadIdx.x % 16, c = c0 + k;
      xs[k][line] = t0 + line < tokens.n && c < cols ? x[(u64)tokens.from(t0 + line) * cols + c] : 0.f;
      ws[k][line] = r0 + line < rows && c < cols ? w[(u64)(r0 + line) * cols + c] : 0.f;
    }
    block_sync();
    // Each tile is summed on its own: one long chain of additions would lose more digits.
    float parts[4][4] = {};
#pragma unroll
    for (int k = 0; k < F32_DEPTH; k++)
#pragma unroll
      for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) parts[i][j] += xs[k][ty + i] * ws[k][tx + j];
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
      for (int j = 0; j < 4; j++) sums[i][j] += parts[i][j];
    block_sync();
  }
#pragma unroll
  for (int i = 0; i < 4; i++)
#pragma unroll
    for (int j = 0; j < 4; j++)
      if (t0 + ty + i < tokens.n && r0 + tx + j < rows) out[(u64)tokens.to(t0 + ty + i) * rows + r0 + tx + j] = sums[i][j];
}
