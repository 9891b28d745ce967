// Attention of few queries, bound by reading the cache once (flash-decoding).
//
// The sequence is cut into chunks of CHUNK positions; one block takes one chunk for HEADS query heads that share a
// key/value head, so that each key and value is read once for all of them. Scores: four lanes share a key, eight keys
// to a warp, 16-byte loads. Values: a thread keeps eight elements of every head and walks over its share of the
// positions. Blocks write (max, sum, unnormalised output); attend_merge adds them up in the order of the chunks, so
// the result does not depend on which block came first. It also serves as the plain kernel for every head width and
// for f32 caches, where tensor cores cannot: then with any number of queries.
#include "attend.cuh"

constexpr int CHUNK = 256;
constexpr int THREADS = 128;

template <class T> DEV void load_piece(const void *p, u64 at, int left, bool whole, float (&v)[8]) {
  if (whole) {
    T::load8(p, at, v);
  } else {
#pragma unroll
    for (int k = 0; k < 8; k++) v[k] = k < left ? T::load(p, at + k) : 0.f;
  }
}

// Grid: (chunks, kv_heads · slices of HEADS heads, n). `partial` [n, heads, chunks, v_dim + 2].
template <class T, int HEADS> DEV void decode(const Attend &a, float *partial, u32 first_chunk) {
  DYNAMIC_SHARED(shared);
  const u32 group = a.heads / a.kv_heads, slices = (group + HEADS - 1) / HEADS;
  const u32 kv_head = blockIdx.y / slices, in_group = blockIdx.y % slices * HEADS, head0 = kv_head * group + in_group;
  const int used = smaller_int(HEADS, group - in_group);
  const u32 t = blockIdx.z, pos = a.start + t, dim = a.head_dim, pieces = (dim + 7) / 8;
  const u32 v_dim = a.v_dim, v_pieces = (v_dim + 7) / 8;
  const bool whole = dim % 8 == 0, v_whole = v_dim % 8 == 0;
  const u32 chunk = first_chunk + blockIdx.x;
  const u32 lo = larger_int(chunk * CHUNK, first_seen(a, pos)), hi = smaller_int((chunk + 1) * CHUNK, pos + 1);
  float *queries = (float *)shared;            // [HEADS, pieces · 8]
  float *scores = queries + HEADS * pieces * 8;  // [HEADS, CHUNK]
  float *sums = scores + HEADS * CHUNK;          // [THREADS / v_pieces, HEADS, v_pieces · 8]
  const u64 head_offset = (u64)kv_head * PAGE * dim;
  const u64 value_offset = (u64)a.kv_heads * PAGE * dim + (u64)kv_head * PAGE * v_dim;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;

  for (u32 i = threadIdx.x; i < HEADS * pieces * 8; i += THREADS) {
    u32 h = i / (pieces * 8), d = i % (pieces * 8);
    queries[i] = h < used && d < dim ? a.q[((u64)t * a.heads + head0 + h) * dim + d] : 0.f;
  }
  block_sync();

  for (u32 base = chunk * CHUNK + warp * 8; base < (chunk + 1) * CHUNK; base += THREADS / 4) {
    u32 key = base + lane / 4;
    bool seen = key >= lo && key < hi;
    float dots[HEADS];
#pragma unroll
    for (int h = 0; h < HEADS; h++) dots[h] = 0.f;
    if (seen) {
      const void *page = (const void *)a.pages[key / PAGE];
      u64 row = head_offset + (u64)(key % PAGE) * dim;
      for (u32 c = lane % 4; c < pieces; c += 4) {
        float k[8];
        load_piece<T>(page, row + c * 8, dim - c * 8, whole, k);
        if constexpr (Scaled<T>::YES) {
          float scale = key_scales((void *)page, a.kv_heads, dim, v_dim)[(kv_head * PAGE + key % PAGE) * groups_of(dim) + c * 8 / GROUP];
#pragma unroll
          for (int e = 0; e < 8; e++) k[e] *= scale;
        }
#pragma unroll
        for (int h = 0; h < HEADS; h++)
#pragma unroll
          for (int e = 0; e < 8; e++) dots[h] += queries[(h * pieces + c) * 8 + e] * k[e];
      }
    }
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
      float dot = dots[h] + shuffle_xor(dots[h], 1);
      dot += shuffle_xor(dot, 2);
      if (lane % 4 == 0) {
        float slope = a.slopes && h < used ? a.slopes[head0 + h] : 0.f;
        scores[h * CHUNK + key - chunk * CHUNK] = seen ? biased(capped(a, dot * a.scale), slope, pos - key) : -infinity();
      }
    }
  }
  block_sync();

  // Softmax numerators: a warp for each head in turn.
  for (int h = warp; h < HEADS; h += THREADS / 32) {
    float top = -infinity();
#pragma unroll
    for (int i = 0; i < CHUNK / 32; i++) top = larger(top, scores[h * CHUNK + i * 32 + lane]);
    top = warp_max(top);
    float sum = 0.f;
#pragma unroll
    for (int i = 0; i < CHUNK / 32; i++) {
      float s = scores[h * CHUNK + i * 32 + lane];
      float p = s == -infinity() ? 0.f : exp2_fast(s - top);
      scores[h * CHUNK + i * 32 + lane] = p;
      sum += p;
    }
    sum = warp_sum(sum);
    if (lane == 0 && h < used) {
      float *to = partial + (((u64)t * a.heads + head0 + h) * gridDim.x + blockIdx.x) * (v_dim + 2);
      to[v_dim] = top;
      to[v_dim + 1] = sum;
    }
  }
  block_sync();

  const u32 walkers = THREADS / v_pieces, piece = threadIdx.x % v_pieces, walker = threadIdx.x / v_pieces;
  if (walker < walkers) {
    float acc[HEADS][8];
#pragma unroll
    for (int h = 0; h < HEADS; h++)
#pragma unroll
      for (int e = 0; e < 8; e++) acc[h][e] = 0.f;
    for (u32 key = lo + walker; key < hi; key += walkers) {
      const void *page = (const void *)a.pages[key / PAGE];
      float v[8];
      load_piece<T>(page, value_offset + (u64)(key % PAGE) * v_dim + piece * 8, v_dim - piece * 8, v_whole, v);
      if constexpr (Scaled<T>::YES) {
        float scale = value_scales((void *)page, a.kv_heads, dim, v_dim)[kv_head * PAGE + key % PAGE];
#pragma unroll
        for (int e = 0; e < 8; e++) v[e] *= scale;
      }
#pragma unroll
      for (int h = 0; h < HEADS; h++) {
        float p = scores[h * CHUNK + key - chunk * CHUNK];
#pragma unroll
        for (int e = 0; e < 8; e++) acc[h][e] += p * v[e];
      }
    }
#pragma unroll
    for (int h = 0; h < HEADS; h++)
#pragma unroll
      for (int e = 0; e < 8; e++) sums[((walker * HEADS + h) * v_pieces + piece) * 8 + e] = acc[h][e];
  }
  block_sync();
  for (u32 i = threadIdx.x; i < used * v_dim; i += THREADS) {
    u32 h = i / v_dim, d = i % v_dim;
    float sum = 0.f;
    for (u32 w = 0; w < walkers; w++) sum += sums[(w * HEADS + h) * v_pieces * 8 + d];
    partial[(((u64)t * a.heads + head0 + h) * gridDim.x + blockIdx.x) * (v_dim + 2) + d] = sum;
  }
}
#define DECODE(NAME, T, HEADS) \
  KERNEL __launch_bounds__(THREADS, HEADS < 4 ? 8 : 4) NAME(const Attend a, float *partial, u32 first_chunk) { decode<T, HEADS>(a, partial, first_chunk); }
