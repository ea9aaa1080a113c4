// Every instruction that CUDA C++ has no word for: once as PTX for nvcc, once emulated.
//
// A kernel file includes this header and compiles for both. The halves have the same functions in
// the same order; tests/test_emulator.py calls each on random bits (probes.cu).
#pragma once
#include <cstdint>
#include <type_traits>

#ifdef __CUDACC__
// ------------------------------------------------------------------------------------ the device
#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define DEVICE __device__ __forceinline__
#define SELDOM_DEVICE __device__ __noinline__  // not copied to where it is called

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
// A number that other blocks write, and with it all that they wrote before a __threadfence.
DEVICE uint32_t load_acquire(const uint32_t* p) {
  uint32_t x = *p;
#if __CUDA_ARCH__ >= 700
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(x) : "l"(p) : "memory");
#endif
  return x;
}
// 2^x with an error of 2 in the last place; results below the normal range are 0.
DEVICE float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// ---- sm_90a; elsewhere these functions do nothing ----

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define GREBE_SM90_ASM(...) asm volatile(__VA_ARGS__)
#else
#define GREBE_SM90_ASM(...)
#endif

// Four 8x8 matrices as load_matrices gives them, to shared memory.
DEVICE void store_matrices(void* row, const uint32_t (&r)[4]) {
  GREBE_SM90_ASM(
      "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(shared_address(row)),
      "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3]) : "memory");
}
DEVICE void store_matrices_transposed(void* row, const uint32_t (&r)[4]) {
  GREBE_SM90_ASM("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(
                     shared_address(row)),
                 "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3]) : "memory");
}

// A barrier of `threads` threads (whole warps) of the block; 0 is that of __syncthreads.
DEVICE void barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Clusters: the block's number in its own, a barrier of all their threads, and where `p`, in this
// block's shared memory, is in that of block `rank`.
DEVICE int cluster_rank() {
  int rank = 0;
  GREBE_SM90_ASM("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
DEVICE void cluster_barrier() {
  GREBE_SM90_ASM(
      "barrier.cluster.arrive.release.aligned;\n"
      "barrier.cluster.wait.acquire.aligned;" :: : "memory");
}
template <class T>
DEVICE T* in_block(T* p, int rank) {
  T* there = p;
  GREBE_SM90_ASM("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(p), "r"(rank));
  return there;
}

// mbarriers: a phase ends when `arrivals` have come and all bytes that they announced. Waiting for
// parity p returns once the phase of that parity is over; the first phase has parity 0.
DEVICE void mbarrier_init(uint64_t* barrier, int arrivals) {
  GREBE_SM90_ASM("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
                 "r"(arrivals) : "memory");
}
// Between mbarrier_init and the barrier through which other threads and copies learn of it.
DEVICE void mbarrier_init_fence() {
  GREBE_SM90_ASM("fence.mbarrier_init.release.cluster;" :: : "memory");
}
DEVICE void mbarrier_arrive(uint64_t* barrier) {
  GREBE_SM90_ASM(
      "mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
// At the barrier in the same place of block `rank` of the cluster.
DEVICE void mbarrier_arrive_in(uint64_t* barrier, int rank) {
  GREBE_SM90_ASM(
      "{\n.reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [there];\n}" ::"r"(
          shared_address(barrier)),
      "r"(rank) : "memory");
}
DEVICE void mbarrier_arrive_expect(uint64_t* barrier, uint32_t bytes) {
  GREBE_SM90_ASM(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(bytes) : "memory");
}
DEVICE void mbarrier_wait(uint64_t* barrier, uint32_t parity) {
  GREBE_SM90_ASM(
      "{\n.reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n}" ::"r"(shared_address(barrier)),
      "r"(parity) : "memory");
}

// Makes this thread's writes to shared memory visible to bulk copies and matrix products.
DEVICE void proxy_fence() { GREBE_SM90_ASM("fence.proxy.async.shared::cta;" :: : "memory"); }

// Bulk copies of boxes of a tensor (tensor_map.cuh): the box at (x, y), x along the dense dimension,
// to shared memory. Its bytes, zeros outside the tensor included, count at `barrier`. Rows of 128
// bytes lie swizzled: chunk c of 16 bytes of row r at c ^ r % 8; then `to` is a multiple of 1024.
using TensorMap = CUtensorMap;
DEVICE void tma_load(void* to, const TensorMap& map, uint64_t* barrier, int x, int y) {
  GREBE_SM90_ASM(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4}], [%2];" ::"r"(shared_address(to)),
      "l"(&map), "r"(shared_address(barrier)), "r"(x), "r"(y) : "memory");
}
DEVICE void tma_load(void* to, const TensorMap& map, uint64_t* barrier, int x, int y, int z) {
  GREBE_SM90_ASM(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(shared_address(to)),
      "l"(&map), "r"(shared_address(barrier)), "r"(x), "r"(y), "r"(z) : "memory");
}
DEVICE void tma_load(void* to, const TensorMap& map, uint64_t* barrier, int x, int y, int z,
                     int w) {
  GREBE_SM90_ASM(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(shared_address(to)),
      "l"(&map), "r"(shared_address(barrier)), "r"(x), "r"(y), "r"(z), "r"(w) : "memory");
}
// Pixels of images (make_image_map), as many as the map says, from the one whose filter starts at
// (x, y) of `image`, to the right and down and on to the next image: of each the channels from
// `channel`, at the place (dx, dy) further than where its filter starts.
DEVICE void tma_load_pixels(void* to, const TensorMap& map, uint64_t* barrier, int channel, int x,
                            int y, int image, int dx, int dy) {
  GREBE_SM90_ASM(
      "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5, %6}], [%2], {%7, %8};" ::"r"(shared_address(to)),
      "l"(&map), "r"(shared_address(barrier)), "r"(channel), "r"(x), "r"(y), "r"(image),
      "h"(static_cast<uint16_t>(dx)), "h"(static_cast<uint16_t>(dy)) : "memory");
}
// To the same place in all blocks of the cluster whose bit in `ranks` is set, and their barriers.
DEVICE void tma_load_multicast(void* to, const TensorMap& map, uint64_t* barrier, uint16_t ranks,
                               int x, int y, int z) {
  GREBE_SM90_ASM(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%4, %5, %6}], [%2], %3;" ::"r"(shared_address(to)),
      "l"(&map), "r"(shared_address(barrier)), "h"(ranks), "r"(x), "r"(y), "r"(z) : "memory");
}
// From shared memory; what lies outside the tensor is not written. After proxy_fence.
DEVICE void tma_store(const TensorMap& map, const void* from, int x, int y) {
  GREBE_SM90_ASM(
      "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], "
      "[%1];" ::"l"(&map),
      "r"(shared_address(from)), "r"(x), "r"(y) : "memory");
}
DEVICE void tma_store(const TensorMap& map, const void* from, int x, int y, int z) {
  GREBE_SM90_ASM(
      "cp.async.bulk.tensor.3d.global.shared::cta.bulk_group "
      "[%0, {%2, %3, %4}], [%1];" ::"l"(&map),
      "r"(shared_address(from)), "r"(x), "r"(y), "r"(z) : "memory");
}
// Adds floats to those of the tensor, each at once, in no order that is known.
DEVICE void tma_add(const TensorMap& map, const void* from, int x, int y) {
  GREBE_SM90_ASM(
      "cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.tile.bulk_group [%0, {%2, %3}], "
      "[%1];" ::"l"(&map),
      "r"(shared_address(from)), "r"(x), "r"(y) : "memory");
}
DEVICE void tma_store_commit() { GREBE_SM90_ASM("cp.async.bulk.commit_group;" :: : "memory"); }
// Until all but kPending groups of this thread have been read from shared memory.
template <int kPending>
DEVICE void tma_store_wait() {
  GREBE_SM90_ASM("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}

// Registers per thread from here on, for a whole warpgroup; a multiple of 8.
template <int kCount>
DEVICE void shrink_registers() {
  GREBE_SM90_ASM("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <int kCount>
DEVICE void grow_registers() {
  GREBE_SM90_ASM("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}

// Products by a warpgroup (128 threads, warps from a multiple of 4), asynchronous: d (+)= a b for
// tiles of 64x16 and 16xkN in shared memory. Warp w holds rows 16 w .. of d, and of each 8 columns
// what multiply_bf16's lanes hold: d[4 j + e] is row lane / 4 + e / 2 * 8, column 8 j + lane % 4 * 2 +
// e % 2. Order: wgmma_fence, wgmma..., wgmma_commit, wgmma_wait; meanwhile d is not touched.
DEVICE void wgmma_fence() { GREBE_SM90_ASM("wgmma.fence.sync.aligned;" :: : "memory"); }
DEVICE void wgmma_commit() { GREBE_SM90_ASM("wgmma.commit_group.sync.aligned;" :: : "memory"); }
// Until all but kPending groups are done; then d is read after `pin`, before which the compiler may
// not move its uses.
template <int kPending>
DEVICE void wgmma_wait() {
  GREBE_SM90_ASM("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
template <int kCount>
DEVICE void pin(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

#define GREBE_D32                                         \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15" \
  ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define GREBE_D64                                                    \
  GREBE_D32                                                          \
  ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47" \
  ",%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define GREBE_D128                                                               \
  GREBE_D64                                                                      \
  ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79"             \
  ",%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"             \
  ",%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111" \
  ",%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
#define GREBE_OUT4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define GREBE_OUT16(i) GREBE_OUT4(i), GREBE_OUT4(i + 4), GREBE_OUT4(i + 8), GREBE_OUT4(i + 12)
#define GREBE_OUT32(i) GREBE_OUT16(i), GREBE_OUT16(i + 16)
#define GREBE_OUT64(i) GREBE_OUT32(i), GREBE_OUT32(i + 32)
#define GREBE_OUT128(i) GREBE_OUT64(i), GREBE_OUT64(i + 64)
// The operands behind the results are A, B, whether to add, and the two transpositions.
#define GREBE_WGMMA(type, n, D, out, A, B, add_, a_, b_)                                     \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " add_                                      \
               ", 0;\n"                                                                      \
               "wgmma.mma_async.sync.aligned.m64n" n "k16.f32." type "." type " {" D "}, " A \
               ", " B ", p, 1, 1, " a_ ", " b_ ";\n}"                                        \
               : out                                                                         \
               : "l"(a), "l"(b), "r"(static_cast<int>(add)), "n"(kAAlongK ? 0 : 1),          \
                 "n"(kBAlongK ? 0 : 1))
#define GREBE_WGMMA_64(type) \
  GREBE_WGMMA(type, "64", GREBE_D32, GREBE_OUT32(0), "%32", "%33", "%34", "%35", "%36")
#define GREBE_WGMMA_128(type) \
  GREBE_WGMMA(type, "128", GREBE_D64, GREBE_OUT64(0), "%64", "%65", "%66", "%67", "%68")
#define GREBE_WGMMA_256(type) \
  GREBE_WGMMA(type, "256", GREBE_D128, GREBE_OUT128(0), "%128", "%129", "%130", "%131", "%132")

// a, b: descriptors. kAAlongK: neighbours in memory are neighbours in k, else in rows of a (columns of
// b). Without `add` d is overwritten.
template <class T, int kN, bool kAAlongK, bool kBAlongK>
DEVICE void wgmma(float (&d)[kN / 2], uint64_t a, uint64_t b, bool add) {
  static_assert(kN == 64 || kN == 128 || kN == 256, "tiles of other widths are not written yet");
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  constexpr bool kHalf = std::is_same<T, half>::value;
  if constexpr (kN == 64 && kHalf) GREBE_WGMMA_64("f16");
  if constexpr (kN == 64 && !kHalf) GREBE_WGMMA_64("bf16");
  if constexpr (kN == 128 && kHalf) GREBE_WGMMA_128("f16");
  if constexpr (kN == 128 && !kHalf) GREBE_WGMMA_128("bf16");
  if constexpr (kN == 256 && kHalf) GREBE_WGMMA_256("f16");
  if constexpr (kN == 256 && !kHalf) GREBE_WGMMA_256("bf16");
#endif
}

// As wgmma with the 64x16 tile of a in registers, in the places of multiply_16's; they are not touched
// before the wait.
#define GREBE_WGMMA_A(type, n, D, out, A, B, add_, b_)                                           \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " add_                                          \
               ", 0;\n"                                                                          \
               "wgmma.mma_async.sync.aligned.m64n" n "k16.f32." type "." type " {" D "}, {" A    \
               "}, " B ", p, 1, 1, " b_ ";\n}"                                                   \
               : out                                                                             \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)), \
                 "n"(kBAlongK ? 0 : 1))
#define GREBE_WGMMA_A64(type) \
  GREBE_WGMMA_A(type, "64", GREBE_D32, GREBE_OUT32(0), "%32,%33,%34,%35", "%36", "%37", "%38")
#define GREBE_WGMMA_A128(type) \
  GREBE_WGMMA_A(type, "128", GREBE_D64, GREBE_OUT64(0), "%64,%65,%66,%67", "%68", "%69", "%70")
template <class T, int kN, bool kBAlongK>
DEVICE void wgmma(float (&d)[kN / 2], const uint32_t (&a)[4], uint64_t b, bool add) {
  static_assert(kN == 64 || kN == 128, "tiles of other widths are not written yet");
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  constexpr bool kHalf = std::is_same<T, half>::value;
  if constexpr (kN == 64 && kHalf) GREBE_WGMMA_A64("f16");
  if constexpr (kN == 64 && !kHalf) GREBE_WGMMA_A64("bf16");
  if constexpr (kN == 128 && kHalf) GREBE_WGMMA_A128("f16");
  if constexpr (kN == 128 && !kHalf) GREBE_WGMMA_A128("bf16");
#endif
}

// The same of floats read as TF32, 8 of k at a time, both along k.
#define GREBE_WGMMA_TF32(n, D, out, A, B, add_)                                            \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " add_                                    \
               ", 0;\n"                                                                    \
               "wgmma.mma_async.sync.aligned.m64n" n "k8.f32.tf32.tf32 {" D "}, " A ", " B \
               ", p, 1, 1;\n}"                                                             \
               : out                                                                       \
               : "l"(a), "l"(b), "r"(static_cast<int>(add)))
template <int kN>
DEVICE void wgmma_tf32(float (&d)[kN / 2], uint64_t a, uint64_t b, bool add) {
  static_assert(kN == 64 || kN == 128 || kN == 256, "tiles of other widths are not written yet");
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  if constexpr (kN == 64) GREBE_WGMMA_TF32("64", GREBE_D32, GREBE_OUT32(0), "%32", "%33", "%34");
  if constexpr (kN == 128) GREBE_WGMMA_TF32("128", GREBE_D64, GREBE_OUT64(0), "%64", "%65", "%66");
  if constexpr (kN == 256)
    GREBE_WGMMA_TF32("256", GREBE_D128, GREBE_OUT128(0), "%128", "%129", "%130");
#endif
}

}  // namespace grebe::cuda

#else
// ---------------------------------------------------------------------------------- the emulation
#include "emulator.h"

#include <array>

#define DEVICE inline
#define SELDOM_DEVICE __attribute__((noinline))

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
inline uint32_t load_acquire(const uint32_t* p) {
  emulator::yield();
  return *p;
}
inline float exp2_fast(float x) {
  const float y = exp2f(x);
  return y < 1.17549435e-38f ? 0.0f : y;
}

// ---- sm_90a ----

inline void store_matrices(void* row, const uint32_t (&r)[4], bool transposed) {
  struct Lane {
    const uint32_t* r;
    uint32_t address;
    bool transposed;
  } mine{r, shared_address(row), transposed};
  emulator::collective("store_matrices", ~0u, &mine, [](void** arguments) {
    Lane** lanes = reinterpret_cast<Lane**>(arguments);
    for (int m = 0; m < 4; ++m) {
      uint16_t matrix[8][8];
      for (int l = 0; l < 32; ++l)
        for (int e = 0; e < 2; ++e) {
          const int i = l / 4, j = l % 4 * 2 + e;
          const uint16_t x = static_cast<uint16_t>(lanes[l]->r[m] >> 16 * e);
          (lanes[l]->transposed ? matrix[j][i] : matrix[i][j]) = x;
        }
      uint32_t rows[8];
      for (int i = 0; i < 8; ++i) {
        rows[i] = lanes[m * 8 + i]->address;
        if (rows[i] & 15) emulator::fail("store_matrices: a row's address is no multiple of 16");
        std::memcpy(emulator::shared_pointer(rows[i], 16), matrix[i], 16);
      }
      emulator::counts.conflicts += extra_passes(rows);
    }
  });
}
inline void store_matrices(void* row, const uint32_t (&r)[4]) { store_matrices(row, r, false); }
inline void store_matrices_transposed(void* row, const uint32_t (&r)[4]) {
  store_matrices(row, r, true);
}

inline void barrier_sync(int id, int threads) {
  if (id < 0 || id > 15 || threads % 32) emulator::fail("barrier_sync: barrier or thread count");
  emulator::arrive(emulator::machine.current->block->barriers[id], threads, "barrier_sync");
}

inline int cluster_rank() { return static_cast<int>(emulator::machine.current->block->rank); }
inline void cluster_barrier() {
  emulator::arrive(emulator::machine.cluster_barrier, emulator::threads_alive(), "cluster_barrier");
}
template <class T>
inline T* in_block(T* p, int rank) {
  const uint32_t there = emulator::address_in(static_cast<uint32_t>(rank), shared_address(p));
  return reinterpret_cast<T*>(emulator::shared_pointer(there, sizeof(T)));
}

inline void mbarrier_init(uint64_t* barrier, int arrivals) {
  const uint32_t count = static_cast<uint32_t>(arrivals), address = shared_address(barrier);
  if (address & 7) emulator::fail("mbarrier_init: the address is no multiple of 8");
  emulator::machine.current->block->mbarriers[address] = {count, count, 0, 0, {}};
}
inline void mbarrier_init_fence() {}
inline void mbarrier_arrive(uint64_t* barrier) {
  emulator::arrive(emulator::mbarrier(shared_address(barrier)), 0);
  emulator::perhaps_yield();
}
inline void mbarrier_arrive_in(uint64_t* barrier, int rank) {
  const uint32_t address = shared_address(barrier);
  emulator::arrive(emulator::mbarrier(emulator::address_in(static_cast<uint32_t>(rank), address)),
                   0);
  emulator::perhaps_yield();
}
inline void mbarrier_arrive_expect(uint64_t* barrier, uint32_t bytes) {
  emulator::arrive(emulator::mbarrier(shared_address(barrier)), bytes);
  emulator::perhaps_yield();
}
inline void mbarrier_wait(uint64_t* barrier, uint32_t parity) {
  emulator::Mbarrier& m = emulator::mbarrier(shared_address(barrier));
  while (m.phase == parity) {
    m.waiting.push_back(emulator::machine.current);
    emulator::wait_for("an mbarrier");
  }
}
inline void proxy_fence() {}

// What cuTensorMapEncodeTiled makes a map of; innermost dimension first, strides in bytes.
struct TensorMap {
  char* data;
  int ndim, element;  // bytes
  int64_t shape[5], strides[5];
  int box[5];
  bool swizzled;
  // Of images: pixels of a copy, bounds and steps of where their filters start.
  int pixels, first[2], last[2], step[2];

  int64_t row_bytes() const { return int64_t{box[0]} * element; }
  int64_t bytes() const {
    int64_t n = element;
    for (int d = 0; d < ndim; ++d) n *= box[d];
    return n;
  }
};
struct Corner {
  int at[4];
};

// Calls move(shared memory or nullptr, address of the element or nullptr) for the elements of a box;
// nullptr: outside the tensor.
template <class Move>
inline void for_box(const TensorMap& map, uint32_t address, Corner corner, Move move) {
  const int64_t rows = map.bytes() / map.row_bytes();
  for (int64_t row = 0; row < rows; ++row) {
    bool inside = true;
    char* line = map.data;
    int64_t index = row;
    for (int d = 1; d < map.ndim; ++d) {
      const int64_t at = corner.at[d] + index % map.box[d];
      index /= map.box[d];
      inside = inside && at >= 0 && at < map.shape[d];
      line += at * map.strides[d];
    }
    for (int64_t i = 0; i < map.box[0]; ++i) {
      const int64_t at = corner.at[0] + i;
      const uint32_t place =
          address + static_cast<uint32_t>(row * map.row_bytes() + i * map.element);
      char* shared = emulator::shared_pointer(map.swizzled ? emulator::swizzle(place) : place,
                                              static_cast<size_t>(map.element));
      const bool valid = inside && at >= 0 && at < map.shape[0];
      move(shared, valid ? line + at * map.element : nullptr);
    }
  }
}
inline void check_box(const char* name, const TensorMap& map, int ndim, uint32_t address) {
  if (map.ndim != ndim) emulator::fail(std::string(name) + ": a map of other dimensions");
  if (address & (map.swizzled ? 1023 : 127))
    emulator::fail(std::string(name) + ": the shared address is not aligned");
}
inline void load_box(uint32_t to, const TensorMap& map, uint32_t barrier, Corner corner) {
  emulator::start_asynchronous([=] {
    const size_t bytes = static_cast<size_t>(map.element);
    for_box(map, to, corner, [&](char* shared, const char* element) {
      if (element)
        std::memcpy(shared, element, bytes);
      else
        std::memset(shared, 0, bytes);
    });
    emulator::Mbarrier& m = emulator::mbarrier(barrier);
    m.bytes -= map.bytes();
    emulator::complete(m);
  });
}
inline void tma_load(void* to, const TensorMap& map, uint64_t* barrier, int x, int y) {
  const uint32_t address = emulator::everywhere(shared_address(to));
  check_box("tma_load", map, 2, address);
  load_box(address, map, emulator::everywhere(shared_address(barrier)), {{x, y, 0}});
}
inline void tma_load(void* to, const TensorMap& map, uint64_t* barrier, int x, int y, int z) {
  const uint32_t address = emulator::everywhere(shared_address(to));
  check_box("tma_load", map, 3, address);
  load_box(address, map, emulator::everywhere(shared_address(barrier)), {{x, y, z}});
}
inline void tma_load(void* to, const TensorMap& map, uint64_t* barrier, int x, int y, int z,
                     int w) {
  const uint32_t address = emulator::everywhere(shared_address(to));
  check_box("tma_load", map, 4, address);
  load_box(address, map, emulator::everywhere(shared_address(barrier)), {{x, y, z, w}});
}
inline void tma_load_pixels(void* to, const TensorMap& map, uint64_t* barrier, int channel, int x,
                            int y, int image, int dx, int dy) {
  const uint32_t address = emulator::everywhere(shared_address(to));
  const uint32_t at = emulator::everywhere(shared_address(barrier));
  check_box("tma_load_pixels", map, 4, address);
  if (!map.pixels) emulator::fail("tma_load_pixels: a map of boxes");
  if (dx < 0 || dx > 255 || dy < 0 || dy > 255 || x < map.first[0] || x > map.last[0] ||
      y < map.first[1] || y > map.last[1])
    emulator::fail("tma_load_pixels: a place outside the bounds");
  emulator::start_asynchronous([=] {
    int pixel[3] = {x, y, image};
    for (int row = 0; row < map.pixels; ++row) {
      const int64_t place[4] = {0, int64_t{pixel[0]} + dx, int64_t{pixel[1]} + dy, pixel[2]};
      const char* line = map.data;
      bool inside = true;
      for (int d = 1; d < 4; ++d) {
        inside = inside && place[d] >= 0 && place[d] < map.shape[d];
        line += place[d] * map.strides[d];
      }
      for (int c = 0; c < map.box[0]; ++c) {
        const uint32_t offset = static_cast<uint32_t>((row * map.box[0] + c) * map.element);
        const size_t bytes = static_cast<size_t>(map.element);
        char* element = emulator::shared_pointer(
            map.swizzled ? emulator::swizzle(address + offset) : address + offset, bytes);
        if (inside && channel + c < map.shape[0])
          std::memcpy(element, line + int64_t{channel + c} * map.element, bytes);
        else
          std::memset(element, 0, bytes);
      }
      for (int d = 0; d < 2; ++d) {
        pixel[d] += map.step[d];
        if (pixel[d] <= map.last[d]) break;
        pixel[d] = map.first[d];
        if (d == 1) ++pixel[2];
      }
    }
    emulator::Mbarrier& m = emulator::mbarrier(at);
    m.bytes -= map.pixels * map.row_bytes();
    emulator::complete(m);
  });
}
inline void tma_load_multicast(void* to, const TensorMap& map, uint64_t* barrier, uint16_t ranks,
                               int x, int y, int z) {
  const uint32_t address = shared_address(to), at = shared_address(barrier);
  check_box("tma_load_multicast", map, 3, address);
  for (uint32_t rank = 0; rank < 16; ++rank)
    if (ranks >> rank & 1)
      load_box(emulator::address_in(rank, address), map, emulator::address_in(rank, at),
               {{x, y, z}});
}
// move(element of the tensor, where it comes from, bytes).
template <class Move>
inline void store_box(const TensorMap& map, const void* from, int ndim, Corner corner, Move move) {
  const uint32_t address = emulator::everywhere(shared_address(from));
  check_box("tma_store", map, ndim, address);
  const auto store = [=] {
    for_box(map, address, corner, [&](const char* shared, char* element) {
      if (element) move(element, shared, static_cast<size_t>(map.element));
    });
  };
  if (emulator::options.lazy)
    emulator::machine.current->stores.open.push_back(store);
  else
    store();
}
inline void tma_store(const TensorMap& map, const void* from, int x, int y) {
  store_box(map, from, 2, {{x, y, 0}}, std::memcpy);
}
inline void tma_store(const TensorMap& map, const void* from, int x, int y, int z) {
  store_box(map, from, 3, {{x, y, z}}, std::memcpy);
}
inline void tma_add(const TensorMap& map, const void* from, int x, int y) {
  store_box(map, from, 2, {{x, y, 0}}, [](char* to, const char* shared, size_t) {
    float sum, x;
    std::memcpy(&sum, to, sizeof(sum));
    std::memcpy(&x, shared, sizeof(x));
    sum += x;
    std::memcpy(to, &sum, sizeof(sum));
  });
}
inline void tma_store_commit() { emulator::machine.current->stores.commit(); }
template <int kPending>
inline void tma_store_wait() {
  emulator::machine.current->stores.wait(kPending);
}

template <int kCount>
inline void shrink_registers() {}
template <int kCount>
inline void grow_registers() {}

inline emulator::Groups& products_of_warp() {
  emulator::Fiber* f = emulator::machine.current;
  return f->block->products[static_cast<size_t>(f->index / 32)];
}
inline void wgmma_fence() {}
inline void wgmma_commit() {
  emulator::collective("wgmma_commit", ~0u, nullptr, [](void**) { products_of_warp().commit(); });
}
template <int kPending>
inline void wgmma_wait() {
  emulator::collective("wgmma_wait", ~0u, nullptr,
                       [](void**) { products_of_warp().wait(kPending); });
}
template <int kCount>
inline void pin(float (&)[kCount]) {}
struct Tf32 {
  uint32_t bits;
  explicit operator float() const { return tf32_of(bits); }
};
// What one product takes of k: 32 bytes.
template <class T>
constexpr int kDepthOf = 32 / static_cast<int>(sizeof(T));
// Elements (i, k) of the operand that a descriptor of the block `rank` names, i from `first`.
template <class T>
inline void read_operand(uint64_t descriptor, uint32_t rank, bool along_k, int first, int count,
                         float (*out)[kDepthOf<T>]) {
  if (descriptor >> 62 != 1) emulator::fail("wgmma: the descriptor is not for swizzled rows");
  const auto field = [&](int bit) {
    return static_cast<uint32_t>(descriptor >> bit & 0x3fff) << 4;
  };
  const uint32_t start = field(0), leading = field(16), stride = field(32);
  if (start & 0x380) emulator::fail("wgmma: rows do not start at a multiple of 1024 bytes");
  for (int i = 0; i < count; ++i)
    for (int k = 0; k < kDepthOf<T>; ++k) {
      const uint32_t n = static_cast<uint32_t>(first + i), step = static_cast<uint32_t>(k);
      const uint32_t size = sizeof(T);
      const uint32_t offset =
          along_k ? n / 8 * stride + n % 8 * 128 + step * size
                  : n / 64 * leading + n % 64 * 2 + step / 8 * stride + step % 8 * 128;
      const uint32_t address = emulator::address_in(rank, emulator::swizzle(start + offset));
      T x;
      std::memcpy(&x, emulator::shared_pointer(address, size), size);
      out[i][k] = static_cast<float>(x);
    }
}
// read_left(lanes' arguments, rank, row, out): the 16 rows of A that belong to the warp.
template <class T, int kN, bool kBAlongK, class A, class Read>
inline void warpgroup_product(float* d, const A& a, uint64_t b, bool add, Read read_left) {
  struct Lane {
    float* d;
    A a;
    uint64_t b;
    bool add;
  } mine{d, a, b, add};
  emulator::collective("wgmma", ~0u, &mine, [&](void** arguments) {
    Lane** lanes = reinterpret_cast<Lane**>(arguments);
    std::array<float*, 32> results;
    std::array<A, 32> lefts;
    for (size_t l = 0; l < 32; ++l) {
      results[l] = lanes[l]->d;
      lefts[l] = lanes[l]->a;
      if (lanes[l]->b != lanes[0]->b || lanes[l]->add != lanes[0]->add)
        emulator::fail("wgmma: the lanes of a warp differ in their operands");
    }
    const emulator::Fiber* f = emulator::machine.current;
    const uint32_t rank = f->block->rank;
    const int first = f->index / 32 % 4 * 16;
    const uint64_t b = lanes[0]->b;
    const bool add = lanes[0]->add;
    const auto product = [=] {
      constexpr int kDepth = kDepthOf<T>;
      float left[16][kDepth], right[kN][kDepth];
      read_left(lefts, rank, first, left);
      read_operand<T>(b, rank, kBAlongK, 0, kN, right);
      for (int i = 0; i < 16; ++i)
        for (int j = 0; j < kN; ++j) {
          float sum = 0;
          for (int k = 0; k < kDepth; ++k) sum += left[i][k] * right[j][k];
          float& result =
              results[static_cast<size_t>(i % 8 * 4 + j % 8 / 2)][j / 8 * 4 + i / 8 * 2 + j % 2];
          result = add ? result + sum : sum;
        }
    };
    if (emulator::options.lazy)
      products_of_warp().open.push_back(product);
    else
      product();
  });
}
template <class T, int kN, bool kAAlongK, bool kBAlongK>
inline void wgmma(float (&d)[kN / 2], uint64_t a, uint64_t b, bool add) {
  const auto read = [](const std::array<uint64_t, 32>& lanes, uint32_t rank, int first,
                       float (*left)[kDepthOf<T>]) {
    for (const uint64_t other : lanes)
      if (other != lanes[0]) emulator::fail("wgmma: the lanes of a warp differ in their operands");
    read_operand<T>(lanes[0], rank, kAAlongK, first, 16, left);
  };
  warpgroup_product<T, kN, kBAlongK>(d, a, b, add, read);
}
template <int kN>
inline void wgmma_tf32(float (&d)[kN / 2], uint64_t a, uint64_t b, bool add) {
  wgmma<Tf32, kN, true, true>(d, a, b, add);
}
template <class T, int kN, bool kBAlongK>
inline void wgmma(float (&d)[kN / 2], const uint32_t (&a)[4], uint64_t b, bool add) {
  using Registers = std::array<uint32_t, 4>;
  const auto read = [](const std::array<Registers, 32>& lanes, uint32_t, int, float (*left)[16]) {
    for (int l = 0; l < 32; ++l)
      for (int i = 0; i < 4; ++i)
        unpack(lanes[static_cast<size_t>(l)][static_cast<size_t>(i)], static_cast<T*>(nullptr),
               &left[l / 4 + i % 2 * 8][l % 4 * 2 + i / 2 * 8]);
  };
  warpgroup_product<T, kN, kBAlongK>(d, Registers{a[0], a[1], a[2], a[3]}, b, add, read);
}

}  // namespace grebe::cuda
#endif

namespace grebe::cuda {

// Names an operand of wgmma in shared memory, swizzled as by tma_load. Along k: rows of 64 elements in
// k; `stride` bytes from eight rows to the next eight. Else: rows (one per k) of 64 elements of the
// other dimension; `stride` from eight rows to the next eight, `leading` from 64 elements to the next
// 64. The next 16 of k start 32 bytes or two times `stride` further.
DEVICE uint64_t matrix_descriptor(const void* p, uint32_t leading, uint32_t stride) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
  return (shared_address(p) & 0x3ffff) >> 4 | static_cast<uint64_t>(leading >> 4) << 16 |
         static_cast<uint64_t>(stride >> 4) << 32 | kSwizzle128;
}

}  // namespace grebe::cuda
