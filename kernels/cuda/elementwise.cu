// Operations on single elements and rows: embedding, additions, activations, rotations, gather and scatter.
// All are bound by memory; neighbouring threads touch neighbouring elements. Blocks of 256 threads.
#include "dev.cuh"

#define INDEX ((u64)blockIdx.x * blockDim.x + threadIdx.x)

// x[t] = table[ids[t]]; table [vocab, width], x [n, width]. Grid (width / 256, n).
template <class T> DEV void embed(const void *table, const u32 *ids, float *x, u32 width) {
  u64 i = INDEX, t = blockIdx.y;
  if (i < width) x[t * width + i] = T::load(table, (u64)ids[t] * width + i);
}
KERNEL embed_f32(const void *table, const u32 *ids, float *x, u32 width) { embed<F32>(table, ids, x, width); }
KERNEL embed_f16(const void *table, const u32 *ids, float *x, u32 width) { embed<F16>(table, ids, x, width); }
KERNEL embed_bf16(const void *table, const u32 *ids, float *x, u32 width) { embed<BF16>(table, ids, x, width); }

// x[i] += y[i]
KERNEL add(const float *y, float *x, u64 len) {
  u64 i = INDEX;
  if (i < len) x[i] += y[i];
}

// The operations on rows have a grid of (width / 256, rows).

// x[t] += bias
KERNEL add_bias(const float *bias, float *x, u32 width) {
  u64 i = INDEX, at = blockIdx.y * (u64)width + i;
  if (i < width) x[at] += bias[i];
}

// x[t] *= factors[t]
KERNEL scale_rows(const float *factors, float *x, u32 width) {
  u64 i = INDEX, at = blockIdx.y * (u64)width + i;
  if (i < width) x[at] *= factors[blockIdx.y];
}

// out[i] = x[rows[i]]
KERNEL gather(const float *x, const u32 *rows, float *out, u32 width) {
  u64 i = INDEX;
  if (i < width) out[blockIdx.y * (u64)width + i] = x[rows[blockIdx.y] * (u64)width + i];
}

// x[rows[i]] += factors[i] * y[i]; no row stands twice in `rows`
KERNEL scatter_add(const float *y, const u32 *rows, const float *factors, float *x, u32 width) {
  u64 i = INDEX;
  if (i < width) x[rows[blockIdx.y] * (u64)width + i] += factors[blockIdx.y] * y[blockIdx.y * (u64)width + i];
}

// Block i of out is block i / repeat of x; blocks of `width` start at from + i * from_step of x and to + i * to_step of
// out. Grid (width / 256, blocks).
KERNEL copy_blocks(const float *x, float *out, u32 width, u32 repeat, u32 from, u32 from_step, u32 to, u32 to_step) {
  u64 i = INDEX;
  if (i < width) out[to + (u64)blockIdx.y * to_step + i] = x[from + (u64)(blockIdx.y / repeat) * from_step + i];
}

// The numbers of the activations; mod.rs has the same.
enum Activation { SILU = 0, GELU = 1, GELU_TANH = 2, RELU = 3, RELU2 = 4 };

DEV float activation(u32 kind, float x) {
  switch (kind) {
    case SILU: return x / (1.f + exp_fast(-x));
    case GELU: return 0.5f * x * (1.f + erff(x * 0.707106781186547524f));
    case GELU_TANH: return 0.5f * x * (1.f + tanh_fast(0.797884560802865356f * (x + 0.044715f * x * x * x)));
    case RELU: return larger(x, 0.f);
    default: return larger(x, 0.f) * larger(x, 0.f);
  }
}

// x[i] = act(x[i])
KERNEL activate(u32 kind, float *x, u64 len) {
  u64 i = INDEX;
  if (i < len) x[i] = activation(kind, x[i]);
}

// gate[i] = act(gate[i]) * up[i]
KERNEL gate(u32 kind, const float *up, float *gate, u64 len) {
  u64 i = INDEX;
  if (i < len) gate[i] = activation(kind, gate[i]) * up[i];
}

// Turns the pairs of each head by the angles of its token (Su et al. 2021, arXiv:2104.09864).
// x [n, heads, head_dim], y [n, y_heads, head_dim]: queries and keys; cos, sin [n, half]. The elements from `offset` on
// turn. `interleaved`: elements 2i and 2i + 1 form a pair, else i and i + half. Grid ((heads + y_heads) * half / 256, n).
KERNEL rotate(const float *cos, const float *sin, float *x, float *y, u32 heads, u32 y_heads, u32 head_dim, u32 offset,
              u32 half, u32 interleaved) {
  u32 i = (u32)INDEX, t = blockIdx.y;
  if (i >= (heads + y_heads) * half) return;
  u32 pair = i % half, head = i / half;
  float c = cos[(u64)t * half + pair], s = sin[(u64)t * half + pair];
  float *row = head < heads ? x + ((u64)t * heads + head) * head_dim : y + ((u64)t * y_heads + head - heads) * head_dim;
  float *a = row + offset + (interleaved ? 2 * pair : pair);
  float *b = a + (interleaved ? 1 : half);
  float u = *a, v = *b;
  *a = u * c - v * s;
  *b = v * c + u * s;
}

// Puts keys [n, kv_heads, k_dim] and values [n, kv_heads, v_dim] of the positions from `start` on into their pages.
// A page holds PAGE positions: keys [kv_heads, PAGE, k_dim], then values [kv_heads, PAGE, v_dim].
// Grid (kv_heads * larger dim / 256, n).
template <class T>
DEV void store(const u64 *pages, const float *k, const float *v, u32 kv_heads, u32 k_dim, u32 v_dim, u32 start) {
  u32 i = (u32)INDEX, pos = start + blockIdx.y, k_width = kv_heads * k_dim, v_width = kv_heads * v_dim;
  void *page = (void *)pages[pos / PAGE];
  if (i < k_width)
    T::store(page, ((u64)(i / k_dim) * PAGE + pos % PAGE) * k_dim + i % k_dim, k[(u64)blockIdx.y * k_width + i]);
  if (i < v_width)
    T::store(page, (u64)k_width * PAGE + ((u64)(i / v_dim) * PAGE + pos % PAGE) * v_dim + i % v_dim,
             v[(u64)blockIdx.y * v_width + i]);
}
#define STORE(NAME, T)                                                                                             \
  KERNEL NAME(const u64 *pages, const float *k, const float *v, u32 kv_heads, u32 k_dim, u32 v_dim, u32 start) {   \
    store<T>(pages, k, v, kv_heads, k_dim, v_dim, start);                                                          \
  }
STORE(store_f32, F32)
STORE(store_f16, F16)
STORE(store_bf16, BF16)

// Rounds activations to the 16-bit type of the weights that they meet.
KERNEL round_f16(const float *x, u16 *out, u64 len) {
  u64 i = INDEX;
  if (i < len) F16::store(out, i, F16::in_range(x[i]));
}
KERNEL round_bf16(const float *x, u16 *out, u64 len) {
  u64 i = INDEX;
  if (i < len) BF16::store(out, i, x[i]);
}
