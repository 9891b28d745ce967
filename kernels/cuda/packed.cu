// out = x · wᵀ for weights in 8 and 4 bits, in the panels of 16 rows that the CPU uses (see ../packed.rs): w [rows, cols]
// packed, x [n, cols] f32, out [n, rows] f32.
//
// gemv: 1 to 8 tokens, bound by reading w once. A block makes one panel. Each of its warps takes every eighth piece of
// 512 bytes: a lane loads 16 of them, which are 4 rows by 4 columns (q8) or by 8 (q4), so the panels are read without
// gaps. Integers become floats without conversions, of which chips make few per cycle: a byte is put into the mantissa of
// 2^23, from which 2^23 is taken away. Activations are not rounded. The warps' sums are added in a fixed order.
// widen: the weights as f16 [rows, cols], for the tensor cores, where many tokens share them.
// embed: single rows.
#include "dev.cuh"

constexpr int PANEL = 16;
constexpr int COLUMNS = 64;
constexpr int WARPS = 8;

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
#define GEMV(NAME, Q, N)                                                                                              \
  KERNEL __launch_bounds__(WARPS * 32, N > 4 ? 2 : 3) NAME(const u8 *w, const float *x, float *out, u32 rows, u32 cols) { \
    gemv<Q, N>(w, x, out, rows, cols);                                                                                \
  }
#define GEMVS(NAME, Q) GEMV(NAME##_1, Q, 1) GEMV(NAME##_2, Q, 2) GEMV(NAME##_4, Q, 4) GEMV(NAME##_8, Q, 8)
GEMVS(gemv_q8, Q8)
GEMVS(gemv_q4, Q4)

// The weights as f16 [rows, cols]. Grid (rows, cols / 256): a vocabulary has more rows than a grid may be high.
template <class Q> DEV void widen(const u8 *w, u16 *out, u32 cols) {
  u32 row = blockIdx.x, i = blockIdx.y * blockDim.x + threadIdx.x;
  if (i < cols) F16::store(out, (u64)row * cols + i, Q::weight(panel_of<Q>(w, row / PANEL, cols), row % PANEL, i));
}
KERNEL widen_q8(const u8 *w, u16 *out, u32 cols) { widen<Q8>(w, out, cols); }
KERNEL widen_q4(const u8 *w, u16 *out, u32 cols) { widen<Q4>(w, out, cols); }

// x[t] = table[ids[t]]; table [vocab, width] packed, x [n, width]. Grid (width / 256, n).
template <class Q> DEV void embed(const u8 *table, const u32 *ids, float *x, u32 width) {
  u32 i = blockIdx.x * blockDim.x + threadIdx.x, t = blockIdx.y, row = ids[t];
  if (i < width) x[(u64)t * width + i] = Q::weight(panel_of<Q>(table, row / PANEL, width), row % PANEL, i);
}
KERNEL embed_q8(const u8 *table, const u32 *ids, float *x, u32 width) { embed<Q8>(table, ids, x, width); }
KERNEL embed_q4(const u8 *table, const u32 *ids, float *x, u32 width) { embed<Q4>(table, ids, x, width); }
