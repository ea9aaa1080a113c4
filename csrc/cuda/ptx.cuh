// Every instruction that CUDA C++ has no word for: once as PTX for nvcc, once emulated.
//
// A kernel file includes this header and compiles for both. The halves have the same functions in
// the same order; tests/test_ptx.py calls each on random bits.
#pragma once
#include <cstdint>

#ifdef __CUDACC__
// ------------------------------------------------------------------------------------ the device
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define DEVICE __device__ __forceinline__

namespace grebe::cuda {

using bf16 = __nv_bfloat16;
using half = __half;

DEVICE char* shared_memory() {
  extern __shared__ __align__(1024) char bytes[];
  return bytes;
}
DEVICE uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// 16 bytes from global to shared memory, zeros if not `valid`; both addresses multiples of 16.
DEVICE void copy_async(void* to, const void* from, bool valid = true) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(valid ? 16 : 0)
               : "memory");
#else
  *static_cast<uint4*>(to) = valid ? *static_cast<const uint4*>(from) : uint4{0, 0, 0, 0};
#endif
}
DEVICE void copy_async_commit() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Waits until at most `kPending` committed groups of this thread are on their way.
template <int kPending>
DEVICE void copy_async_wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

// Four 8x8 matrices of 16-bit elements: lane l gives the address of row l % 8 of matrix l / 8 and
// gets elements (l / 4, 2 (l % 4) .. + 1) of each; transposed: of its transpose.
DEVICE void load_matrices(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
DEVICE void load_matrices_transposed(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// d += a b for tiles of 16x16 (a), 16x8 (b) and 16x8 (d). With g = lane / 4 and t = lane % 4 a lane
// holds of a rows g and g + 8 in columns 2t, 2t + 1, then 2t + 8, 2t + 9; of b rows 2t, 2t + 1, then
// 2t + 8, 2t + 9 in column g; of d rows g, g + 8 in columns 2t, 2t + 1.
DEVICE void multiply_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}
DEVICE void multiply_half(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#elif __CUDA_ARCH__ >= 750
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(b0));
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[2]), "r"(a[3]), "r"(b1));
#endif
}
// The same for TF32 tiles of 16x8 (a) and 8x8 (b): a lane holds of a rows g, g + 8 in column t, then
// t + 4; of b rows t, t + 4 in column g.
DEVICE void multiply_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}
// x rounded to TF32 (10 bits of mantissa, ties away from zero), as the bits of a float.
DEVICE uint32_t round_tf32(float x) {
  uint32_t y = 0;
#if __CUDA_ARCH__ >= 800
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
#endif
  return y;
}
// 2^x with an error of 2 in the last place; results below the normal range are 0.
DEVICE float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace grebe::cuda

#else
// ---------------------------------------------------------------------------------- the emulation
#include "emulator.h"

#define DEVICE inline