#define DECODES(NAME, T) DECODE(NAME##_1, T, 1) DECODE(NAME##_2, T, 2) DECODE(NAME##_4, T, 4) DECODE(NAME##_8, T, 8)
DECODES(attend_decode_f32, F32)
DECODES(attend_decode_f16, F16)
DECODES(attend_decode_bf16, BF16)
DECODES(attend_decode_q8, I8)

// Adds up the chunks of each query head: partial [rows, chunks, dim + 2] → out [rows, dim]. Grid: rows.
KERNEL __launch_bounds__(THREADS) attend_merge(const float *partial, float *out, u32 chunks, u32 dim) {
  const float *mine = partial + (u64)blockIdx.x * chunks * (dim + 2);
  float top = -infinity();
  for (u32 c = 0; c < chunks; c++) top = larger(top, mine[c * (dim + 2) + dim]);
  for (u32 d = threadIdx.x; d < dim; d += THREADS) {
    float sum = 0.f, value = 0.f;
    for (u32 c = 0; c < chunks; c++) {
      const float *part = mine + (u64)c * (dim + 2);
      float factor = part[dim] == -infinity() ? 0.f : exp2_fast(part[dim] - top);
      sum += factor * part[dim + 1];
      value += factor * part[d];
    }
    out[(u64)blockIdx.x * dim + d] = sum > 0.f ? value / sum : 0.f;
  }
}
