// Products of packed.cu and experts.cu: out = x · wᵀ for weights in 8 and 4 bits, in the panels of 16 rows that the CPU uses (see ../packed.rs): w [rows, cols]
// packed, x [n, cols] f32, out [n, rows] f32.
//
// gemv: 1 to 8 tokens, bound by reading w once. A block makes one panel. Each of its warps takes every eighth piece of
// 512 bytes: a lane loads 16 of them, which are 4 rows by 4 columns (q8) or by 8 (q4), so the panels are read without
// gaps. Integers become floats without conversions, of which chips make few per cycle: a byte is put into the mantissa of
// 2^23, from which 2^23 is taken away. Activations are not rounded. The warps' sums are added in a fixed order.
// gemm: many tokens, bound by the tensor cores. Tiles of 64 tokens by 128 rows, 64 columns deep, one in use and one on
// its way (cp.async): the panels as they lie in memory and the activations, rounded to f16. The weights become f16 in
// registers, each lane those that it feeds to the tensor core. What is called column k of a 16 deep product does not
// matter as long as both sides agree: a lane takes four columns that lie together, so it reads whole words of both.
#pragma once
#include "dev.cuh"
#include "rows.cuh"

constexpr int PANEL = 16;
constexpr int COLUMNS = 64;
constexpr int WARPS = 8;

// Tiles of gemm: tokens, and panels of rows.
constexpr int TOKENS = 64, PANELS = 8;

struct alignas(8) Two { u32 w[2]; };

// Two f16 that a word holds as 1024 + 128 + value → the values, times the factor in both halves of `scale`.
DEV u32 unbiased(u32 pair, u32 scale) { return half2_mul(half2_sub(pair, 0x64806480u), scale); }

// Of the bytes of `v`, those that `selector` names (its nibbles 0 and 2), as f16 of 1024 + byte.
DEV u32 widened(u32 v, u32 selector) { return permute(v, 0x64646464u, selector | 0x4040u); }

// Byte k of `bytes`, minus 128; exact.
template <int K> DEV float biased(u32 bytes) {
  return as_float(permute(bytes, 0x4b000000u, 0x7540 + K)) - (8388608.f + 128.f);
}

// Four activations from `c` on; zeros beyond the row.
DEV void load_inputs(const float *x, u32 c, u32 cols, float (&v)[4]) {
  if (cols % 4 == 0) {
    Words a = {{0, 0, 0, 0}};
    if (c < cols) a = load_words(x + c);
#pragma unroll
    for (int k = 0; k < 4; k++) v[k] = as_float(a.w[k]);
  } else {
#pragma unroll
    for (int k = 0; k < 4; k++) v[k] = c + k < cols ? x[c + k] : 0.f;
  }
}

