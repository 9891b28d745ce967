// The device layer: the only file with inline PTX and with the builtins of the compiler. It includes nothing,
// so the kernels need the compiler alone. Everything here exists since compute capability 8.0.
#pragma once

typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;
typedef unsigned long long u64;
typedef long long i64;

#define DEV static __device__ __forceinline__
#define KERNEL extern "C" __global__ void
#define DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]

// Largest number of positions in one page of the key/value cache; launch shapes in mod.rs rely on it.
constexpr int PAGE = 64;

DEV u32 shared_address(const void *p) { return (u32)__cvta_generic_to_shared(p); }
DEV void block_sync() { __syncthreads(); }
DEV float shuffle_xor(float v, int m) { return __shfl_xor_sync(0xffffffffu, v, m); }
DEV u64 shuffle_xor(u64 v, int m) { return __shfl_xor_sync(0xffffffffu, v, m); }
// The lanes of the warp for which `v` is true, a bit each.
DEV u32 lanes_where(bool v) { return __ballot_sync(0xffffffffu, v); }
DEV u32 count_bits(u32 x) { return (u32)__popc(x); }
DEV float infinity() { return __int_as_float(0x7f800000); }
DEV float as_float(u32 x) { return __uint_as_float(x); }
DEV u32 as_bits(float x) { return __float_as_uint(x); }
// Four of the eight bytes of `a` and `b`, one for each half byte of the selector.
DEV u32 permute(u32 a, u32 b, u32 selector) { return __byte_perm(a, b, selector); }
DEV float larger(float a, float b) { return fmaxf(a, b); }
DEV int smaller_int(int a, int b) { return a < b ? a : b; }
DEV int larger_int(int a, int b) { return a > b ? a : b; }
DEV float square_root(float x) { return __fsqrt_rn(x); }

// 2^x, within two units in the last place.
DEV float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

constexpr float LOG2E = 1.44269504088896341f;

// e^x: the product x·log2(e) is kept in two parts, else its rounding would cost digits for large |x|.
DEV float exp_fast(float x) {
  float t = x * LOG2E;
  float rest = __fmaf_rn(x, LOG2E, -t) + x * 1.92596299e-8f;
  float y = exp2_fast(t);
  return t > -126.f && t < 128.f ? __fmaf_rn(y * 0.693147180559945f, rest, y) : y;
}

DEV float tanh_fast(float x) {
  // Odd series near zero, where 1 - 2/(e^2x + 1) would cancel.
  if (x < 0.15f && x > -0.15f) {
    float s = x * x;
    return x + x * s * (-0.333333333f + s * (0.133333333f + s * (-0.0539682540f + s * 0.0218694885f)));
  }
  return 1.f - 2.f / (exp_fast(2.f * x) + 1.f);
}

// Asynchronous copy of 16 bytes to shared memory; zeros where `valid` is false.
DEV void copy_async16(u32 to, const void *from, bool valid) {
  int n = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(__cvta_generic_to_global(from)), "r"(n)
               : "memory");
}
// The same for 4 bytes.
DEV void copy_async4(u32 to, const void *from, bool valid) {
  int n = valid ? 4 : 0;
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(__cvta_generic_to_global(from)), "r"(n)
               : "memory");
}
DEV void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> DEV void copy_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

// Four 8x8 matrices of 16-bit values from shared memory; lane l gives the address of row l % 8 of matrix l / 8.
DEV void load_matrices(u32 (&r)[4], u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
DEV void load_matrices_transposed(u32 (&r)[4], u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

struct alignas(16) Words { u32 w[4]; };

DEV Words load_words(const void *p) {
  Words v;
  asm volatile("ld.global.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.w[0]), "=r"(v.w[1]), "=r"(v.w[2]), "=r"(v.w[3])
               : "l"(__cvta_generic_to_global(p)));
  return v;
}

// Two f16 in a word.
DEV u32 half2_sub(u32 a, u32 b) { u32 d; asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b)); return d; }
DEV u32 half2_mul(u32 a, u32 b) { u32 d; asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b)); return d; }

