// A mixture of experts without the host: the router's choice, and the products of the chosen experts.
//
// A pair is one token and one of the experts it has chosen; pair t · active + k is token t's, and k counts its experts
// by their number. Few tokens: a product for each pair, as wide as the weights. Many: the pairs are put in the order
// of their experts, and each expert's weights meet its pairs a tile at a time. Every sum has a fixed order.
#include "matmul.cuh"
#include "packed.cuh"

// Chooses experts for each token: outputs [n, experts] of the router → chosen [n, active] by number, weights [n, active].
// `correction` [experts] or null is added to the scores for the choice. Where groups > 0, only experts of the best
// `open` groups can be chosen: those whose two best rank highest. Grid n, a warp each.
// Shared memory: 20 · experts bytes. Equal ranks go to the lower number, NaN ranks highest.
struct Choice {
  const float *correction;
  u32 experts, active, groups, open, softmax, normalised;
  float factor;
};

DEV void choose(const Choice &c, const float *outputs, u32 *chosen, float *weights) {
  DYNAMIC_SHARED(shared);
  const u32 experts = c.experts, active = c.active, groups = c.groups;
  u64 *keys = (u64 *)shared;            // [experts]
  u64 *best = keys + experts;           // [groups], then [active]
  float *scores = (float *)(best + experts);  // [experts]
  const u32 lane = threadIdx.x;
  const float *x = outputs + (u64)blockIdx.x * experts;
  if (c.softmax) {
    float top = -infinity(), sum = 0.f;
    for (u32 e = lane; e < experts; e += 32) top = larger(top, x[e]);
    top = warp_max(top);
    for (u32 e = lane; e < experts; e += 32) sum += exp_fast(x[e] - top);
    sum = warp_sum(sum);
    for (u32 e = lane; e < experts; e += 32) scores[e] = exp_fast(x[e] - top) / sum;
  } else {
    for (u32 e = lane; e < experts; e += 32) scores[e] = 1.f / (1.f + exp_fast(-x[e]));
  }
  for (u32 e = lane; e < experts; e += 32) keys[e] = sort_key(c.correction ? scores[e] + c.correction[e] : scores[e], e);
  block_sync();
  if (groups) {
    const u32 size = experts / groups;
    for (u32 i = lane; i < groups; i += 32) {
      u64 first = 0, second = 0;
      for (u32 e = i * size; e < (i + 1) * size; e++) {
        u64 key = keys[e];
        if (key > first) {
          second = first;
          first = key;
        } else if (key > second) {
          second = key;
        }
      }
      best[i] = sort_key(sort_value(first) + sort_value(second), i);
    }
    block_sync();
    for (u32 e = lane; e < experts; e += 32) {
      u64 mine = best[e / size];
      u32 better = 0;
      for (u32 i = 0; i < groups; i++) better += best[i] > mine;
      if (better >= c.open) keys[e] = sort_key(-infinity(), e);
    }
    block_sync();
  }
  // The best that is left, again and again. A lane's experts are its own from here on.
  for (u32 k = 0; k < active; k++) {
    u64 top = 0;
    for (u32 e = lane; e < experts; e += 32) top = keys[e] > top ? keys[e] : top;
#pragma unroll
    for (int m = 16; m > 0; m >>= 1) {
      u64 other = shuffle_xor(top, m);
      top = other > top ? other : top;
    }
    u32 e = sort_index(top);
    if (e % 32 == lane) keys[e] = 0;
    if (lane == 0) best[k] = e;
  }
  block_sync();
  float sum = 0.f;
  for (u32 k = 0; k < active; k++) sum += scores[best[k]];
  // Far below any sum of scores: it only keeps a sum of zeros from dividing.
  const float divisor = c.normalised ? sum + 1e-20f : 1.f;
  for (u32 k = lane; k < active; k += 32) {
    u32 e = (u32)best[k], place = 0;
    for (u32 j = 0; j < active; j++) place += best[j] < e;
    chosen[(u64)blockIdx.x * active + place] = e;
    weights[(u64)blockIdx.x * active + place] = scores[e] / divisor * c.factor;
  }
}

KERNEL __launch_bounds__(32) route(const Choice c, const float *outputs, u32 *chosen, float *weights) {
  choose(c, outputs, chosen, weights);
}