// 8 bits: for each 64 columns 2 × 16 scales in f16 (for each 32 columns and row), then for each 4 columns 16 rows of 4
// bytes, in the column order 0 2 1 3.
struct Q8 {
  static constexpr u32 HEAD = 0, GROUP = 4 * PANEL + COLUMNS * PANEL;
  // Columns of a piece, and of a lane's part of it.
  static constexpr u32 PIECE = 32, PART = 4;
  DEV const u8 *piece(const u8 *panel, u32 i) { return panel + i / 2 * GROUP + 4 * PANEL + i % 2 * 512; }
  // Adds the products of a lane's part.
  template <int N>
  DEV void add(const u8 *panel, u32 i, u32 lane, const float *x, u32 cols, float (&sums)[4][N]) {
    Words w = load_words(piece(panel, i) + lane * 16);
    const u16 *scales = (const u16 *)(panel + i / 2 * GROUP + i % 2 * 32) + lane % 4 * 4;
    float b[N][4];
#pragma unroll
    for (int t = 0; t < N; t++) load_inputs(x + (u64)t * cols, i * PIECE + lane / 4 * PART, cols, b[t]);
#pragma unroll
    for (int r = 0; r < 4; r++) {
      u32 bytes = w.w[r] ^ 0x80808080u;
      float a[4] = {biased<0>(bytes), biased<2>(bytes), biased<1>(bytes), biased<3>(bytes)};
      float scale = F16::widen(scales[r]);
#pragma unroll
      for (int t = 0; t < N; t++) {
        float dot = 0.f;
#pragma unroll
        for (int k = 0; k < 4; k++) dot += a[k] * b[t][k];
        sums[r][t] += dot * scale;
      }
    }
  }
  // For gemm: columns of a step, tokens' bytes in shared memory from one to the next (no two of a load's lanes in one
  // bank), and the bytes of a step's columns that a lane takes: four columns of 16.
  static constexpr int STEP = 16, PITCH = 2 * COLUMNS + 32, TAKEN = 2;
  typedef Two Taken;
  // The two rows 2g and 2g + 1 of a panel's group as operands of one product.
  DEV void feed(const u8 *group, u32 step, u32 lane, u32 (&b)[2][1][2]) {
    u32 g = lane / 4, t4 = lane % 4;
    Two w = *(const Two *)(group + 4 * PANEL + (step * 4 + t4) * 64 + g * 8);
    u32 scales = *(const u32 *)(group + step / 2 * 32 + g * 4);
#pragma unroll
    for (int r = 0; r < 2; r++) {
      u32 scale = permute(scales, scales, r ? 0x3232u : 0x1010u), bytes = w.w[r] ^ 0x80808080u;
      b[r][0][0] = unbiased(widened(bytes, 0x0200u), scale);
      b[r][0][1] = unbiased(widened(bytes, 0x0301u), scale);
    }
  }
  DEV float row_scale(const u8 *, u32) { return 1.f; }
  DEV float weight(const u8 *panel, u32 row, u32 c) {
    const u8 *group = panel + c / COLUMNS * GROUP;
    u32 place = (c % 2) * 2 + c / 2 % 2;
    float scale = F16::widen(((const u16 *)(group + c / 32 % 2 * 32))[row]);
    return (float)(signed char)group[4 * PANEL + c % COLUMNS / 4 * 64 + 4 * row + place] * scale;
  }
};

// 4 bits: 16 row scales in f32; for each 64 columns 2 × 16 × 2 group scales in 8 bits (for each 32 columns and row, those
// of both 16), then for each 8 columns 16 rows of 4 bytes: the low halves are codes of the first 4 columns.
struct Q4 {
  static constexpr u32 HEAD = 4 * PANEL, GROUP = 4 * PANEL + COLUMNS * PANEL / 2;
  static constexpr u32 PIECE = 64, PART = 8;
  DEV const u8 *piece(const u8 *panel, u32 i) { return panel + HEAD + i * GROUP + 4 * PANEL; }
  // The values of four codes, plus 128: -32 -26 -20 -16 -12 -8 -5 -2 0 3 6 9 12 16 21 28.
  DEV u32 values(u32 codes) {
    u32 low = permute(0x706c6660u, 0x7e7b7874u, codes & 0x7777u);
    u32 high = permute(0x89868380u, 0x9c95908cu, codes & 0x7777u);
    return permute(low, high, 0x3210u | (codes & 0x8888u) >> 1);
  }
  template <int N>
  DEV void add(const u8 *panel, u32 i, u32 lane, const float *x, u32 cols, float (&sums)[4][N]) {
    Words w = load_words(piece(panel, i) + lane * 16);
    u32 step = lane / 4, odd = step / 2 % 2, c = i * PIECE + step * PART;
    u64 scales = *(const u64 *)(panel + HEAD + i * GROUP + step / 4 * 32 + lane % 4 * 8);
    float b[N][8];
#pragma unroll
    for (int t = 0; t < N; t++) {
      float v[4];
#pragma unroll
      for (int half = 0; half < 2; half++) {
        load_inputs(x + (u64)t * cols, c + half * 4, cols, v);
#pragma unroll
        for (int k = 0; k < 4; k++) b[t][half * 4 + k] = v[k];
      }
    }
#pragma unroll
    for (int r = 0; r < 4; r++) {
      // The halves of two bytes are the codes of columns 0 4 1 5, and of 2 6 3 7.
      u32 first = values(w.w[r]), second = values(w.w[r] >> 16);
      float a[8] = {biased<0>(first), biased<2>(first), biased<0>(second), biased<2>(second),
                    biased<1>(first), biased<3>(first), biased<1>(second), biased<3>(second)};
      float scale = (float)(signed char)(scales >> (16 * r + 8 * odd));
#pragma unroll
      for (int t = 0; t < N; t++) {
        float dot = 0.f;
#pragma unroll
        for (int k = 0; k < 8; k++) dot += a[k] * b[t][k];
        sums[r][t] += dot * scale;
      }
    }
  }
  // As in Q8; a word holds eight columns, so two products of 16 columns make a step. The group scales enter here, the
  // row scales at the end.
  static constexpr int STEP = 32, PITCH = 2 * COLUMNS + 64, TAKEN = 4;
  typedef Words Taken;
  DEV void feed(const u8 *group, u32 step, u32 lane, u32 (&b)[2][2][2]) {
    u32 g = lane / 4, t4 = lane % 4;
    Two w = *(const Two *)(group + 4 * PANEL + (step * 4 + t4) * 64 + g * 8);
    u32 scales = *(const u32 *)(group + step * 32 + g * 4) ^ 0x80808080u;
#pragma unroll
    for (int r = 0; r < 2; r++) {
      u32 place = t4 / 2 + 2 * r, scale = half2_sub(widened(scales, place | place << 8), 0x64806480u);
      u32 first = values(w.w[r]), second = values(w.w[r] >> 16);
      b[r][0][0] = unbiased(widened(first, 0x0200u), scale);
      b[r][0][1] = unbiased(widened(second, 0x0200u), scale);
      b[r][1][0] = unbiased(widened(first, 0x0301u), scale);
      b[r][1][1] = unbiased(widened(second, 0x0301u), scale);
    }
  }
  DEV float row_scale(const u8 *panel, u32 row) { return ((const float *)panel)[row]; }
  DEV float weight(const u8 *panel, u32 row, u32 c) {
    const u8 *group = panel + HEAD + c / COLUMNS * GROUP;
    float scale = (float)(signed char)group[c / 32 % 2 * 32 + 2 * row + c / 16 % 2];
    u32 byte = group[4 * PANEL + c % COLUMNS / 8 * 64 + 4 * row + c % 4];
    return biased<0>(values(byte >> (c / 4 % 2 * 4) & 15)) * scale * row_scale(panel, row);
  }
};

