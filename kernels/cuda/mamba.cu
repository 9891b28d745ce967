// What stands between the projections of a Mamba-2 mixer (Dao and Gu 2024, arXiv:2405.21060), in its recurrent form;
// ../cpu/mamba.rs has the formulas. Tokens pass one after the other, so it does not matter how a text was cut.
//
// A token's row [in_dim] holds the gate [inner], the channels of the convolution (input of the heads [inner], b and c
// [groups, state] each) and the time step of each head.
#include "block.cuh"

struct Mamba {
  u32 heads, head_dim, groups, state, width;  // width: positions that the convolution sees
  float step_min, step_max, eps;
};

DEV u32 inner_of(const Mamba &m) { return m.heads * m.head_dim; }
DEV u32 conv_of(const Mamba &m) { return inner_of(m) + 2 * m.groups * m.state; }
DEV u32 row_of(const Mamba &m) { return inner_of(m) + conv_of(m) + m.heads; }
DEV float silu(float x) { return x / (1.f + exp_fast(-x)); }

constexpr int THREADS = 256;
// Most positions of the convolution; narrower ones have weights of zero before the first.
constexpr int WIDTH = 8;

// Replaces the channels of x [n, in_dim] by silu(convolution + bias), and moves `past` [width - 1, conv] on, which holds
// the channels of the positions before, the oldest first. weight [width, conv], the last row for the own position; bias
// [conv] or null. A thread for each channel. Grid conv / 256.
KERNEL __launch_bounds__(THREADS) mamba_conv(const Mamba m, const float *weight, const float *bias, float *x, float *past, u32 n) {
  const u32 c = blockIdx.x * THREADS + threadIdx.x, conv = conv_of(m), row = row_of(m);
  if (c >= conv) return;
  const int first = WIDTH - m.width;
  float w[WIDTH], seen[WIDTH];
#pragma unroll
  for (int k = 0; k < WIDTH; k++) {
    w[k] = k >= first ? weight[(u64)(k - first) * conv + c] : 0.f;
    seen[k] = k >= first && k < WIDTH - 1 ? past[(u64)(k - first) * conv + c] : 0.f;
  }
  const float start = bias ? bias[c] : 0.f;
  float *at = x + inner_of(m) + c;
  for (u32 t = 0; t < n; t++, at += row) {
    seen[WIDTH - 1] = *at;
    float sum = start;
#pragma unroll
    for (int k = 0; k < WIDTH; k++) sum += w[k] * seen[k];
    *at = silu(sum);
#pragma unroll
    for (int k = 0; k < WIDTH - 1; k++) seen[k] = seen[k + 1];
  }
#pragma unroll
  for (int k = 0; k < WIDTH - 1; k++)
    if (k >= first) past[(u64)(k - first) * conv + c] = seen[k];
}

constexpr int ROWS = 8;
// Most elements of a row of the state that a lane keeps.
constexpr int PART = 8;

// ln(1 + e^x), and x where the two cannot be told apart.
DEV float softplus(float x) { return x > 20.f ? x : log1pf(exp_fast(x)); }

// For each token: h = exp(decay · dt) · h + dt · x bᵀ, out = h c + skip · x. x [n, in_dim] after the convolution, h
// [heads, head_dim, state], out [n, inner]. A warp keeps a row of h. Grid inner / ROWS.
KERNEL __launch_bounds__(ROWS * 32)
mamba_scan(const Mamba m, const float *decay, const float *skip, const float *step, const float *x, float *h, float *out, u32 n) {
  const u32 lane = threadIdx.x % 32, i = blockIdx.x * ROWS + threadIdx.x / 32, inner = inner_of(m), row = row_of(m);
  if (i >= inner) return;
  const u32 head = i / m.head_dim, group = head / (m.heads / m.groups);
  const float rate = decay[head], through = skip[head], more = step[head];
  float *mine = h + (u64)i * m.state;
  float kept[PART];
#pragma unroll
  for (int k = 0; k < PART; k++) kept[k] = lane + k * 32 < m.state ? mine[lane + k * 32] : 0.f;
  const float *at = x;
  for (u32 t = 0; t < n; t++, at += row) {
    const float *b = at + 2 * inner + group * m.state, *c = b + m.groups * m.state;
    float dt = softplus(at[inner + conv_of(m) + head] + more), in = at[inner + i];
    // Written so that a NaN passes.
    dt = dt < m.step_min ? m.step_min : dt;
    dt = dt > m.step_max ? m.step_max : dt;
    const float keep = exp_fast(rate * dt), factor = dt * in;
    float sum = 0.f;
#pragma unroll
    for (int k = 0; k < PART; k++) {
      u32 j = lane + k * 32;
      if (j < m.state) {
        kept[k] = kept[k] * keep + factor * b[j];
        sum += kept[k] * c[j];
      }
    }
    sum = warp_sum(sum);
    if (lane == 0) out[(u64)t * inner + i] = sum + through * in;
  }
#pragma unroll
  for (int k = 0; k < PART; k++)
    if (lane + k * 32 < m.state) mine[lane + k * 32] = kept[k];
}

// y [n, inner] times silu of the gates in x [n, in_dim], each group divided by the root of its mean square, times weight
// [inner]; in place. Grid (groups, n).
KERNEL __launch_bounds__(THREADS) mamba_norm(const Mamba m, const float *x, const float *weight, float *y) {
  __shared__ float scratch[THREADS / 32];
  const u32 inner = inner_of(m), size = inner / m.groups, first = blockIdx.x * size;
  const float *gate = x + (u64)blockIdx.y * row_of(m) + first;
  float *mine = y + (u64)blockIdx.y * inner + first;
  float squares = 0.f;
  for (u32 i = threadIdx.x; i < size; i += THREADS) {
    float v = mine[i] * silu(gate[i]);
    mine[i] = v;
    squares += v * v;
  }
  float scale = 1.f / square_root(block_sum<THREADS>(squares, scratch) / (float)size + m.eps);
  for (u32 i = threadIdx.x; i < size; i += THREADS) mine[i] = mine[i] * scale * weight[first + i];
}