namespace grebe::cuda {

// bfloat16, rounded to nearest even.
struct bf16 {
  uint16_t bits;
  bf16() = default;
  explicit bf16(float x) {
    uint32_t b;
    std::memcpy(&b, &x, 4);
    bits = x != x ? 0x7fff : static_cast<uint16_t>((b + 0x7fff + (b >> 16 & 1)) >> 16);
  }
  operator float() const {
    const uint32_t b = static_cast<uint32_t>(bits) << 16;
    float x;
    std::memcpy(&x, &b, 4);
    return x;
  }
};
using half = _Float16;

inline char* shared_memory() { return emulator::machine.current->block->shared; }
inline uint32_t shared_address(const void* p) { return emulator::shared_address(p); }

inline void copy_async(void* to, const void* from, bool valid = true) {
  if (reinterpret_cast<uintptr_t>(to) & 15 || reinterpret_cast<uintptr_t>(from) & 15)
    emulator::fail("copy_async: an address is no multiple of 16");
  emulator::shared_address(to);
  const auto copy = [=] {
    if (valid)
      std::memcpy(to, from, 16);
    else
      std::memset(to, 0, 16);
  };
  if (emulator::options.lazy)
    emulator::machine.current->copies.open.push_back(copy);
  else
    copy();
}
inline void copy_async_commit() { emulator::machine.current->copies.commit(); }
template <int kPending>
inline void copy_async_wait() {
  emulator::machine.current->copies.wait(kPending);
}

// Passes over the banks beyond the first that eight rows of 16 bytes need: rows at the same place
// modulo 128 bytes collide.
inline int extra_passes(const uint32_t* rows) {
  int most = 0, count[8] = {};
  for (int i = 0; i < 8; ++i) {
    bool repeated = false;
    for (int j = 0; j < i; ++j) repeated |= rows[j] == rows[i];
    if (!repeated) most = std::max(most, ++count[rows[i] >> 4 & 7]);
  }
  return most - 1;
}
inline void load_matrices(uint32_t (&r)[4], const void* row, bool transposed) {
  struct Lane {
    uint32_t* r;
    uint32_t address;
    bool transposed;
  } mine{r, shared_address(row), transposed};
  emulator::collective("load_matrices", ~0u, &mine, [](void** arguments) {
    Lane** lanes = reinterpret_cast<Lane**>(arguments);
    for (int m = 0; m < 4; ++m) {
      uint16_t matrix[8][8];
      uint32_t rows[8];
      for (int i = 0; i < 8; ++i) {
        rows[i] = lanes[m * 8 + i]->address;
        if (rows[i] & 15) emulator::fail("load_matrices: a row's address is no multiple of 16");
        std::memcpy(matrix[i], emulator::shared_pointer(rows[i], 16), 16);
      }
      emulator::counts.conflicts += extra_passes(rows);
      for (int l = 0; l < 32; ++l) {
        const int i = l / 4, j = l % 4 * 2;
        const uint16_t low = lanes[l]->transposed ? matrix[j][i] : matrix[i][j];
        const uint16_t high = lanes[l]->transposed ? matrix[j + 1][i] : matrix[i][j + 1];
        lanes[l]->r[m] = low | static_cast<uint32_t>(high) << 16;
      }
    }
  });
}
inline void load_matrices(uint32_t (&r)[4], const void* row) { load_matrices(r, row, false); }
inline void load_matrices_transposed(uint32_t (&r)[4], const void* row) {
  load_matrices(r, row, true);
}

inline void unpack(uint32_t pair, bf16*, float* out) {
  const uint32_t low = pair << 16, high = pair & 0xffff0000u;
  std::memcpy(out, &low, 4);
  std::memcpy(out + 1, &high, 4);
}
inline void unpack(uint32_t pair, half*, float* out) {
  half h[2];
  std::memcpy(h, &pair, 4);
  out[0] = static_cast<float>(h[0]);
  out[1] = static_cast<float>(h[1]);
}
// mma.sync of m16n8kK: A and B gathered from the lanes by `fill`.
template <int kDepth, class Fill>
inline void multiply_tiles(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                           Fill fill) {
  struct Lane {
    float* d;
    const uint32_t* a;
    uint32_t b[2];
  } mine{d, a, {b0, b1}};
  emulator::collective("mma", ~0u, &mine, [fill](void** arguments) {
    Lane** lanes = reinterpret_cast<Lane**>(arguments);
    float a[16][kDepth], b[kDepth][8], sum[16][8] = {};
    for (int l = 0; l < 32; ++l) fill(lanes[l]->a, lanes[l]->b, l / 4, l % 4, a, b);
    for (int i = 0; i < 16; ++i)
      for (int k = 0; k < kDepth; ++k)
        for (int j = 0; j < 8; ++j) sum[i][j] += a[i][k] * b[k][j];
    for (int l = 0; l < 32; ++l)
      for (int i = 0; i < 4; ++i) lanes[l]->d[i] += sum[l / 4 + i / 2 * 8][l % 4 * 2 + i % 2];
  });
}
template <class T>
inline void multiply_16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  multiply_tiles<16>(d, a, b0, b1,
                     [](const uint32_t* a, const uint32_t* b, int g, int t, float (&left)[16][16],
                        float (&right)[16][8]) {
                       for (int i = 0; i < 4; ++i)
                         unpack(a[i], static_cast<T*>(nullptr),
                                &left[g + i % 2 * 8][t * 2 + i / 2 * 8]);
                       for (int i = 0; i < 2; ++i) {
                         float pair[2];
                         unpack(b[i], static_cast<T*>(nullptr), pair);
                         right[t * 2 + i * 8][g] = pair[0];
                         right[t * 2 + i * 8 + 1][g] = pair[1];
                       }
                     });
}
inline void multiply_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  multiply_16<bf16>(d, a, b0, b1);
}
inline void multiply_half(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  multiply_16<half>(d, a, b0, b1);
}
// What the tensor core reads of a float: the bits below TF32's are ignored.
inline float tf32_of(uint32_t bits) {
  bits &= ~0x1fffu;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline void multiply_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  multiply_tiles<8>(d, a, b0, b1,
                    [](const uint32_t* a, const uint32_t* b, int g, int t, float (&left)[16][8],
                       float (&right)[8][8]) {
                      for (int i = 0; i < 4; ++i)
                        left[g + i % 2 * 8][t + i / 2 * 4] = tf32_of(a[i]);
                      for (int i = 0; i < 2; ++i) right[t + i * 4][g] = tf32_of(b[i]);
                    });
}
inline uint32_t round_tf32(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if ((bits & 0x7f800000u) != 0x7f800000u) bits += 0x1000;
  return bits & ~0x1fffu;
}
inline float exp2_fast(float x) {
  const float y = exp2f(x);
  return y < 1.17549435e-38f ? 0.0f : y;
}

}  // namespace grebe::cuda
#endif