template <class Q> DEV const u8 *panel_of(const u8 *w, u32 panel, u32 cols) {
  return w + panel * ((u64)(cols + COLUMNS - 1) / COLUMNS * Q::GROUP + Q::HEAD);
}

// Grid (panels).
template <class Q, int N> DEV void gemv(const u8 *w, const float *x, float *out, u32 rows, u32 cols) {
  __shared__ float parts[WARPS][PANEL][N];
  u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const u8 *panel = panel_of<Q>(w, blockIdx.x, cols);
  float sums[4][N];
#pragma unroll
  for (int r = 0; r < 4; r++)
#pragma unroll
    for (int t = 0; t < N; t++) sums[r][t] = 0.f;
  u32 pieces = (cols + Q::PIECE - 1) / Q::PIECE;
#pragma unroll 2
  for (u32 i = warp; i < pieces; i += WARPS) Q::template add<N>(panel, i, lane, x, cols, sums);
#pragma unroll
  for (int r = 0; r < 4; r++)
#pragma unroll
    for (int t = 0; t < N; t++) {
      float sum = sums[r][t];
      // The lanes with the same rows.
#pragma unroll
      for (int m = 16; m > 2; m >>= 1) sum += shuffle_xor(sum, m);
      if (lane < 4) parts[warp][lane * 4 + r][t] = sum;
    }
  block_sync();
  u32 row = threadIdx.x % PANEL, t = threadIdx.x / PANEL;
  u64 at = (u64)blockIdx.x * PANEL + row;
  if (t >= N || at >= rows) return;
  float sum = 0.f;
#pragma unroll
  for (int i = 0; i < WARPS; i++) sum += parts[i][row][t];
  out[(u64)t * rows + at] = sum * Q::row_scale(panel, row);
}

// Begins the copies of the 64 columns of `group`. Beyond the tokens, columns and panels there are zeros.
template <class Q, class R>
DEV void load_group(u32 to, const u8 *w, const u16 *x, const R &tokens, u32 panels, u32 cols, u32 t0, u32 p0, u32 group) {
#pragma unroll
  for (int i = 0; i < TOKENS * 8 / 128; i++) {
    u32 piece = threadIdx.x + i * 128, t = t0 + piece / 8, c = group * COLUMNS + piece % 8 * 8;
    bool valid = t < tokens.n && c < cols;
    copy_async16(to + piece / 8 * Q::PITCH + piece % 8 * 16, x + (valid ? (u64)tokens.from(t) * cols + c : 0), valid);
  }
  constexpr u32 PIECES = Q::GROUP / 16;
#pragma unroll
  for (int i = 0; i < (int)(PANELS * PIECES + 127) / 128; i++) {
    u32 piece = threadIdx.x + i * 128, panel = piece / PIECES;
    if (PANELS * PIECES % 128 && panel >= PANELS) break;
    bool valid = p0 + panel < panels;
    const u8 *from = valid ? panel_of<Q>(w, p0 + panel, cols) + Q::HEAD + group * Q::GROUP + piece % PIECES * 16 : w;
    copy_async16(to + TOKENS * Q::PITCH + piece * 16, from, valid);
  }
}

