// Attention of many queries on tensor cores, after FlashAttention-2 (Dao 2023, arXiv:2307.08691): the scores never
// leave the registers, and a running maximum keeps the softmax exact.
//
// One block of four warps takes 64 queries of one head, 16 to a warp, and walks over the keys a tile at a time; two
// tiles of keys and values are in shared memory, one being used and one being filled (cp.async). A tile lies inside
// one page of the cache. Rows in shared memory are 16 bytes longer than a head, an odd number of 16-byte pieces, so
// the rows of an ldmatrix fall into different banks. A cache in 8 bits comes into a place of its own and becomes f16 tiles
// from there, while which the next tile can be on its way. The queries stay in registers. Scores are not capped here: models
// that do so take attend_decode for everything.
// Grid: (n / 64, heads). Shared memory: 4 · TILE · (DIM + V_DIM + 16) bytes;
// in 8 bits TILE · (3 · (DIM + V_DIM) + 32 + 4 · (GROUPS + 1)).
#include "attend.cuh"

constexpr int QUERIES = 64;

template <int DIM, int TILE> DEV void load_tile(u32 to, const u16 *rows, u32 pos, u32 end) {
  constexpr int PIECES = DIM / 8;
#pragma unroll
  for (int i = 0; i < (TILE * PIECES + 127) / 128; i++) {
    u32 piece = threadIdx.x + i * 128, row = piece / PIECES;
    if (TILE * PIECES % 128 && row >= TILE) break;
    bool valid = pos + row < end;
    copy_async16(to + row * (DIM * 2 + 16) + piece % PIECES * 16, rows + (valid ? row * DIM + piece % PIECES * 8 : 0), valid);
  }
}

// The same for elements of 8 bits and, to `scales`, `GROUPS` floats for each row.
template <int DIM, int GROUPS, int TILE>
DEV void load_bytes(u32 to, u32 scales, const u8 *rows, const float *factors, u32 pos, u32 end) {
  constexpr int PIECES = DIM / 16;
#pragma unroll
  for (int i = 0; i < (TILE * PIECES + 127) / 128; i++) {
    u32 piece = threadIdx.x + i * 128, row = piece / PIECES;
    if (TILE * PIECES % 128 && row >= TILE) break;
    bool valid = pos + row < end;
    copy_async16(to + piece * 16, rows + (valid ? piece * 16 : 0), valid);
  }
#pragma unroll
  for (int i = 0; i < (TILE * GROUPS + 127) / 128; i++) {
    u32 at = threadIdx.x + i * 128;
    if (TILE * GROUPS % 128 && at >= TILE * GROUPS) break;
    bool valid = pos + at / GROUPS < end;
    copy_async4(scales + at * 4, factors + (valid ? at : 0), valid);
  }
}

// Turns a tile of 8-bit rows into f16. `group`: elements that share a scale.
template <int DIM, int GROUPS, int TILE> DEV void widen_tile(u8 *to, const u8 *rows, const float *scales, int group) {
  constexpr int PIECES = DIM / 8;
#pragma unroll 2
  for (u32 piece = threadIdx.x; piece < TILE * PIECES; piece += 128) {
    u32 row = piece / PIECES, c = piece % PIECES;
    const u32 *bytes = (const u32 *)(rows + piece * 8);
    float v[8], scale = scales[row * GROUPS + c * 8 / group];
    I8::widen8(bytes[0], bytes[1], v);
    Words words;
#pragma unroll
    for (int k = 0; k < 4; k++) words.w[k] = F16::pack(v[2 * k] * scale, v[2 * k + 1] * scale);
    *(Words *)(to + row * (DIM * 2 + 16) + c * 16) = words;
  }
}