// A word of a value and its index that is the larger, the larger the value, then the smaller the index: floats as
// integers that order the same way. A NaN comes first; no key is 0.
DEV u64 sort_key(float v, u32 index) {
  u32 bits = as_bits(v);
  bits = v != v ? 0xffffffffu : bits >> 31 ? ~bits : bits | 0x80000000u;
  return (u64)bits << 32 | (u32)~index;
}
DEV float sort_value(u64 key) {
  u32 bits = (u32)(key >> 32);
  return as_float(bits == 0xffffffffu ? 0x7fffffffu : bits >> 31 ? bits & 0x7fffffffu : ~bits);
}
DEV u32 sort_index(u64 key) { return ~(u32)key; }

// The element types of weights and caches. `store` rounds to nearest, ties to even; `pack` puts the first value
// in the low half; `mma` adds a 16x16 by 16x8 product.
struct F32 {
  typedef float Element;
  static constexpr int BYTES = 4;
  DEV float load(const void *p, u64 i) { return ((const float *)p)[i]; }
  DEV void store(void *p, u64 i, float v) { ((float *)p)[i] = v; }
  // Eight neighbouring elements, the first at a multiple of 16 bytes.
  DEV void load8(const void *p, u64 i, float (&v)[8]) {
    Words a = load_words((const float *)p + i), b = load_words((const float *)p + i + 4);
#pragma unroll
    for (int k = 0; k < 4; k++) { v[k] = as_float(a.w[k]); v[4 + k] = as_float(b.w[k]); }
  }
};

struct F16 {
  typedef u16 Element;
  static constexpr int BYTES = 2;
  DEV float widen(u16 h) { float f; asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h)); return f; }
  DEV u16 narrow(float f) { u16 h; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f)); return h; }
  DEV float load(const void *p, u64 i) { return widen(((const u16 *)p)[i]); }
  DEV void store(void *p, u64 i, float v) { ((u16 *)p)[i] = narrow(v); }
  DEV void load8(const void *p, u64 i, float (&v)[8]) {
    Words a = load_words((const u16 *)p + i);
#pragma unroll
    for (int k = 0; k < 4; k++) { v[2 * k] = widen((u16)a.w[k]); v[2 * k + 1] = widen((u16)(a.w[k] >> 16)); }
  }
  DEV u32 pack(float lo, float hi) { return (u32)narrow(lo) | (u32)narrow(hi) << 16; }
  // Activations beyond the range of f16 become its largest number: infinity would spread.
  DEV float in_range(float v) { return fminf(fmaxf(v, -65504.f), 65504.f); }
  DEV void mma(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
};

struct BF16 {
  typedef u16 Element;
  static constexpr int BYTES = 2;
  DEV float widen(u16 h) { return as_float((u32)h << 16); }
  DEV u16 narrow(float f) { u16 h; asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h) : "f"(f)); return h; }
  DEV float load(const void *p, u64 i) { return widen(((const u16 *)p)[i]); }
  DEV void store(void *p, u64 i, float v) { ((u16 *)p)[i] = narrow(v); }
  DEV void load8(const void *p, u64 i, float (&v)[8]) {
    Words a = load_words((const u16 *)p + i);
#pragma unroll
    for (int k = 0; k < 4; k++) { v[2 * k] = as_float(a.w[k] << 16); v[2 * k + 1] = as_float(a.w[k] & 0xffff0000u); }
  }
  DEV u32 pack(float lo, float hi) {
    u32 d;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(hi), "f"(lo));
    return d;
  }
  DEV float in_range(float v) { return v; }
  DEV void mma(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
};

DEV float warp_sum(float v) {
#pragma unroll
  for (int m = 16; m > 0; m >>= 1) v += shuffle_xor(v, m);
  return v;
}
DEV float warp_max(float v) {
#pragma unroll
  for (int m = 16; m > 0; m >>= 1) v = larger(v, shuffle_xor(v, m));
  return v;
}