// Grid (rows / 128, tokens / 64). Shared memory: 2 · (64 · PITCH + 8 · GROUP) bytes.
template <class Q, class R> DEV void gemm(const u8 *w, const u16 *x, float *out, const R &tokens, u32 rows, u32 cols) {
  DYNAMIC_SHARED(shared);
  constexpr u32 STAGE = TOKENS * Q::PITCH + PANELS * Q::GROUP;
  const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t4 = lane % 4;
  const u32 p0 = blockIdx.x * PANELS, t0 = blockIdx.y * TOKENS;
  const u32 panels = (rows + PANEL - 1) / PANEL, groups = (cols + COLUMNS - 1) / COLUMNS;
  // Four warps: two down the tokens, two along the panels; each makes 32 tokens by 4 panels.
  const u32 wt = warp / 2 * 32, wp = warp % 2 * (PANELS / 2);
  float sums[2][PANELS][4];
#pragma unroll
  for (int i = 0; i < 2; i++)
#pragma unroll
    for (int j = 0; j < PANELS; j++)
#pragma unroll
      for (int e = 0; e < 4; e++) sums[i][j][e] = 0.f;
  load_group<Q>(shared_address(shared), w, x, tokens, panels, cols, t0, p0, 0);
  copy_commit();
  for (u32 s = 0; s < groups; s++) {
    copy_wait<0>();
    block_sync();
    // The half that is filled now was read in the step before, which the barrier has ended.
    if (s + 1 < groups) load_group<Q>(shared_address(shared) + (s + 1) % 2 * STAGE, w, x, tokens, panels, cols, t0, p0, s + 1);
    copy_commit();
    const u8 *tile = shared + s % 2 * STAGE, *weights = tile + TOKENS * Q::PITCH;
#pragma unroll
    for (int k = 0; k < COLUMNS / Q::STEP; k++) {
      typename Q::Taken a[2][2];
#pragma unroll
      for (int i = 0; i < 2; i++)
#pragma unroll
        for (int h = 0; h < 2; h++)
          a[i][h] = *(const typename Q::Taken *)(tile + (wt + i * 16 + h * 8 + g) * Q::PITCH + k * Q::STEP * 2 + t4 * Q::TAKEN * 4);
#pragma unroll
      for (int p = 0; p < PANELS / 2; p++) {
        u32 b[2][Q::TAKEN / 2][2];
        Q::feed(weights + (wp + p) * Q::GROUP, k, lane, b);
#pragma unroll
        for (int m = 0; m < Q::TAKEN / 2; m++)
#pragma unroll
          for (int i = 0; i < 2; i++) {
            u32 left[4] = {a[i][0].w[2 * m], a[i][1].w[2 * m], a[i][0].w[2 * m + 1], a[i][1].w[2 * m + 1]};
            F16::mma(sums[i][2 * p], left, b[0][m][0], b[0][m][1]);
            F16::mma(sums[i][2 * p + 1], left, b[1][m][0], b[1][m][1]);
          }
      }
    }
  }
#pragma unroll
  for (int p = 0; p < PANELS / 2; p++) {
    u32 number = p0 + wp + p;
    if (number >= panels) break;
    const u8 *panel = panel_of<Q>(w, number, cols);
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
      for (int e = 0; e < 8; e++) {
        // Column c of a product's result is row 2c of the panel, or 2c + 1.
        u32 t = t0 + wt + i * 16 + g + e / 4 * 8, row = t4 * 4 + e % 4, at = number * PANEL + row;
        if (t < tokens.n && at < rows)
          out[(u64)tokens.to(t) * rows + at] = sums[i][2 * p + e % 2][e / 4 * 2 + e / 2 % 2] * Q::row_scale(panel, row);
      }
  }
}