// T: what the tensor cores multiply; Cache: the elements of the cache.
template <class T, class Cache, int DIM, int V_DIM, int TILE> DEV void prefill(const Attend &a) {
  constexpr bool SCALED = Scaled<Cache>::YES;
  constexpr int GROUPS = (DIM + GROUP - 1) / GROUP;
  DYNAMIC_SHARED(shared);
  constexpr int PITCH = DIM * 2 + 16, TILE_BYTES = TILE * PITCH;
  constexpr int V_PITCH = V_DIM * 2 + 16, V_BYTES = TILE * V_PITCH;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t4 = lane % 4;
  const u32 head = blockIdx.y, kv_head = head / (a.heads / a.kv_heads);
  const u32 row0 = blockIdx.x * QUERIES + warp * 16 + g;
  const u32 last = smaller_int(blockIdx.x * QUERIES + QUERIES, a.n) - 1;
  const u32 end = a.start + last + 1;
  const u32 begin = first_seen(a, a.start + blockIdx.x * QUERIES) / TILE * TILE;
  const u64 key_offset = (u64)kv_head * PAGE * DIM;
  const u64 value_offset = (u64)a.kv_heads * PAGE * DIM + (u64)kv_head * PAGE * V_DIM;
  const u32 keys = shared_address(shared), values = keys + (SCALED ? 1 : 2) * TILE_BYTES;
  // In 8 bits: keys, values, and the scales of both on their way.
  u8 *const raw = shared + TILE_BYTES + V_BYTES;
  constexpr int RAW_VALUES = TILE * DIM, RAW_SCALES = RAW_VALUES + TILE * V_DIM, RAW_V_SCALES = RAW_SCALES + TILE * GROUPS * 4;
  const float factor = a.scale * LOG2E, tilt = a.slopes ? a.slopes[head] * LOG2E : 0.f;
  const u32 first_query = a.start + blockIdx.x * QUERIES;
  const u32 low[2] = {first_seen(a, a.start + row0), first_seen(a, a.start + row0 + 8)};

  auto load = [&](u32 pos, u32 buffer) {
    if constexpr (SCALED) {
      u8 *page = (u8 *)a.pages[pos / PAGE];
      u32 to = shared_address(raw), place = kv_head * PAGE + pos % PAGE;
      const float *factors = key_scales(page, a.kv_heads, DIM, V_DIM) + (u64)place * GROUPS;
      load_bytes<DIM, GROUPS, TILE>(to, to + RAW_SCALES, page + (u64)place * DIM, factors, pos, end);
      factors = value_scales(page, a.kv_heads, DIM, V_DIM) + place;
      page += (u64)a.kv_heads * PAGE * DIM + (u64)place * V_DIM;
      load_bytes<V_DIM, 1, TILE>(to + RAW_VALUES, to + RAW_V_SCALES, page, factors, pos, end);
      return;
    }
    const u16 *page = (const u16 *)a.pages[pos / PAGE];
    load_tile<DIM, TILE>(keys + buffer * TILE_BYTES, page + key_offset + (u64)(pos % PAGE) * DIM, pos, end);
    load_tile<V_DIM, TILE>(values + buffer * V_BYTES, page + value_offset + (u64)(pos % PAGE) * V_DIM, pos, end);
  };
  load(begin, 0);
  copy_commit();

  u32 q[DIM / 16][4];
#pragma unroll
  for (int k = 0; k < DIM / 16; k++)
#pragma unroll
    for (int e = 0; e < 4; e++) {
      u32 row = row0 + e % 2 * 8, d = k * 16 + t4 * 2 + e / 2 * 8;
      const float *from = a.q + ((u64)row * a.heads + head) * DIM + d;
      bool valid = row < a.n;
      q[k][e] = T::pack(valid ? T::in_range(from[0]) : 0.f, valid ? T::in_range(from[1]) : 0.f);
    }

  float acc[V_DIM / 8][4], top[2] = {-infinity(), -infinity()}, sum[2] = {0.f, 0.f};
#pragma unroll
  for (int i = 0; i < V_DIM / 8; i++)
#pragma unroll
    for (int e = 0; e < 4; e++) acc[i][e] = 0.f;

  for (u32 pos = begin, buffer = 0; pos < end; pos += TILE, buffer ^= SCALED ? 0 : 1) {
    if constexpr (SCALED) {
      copy_wait<0>();
      block_sync();
      widen_tile<DIM, GROUPS, TILE>(shared, raw, (const float *)(raw + RAW_SCALES), GROUP);
      widen_tile<V_DIM, 1, TILE>(shared + TILE_BYTES, raw + RAW_VALUES, (const float *)(raw + RAW_V_SCALES), V_DIM);
      block_sync();
      if (pos + TILE < end) load(pos + TILE, 0);
      copy_commit();
    } else {
      if (pos + TILE < end) load(pos + TILE, buffer ^ 1);
      copy_commit();
      copy_wait<1>();
      block_sync();
    }
    float s[TILE / 8][4];
#pragma unroll
    for (int i = 0; i < TILE / 8; i++)
#pragma unroll
      for (int e = 0; e < 4; e++) s[i][e] = 0.f;
#pragma unroll
    for (int k = 0; k < DIM / 16; k++)
#pragma unroll
      for (int i = 0; i < TILE / 8; i += 2) {
        u32 b[4];
        load_matrices(b, keys + buffer * TILE_BYTES + (i * 8 + lane % 8 + lane / 16 * 8) * PITCH + k * 32 + lane / 8 % 2 * 16);
        T::mma(s[i], q[k], b[0], b[1]);
        T::mma(s[i + 1], q[k], b[2], b[3]);
      }
    // Scores → numerators, with the running maximum. Only tiles at the border of what is seen need the mask.
    float higher[2] = {top[0], top[1]};
    const bool inside = pos + TILE <= first_query + 1 && pos >= first_seen(a, a.start + last);
#pragma unroll
    for (int i = 0; i < TILE / 8; i++)
#pragma unroll
      for (int e = 0; e < 4; e++) {
        u32 key = pos + i * 8 + t4 * 2 + e % 2, query = a.start + row0 + e / 2 * 8;
        float x = s[i][e] * factor - tilt * (float)(int)(query - key);
        bool seen = inside | (key <= query & key >= low[e / 2]);
        s[i][e] = seen ? x : -infinity();
        higher[e / 2] = larger(higher[e / 2], s[i][e]);
      }
    float base[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
      higher[h] = larger(higher[h], shuffle_xor(higher[h], 1));
      higher[h] = larger(higher[h], shuffle_xor(higher[h], 2));
      base[h] = higher[h] == -infinity() ? 0.f : higher[h];  // nothing seen so far
      float shrink = exp2_fast(top[h] - base[h]);
      top[h] = higher[h];
      sum[h] *= shrink;
#pragma unroll
      for (int i = 0; i < V_DIM / 8; i++) {
        acc[i][h * 2] *= shrink;
        acc[i][h * 2 + 1] *= shrink;
      }
    }
#pragma unroll
    for (int i = 0; i < TILE / 8; i++)
#pragma unroll
      for (int e = 0; e < 4; e++) {
        s[i][e] = exp2_fast(s[i][e] - base[e / 2]);
        sum[e / 2] += s[i][e];
      }
#pragma unroll
    for (int k = 0; k < TILE / 16; k++) {
      u32 p[4] = {T::pack(s[2 * k][0], s[2 * k][1]), T::pack(s[2 * k][2], s[2 * k][3]),
                  T::pack(s[2 * k + 1][0], s[2 * k + 1][1]), T::pack(s[2 * k + 1][2], s[2 * k + 1][3])};
#pragma unroll
      for (int i = 0; i < V_DIM / 8; i += 2) {
        u32 b[4];
        load_matrices_transposed(b, values + buffer * V_BYTES + (k * 16 + lane % 16) * V_PITCH + (i + lane / 16) * 16);
        T::mma(acc[i], p, b[0], b[1]);
        T::mma(acc[i + 1], p, b[2], b[3]);
      }
    }
    block_sync();
  }

#pragma unroll
  for (int h = 0; h < 2; h++) {
    sum[h] += shuffle_xor(sum[h], 1);
    sum[h] += shuffle_xor(sum[h], 2);
    u32 row = row0 + h * 8;
    float inverse = sum[h] > 0.f ? 1.f / sum[h] : 0.f;
    if (row < a.n)
#pragma unroll
      for (int i = 0; i < V_DIM / 8; i++) {
        float *to = a.out + ((u64)row * a.heads + head) * V_DIM + i * 8 + t4 * 2;
        to[0] = acc[i][h * 2] * inverse;
        to[1] = acc[i][h * 2 + 1] * inverse;
      }
  }
}
#define PREFILL_AS(NAME, T, CACHE, DIM, V_DIM, TILE) \
  KERNEL __launch_bounds__(128) attend_prefill_##NAME(const Attend a) { prefill<T, CACHE, DIM, V_DIM, TILE>(a); }
#define PREFILL(NAME, DIM, V_DIM, TILE)                  \
  PREFILL_AS(f16_##NAME, F16, F16, DIM, V_DIM, TILE)     \
  PREFILL_AS(bf16_##NAME, BF16, BF16, DIM, V_DIM, TILE)  \
  PREFILL_AS(q8_##NAME, F16, I8, DIM, V_DIM, TILE)
PREFILL(64, 64, 64, 64)
PREFILL(80, 80, 80, 64)
PREFILL(96, 96, 96, 64)
PREFILL(128, 128, 128, 64)
PREFILL_AS(f16_256, F16, F16, 256, 256, 32)
PREFILL_AS(bf16_256, BF16, BF16, 256, 256, 32)
// Smaller tiles: with 32 keys there are too few registers.
PREFILL_AS(q8_256, F16, I8, 256, 256, 16)
// Latent attention as in DeepSeek-V3.
PREFILL(192_128, 192, 128, 64)