// Puts the pairs in the order of their experts, those of an expert in their own: starts [experts + 1], tokens [pairs]
// (pair / active) and order [pairs]. Grid experts, a warp each, which counts for itself what stands before it.
KERNEL __launch_bounds__(32) sort_pairs(const u32 *chosen, u32 pairs, u32 active, u32 *starts, u32 *tokens, u32 *order) {
  const u32 lane = threadIdx.x, expert = blockIdx.x;
  u32 at = 0;
  for (u32 first = 0; first < pairs; first += 32)
    at += count_bits(lanes_where(first + lane < pairs && chosen[first + lane] < expert));
  if (lane == 0) starts[expert] = at;
  for (u32 first = 0; first < pairs; first += 32) {
    u32 pair = first + lane;
    bool mine = pair < pairs && chosen[pair] == expert;
    u32 all = lanes_where(mine), place = at + count_bits(all & ((1u << lane) - 1));
    if (mine) {
      tokens[place] = pair / active;
      order[place] = pair;
    }
    at += count_bits(all);
  }
  if (lane == 0 && expert == gridDim.x - 1) starts[gridDim.x] = at;
}

// The matrices of the experts: table [experts, matrices] holds their addresses. A launch makes one of them, or those
// from `which` on, each with a result of its own.
#define MATRIX(Type, expert) (const Type *)table[(u64)(expert) * matrices + which]

// A product for each pair: x [pairs / share, cols] → out [grid z, pairs, rows]. Grid (rows / 8 or panels, pairs, matrices).
#define EACH(NAME, BLOCK, BLOCKS, Type, PRODUCT)                                                                         \
  KERNEL __launch_bounds__(BLOCK, BLOCKS)                                                                                \
  NAME(const u64 *table, u32 matrices, u32 first, const u32 *chosen, u32 share, const float *x, float *out, u32 rows, u32 cols) { \
    u32 pair = blockIdx.y, which = first + blockIdx.z;                                                                   \
    float *to = out + ((u64)blockIdx.z * gridDim.y + pair) * rows;                                                       \
    PRODUCT(MATRIX(Type, chosen[pair]), x + (u64)(pair / share) * cols, to, rows, cols);                                 \
  }
EACH(experts_gemv_f32, GEMV_WARPS * 32, 4, void, (gemv<F32, 1>))
EACH(experts_gemv_f16, GEMV_WARPS * 32, 6, void, (gemv<F16, 1>))
EACH(experts_gemv_bf16, GEMV_WARPS * 32, 6, void, (gemv<BF16, 1>))
EACH(experts_gemv_q8, WARPS * 32, 3, u8, (gemv<Q8, 1>))
EACH(experts_gemv_q4, WARPS * 32, 3, u8, (gemv<Q4, 1>))

// The products of each expert's pairs: x [.., cols], whose rows `sources` names, → out [pairs, rows].
// Grid (rows / tile, most tokens of an expert / 64, experts): tiles beyond an expert's pairs end at once.
#define TOGETHER(NAME, BLOCK, Type, Input, PRODUCT)                                                                      \
  KERNEL __launch_bounds__(BLOCK)                                                                                        \
  NAME(const u64 *table, u32 matrices, u32 which, const u32 *starts, const u32 *sources, const u32 *order, const Input *x,  \
       float *out, u32 rows, u32 cols) {                                                                                 \
    u32 expert = blockIdx.z, start = starts[expert], n = starts[expert + 1] - start;                                     \
    if (blockIdx.y * 64 >= n) return;                                                                                    \
    PRODUCT(MATRIX(Type, expert), x, out, Listed{n, sources + start, order + start}, rows, cols);                        \
  }
TOGETHER(experts_gemm_f32, 256, float, float, gemm_whole)
TOGETHER(experts_gemm_f16, 128, u16, u16, gemm<F16>)
TOGETHER(experts_gemm_bf16, 128, u16, u16, gemm<BF16>)
TOGETHER(experts_gemm_q8, 128, u8, u16, gemm<Q8>)
TOGETHER(experts_gemm_q4, 128, u8, u16, gemm<Q4>)

// out[t] = the sum of token t's pairs, weighted: y [n, active, width], weights [n, active]. Grid (width / 256, n).
KERNEL combine(const float *y, const float *weights, float *out, u32 width, u32 active) {
  u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x, t = blockIdx.y;
  if (i >= width) return;
  float sum = 0.f;
  for (u32 k = 0; k < active; k++) sum += weights[t * active + k] * y[(t * active + k) * width + i];
  out[t * width + i] = sum;
}
