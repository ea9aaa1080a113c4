// Probes: kernels that show what each function of ptx.cuh does, and under the emulator kernels with
// planted bugs that it must catch. tests/test_emulator.py runs them.
//
// A probe takes arrays of 32-bit words and gives one; what the words mean is said with each kernel.
// The same kernels run on a device and under the emulator, so that results kept from a device judge
// the emulator.
#include "probes.h"

#include "tensor_map.cuh"

namespace grebe::cuda {
namespace {

constexpr int kMostInputs = 3;

struct Probe {
  const uint32_t* in[kMostInputs];
  uint32_t* out;
  int64_t size;  // words of `out`
};

DEVICE float as_float(uint32_t bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}
DEVICE uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}

// ---- all devices ----

// in: the 16 bytes of each lane, whether they are valid.
__global__ void probe_copy_async(Probe p) {
  Shared shared;
  uint32_t* words = shared.take<uint32_t>(128);
  const int lane = threadIdx.x;
  copy_async(words + lane * 4, p.in[0] + lane * 4, p.in[1][lane] != 0);
  copy_async_commit();
  copy_async_wait<0>();
  __syncwarp();
  for (int i = lane; i < 128; i += 32) p.out[i] = words[i];
}

// in: shared memory in chunks of 16 bytes, the number of the chunk that each lane names as a row.
constexpr int kChunks = 512;
template <bool kTransposed>
__global__ void probe_load_matrices(Probe p) {
  Shared shared;
  uint32_t* words = shared.take<uint32_t>(kChunks * 4);
  const int lane = threadIdx.x;
  for (int i = lane; i < kChunks * 4; i += 32) words[i] = p.in[0][i];
  __syncwarp();
  uint32_t r[4];
  if (kTransposed)
    load_matrices_transposed(r, words + p.in[1][lane] * 4);
  else
    load_matrices(r, words + p.in[1][lane] * 4);
  for (int i = 0; i < 4; ++i) p.out[lane * 4 + i] = r[i];
}

// in: the registers of each lane, four of a, two of b, four of d. out: d.
template <int kWhich>
__global__ void probe_multiply(Probe p) {
  const int lane = threadIdx.x;
  uint32_t a[4];
  float d[4];
  for (int i = 0; i < 4; ++i) {
    a[i] = p.in[0][lane * 4 + i];
    d[i] = as_float(p.in[2][lane * 4 + i]);
  }
  const uint32_t b0 = p.in[1][lane * 2], b1 = p.in[1][lane * 2 + 1];
  if (kWhich == 0) multiply_bf16(d, a, b0, b1);
  if (kWhich == 1) multiply_half(d, a, b0, b1);
  if (kWhich == 2) multiply_tf32(d, a, b0, b1);
  for (int i = 0; i < 4; ++i) p.out[lane * 4 + i] = bits_of(d[i]);
}

// in: floats.
__global__ void probe_round_tf32(Probe p) {
  for (int64_t i = thread_number(); i < p.size; i += thread_count())
    p.out[i] = round_tf32(as_float(p.in[0][i]));
}
__global__ void probe_exp2_fast(Probe p) {
  for (int64_t i = thread_number(); i < p.size; i += thread_count())
    p.out[i] = bits_of(exp2_fast(as_float(p.in[0][i])));
}

// in: a word of each lane, a lane for each. out: five words a lane.
__global__ void probe_shuffles(Probe p) {
  const int lane = threadIdx.x;
  const uint32_t x = p.in[0][lane], from = p.in[1][lane];
  uint32_t* out = p.out + lane * 5;
  out[0] = __shfl_sync(~0u, x, static_cast<int>(from));
  out[1] = __shfl_xor_sync(~0u, x, 5);
  out[2] = __shfl_up_sync(~0u, x, 3);
  out[3] = __shfl_down_sync(~0u, x, 3);
  out[4] = __ballot_sync(~0u, static_cast<int>(x & 1));
}

// A grid of 4 blocks: in each of 3 rounds a block adds the words of the next to its own.
__global__ void probe_grid_barrier(Probe p, uint32_t* arrivals) {
  constexpr int kBlocks = 4, kCount = 64;
  const int mine = blockIdx.x * kCount + threadIdx.x;
  const int next = (blockIdx.x + 1) % kBlocks * kCount + threadIdx.x;
  volatile uint32_t* words = p.out;
  words[mine] = p.in[0][mine];
  for (int round = 0; round < 3; ++round) {
    grid_barrier(arrivals);
    const uint32_t other = words[next];
    grid_barrier(arrivals);
    words[mine] = words[mine] + other;
  }
}

// ---- sm_90a ----

// in: registers of each lane, the chunk that each lane names as a row, shared memory before. out:
// shared memory.
template <bool kTransposed>
__global__ void probe_store_matrices(Probe p) {
  Shared shared;
  uint32_t* words = shared.take<uint32_t>(kChunks * 4);
  const int lane = threadIdx.x;
  for (int i = lane; i < kChunks * 4; i += 32) words[i] = p.in[2][i];
  __syncwarp();
  uint32_t r[4];
  for (int i = 0; i < 4; ++i) r[i] = p.in[0][lane * 4 + i];
  if (kTransposed)
    store_matrices_transposed(words + p.in[1][lane] * 4, r);
  else
    store_matrices(words + p.in[1][lane] * 4, r);
  __syncwarp();
  for (int i = lane; i < kChunks * 4; i += 32) p.out[i] = words[i];
}

// out: each half of 64 words reversed.
__global__ void probe_barrier_sync(Probe p) {
  Shared shared;
  uint32_t* words = shared.take<uint32_t>(128);
  const int half = threadIdx.x / 64, t = threadIdx.x % 64;
  words[threadIdx.x] = p.in[0][threadIdx.x];
  barrier_sync(1 + half, 64);
  p.out[threadIdx.x] = words[half * 64 + 63 - t];
}

// A cluster of 4 blocks: each passes on the words of the next.
__global__ void probe_cluster(Probe p) {
  Shared shared;
  uint32_t* words = shared.take<uint32_t>(32);
  const int lane = threadIdx.x, rank = cluster_rank();
  words[lane] = p.in[0][rank * 32 + lane];
  cluster_barrier();
  p.out[rank * 32 + lane] = in_block(words, (rank + 1) % 4)[lane];
  cluster_barrier();
}

// A cluster of 2 blocks: the second writes into the first one's shared memory and says so.
__global__ void probe_arrive_in(Probe p) {
  Shared shared;
  uint32_t* words = shared.take<uint32_t>(32);
  uint64_t* ready = shared.take<uint64_t>(1);
  const int lane = threadIdx.x;
  if (lane == 0) {
    mbarrier_init(ready, 32);
    mbarrier_init_fence();
  }
  cluster_barrier();
  if (cluster_rank() == 1) {
    in_block(words, 0)[lane] = p.in[0][lane];
    mbarrier_arrive_in(ready, 0);
  } else {
    mbarrier_wait(ready, 0);
    p.out[lane] = words[lane];
  }
  cluster_barrier();
}

// Warp 0 passes slices of 32 words to warp 1 by way of two stages. out: in.
__global__ void probe_mbarrier(Probe p) {
  constexpr int kStages = 2;
  Shared shared;
  uint32_t* words = shared.take<uint32_t>(kStages * 32);
  uint64_t* full = shared.take<uint64_t>(kStages);
  uint64_t* empty = shared.take<uint64_t>(kStages);
  const int lane = threadIdx.x % 32, slices = static_cast<int>(p.size / 32);
  if (threadIdx.x < kStages) {
    mbarrier_init(full + threadIdx.x, 32);
    mbarrier_init(empty + threadIdx.x, 32);
    mbarrier_init_fence();
  }
  __syncthreads();
  for (int s = 0; s < slices; ++s) {
    const int stage = s % kStages;
    const uint32_t parity = s / kStages & 1;
    if (threadIdx.x < 32) {
      mbarrier_wait(empty + stage, parity ^ 1);
      words[stage * 32 + lane] = p.in[0][s * 32 + lane];
      mbarrier_arrive(full + stage);
    } else {
      mbarrier_wait(full + stage, parity);
      p.out[s * 32 + lane] = words[stage * 32 + lane];
      mbarrier_arrive(empty + stage);
    }
  }
}

// Registers change hands between warpgroups, and keep what they hold. out: in.
__global__ void __launch_bounds__(256, 1) probe_registers(Probe p) {
  const uint32_t x = p.in[0][threadIdx.x];
  if (threadIdx.x < 128)
    shrink_registers<40>();
  else
    grow_registers<232>();
  p.out[threadIdx.x] = x;
}

// in: a tensor, the coordinates of a box. out: the box, as it lies in shared memory.
constexpr int64_t kTensor[4] = {50, 20, 3, 2};
constexpr int64_t kTensorStrides[4] = {1, 52, 52 * 24, 3 * 52 * 24};
constexpr int kBox[4] = {32, 8, 2, 1}, kBoxWords = 32 * 8 * 2;
template <int kDims>
__global__ void __launch_bounds__(32)
    probe_tma_load(const __grid_constant__ TensorMap map, Probe p) {
  constexpr int kWords = kDims == 2 ? kBoxWords / 2 : kBoxWords;
  Shared shared;
  uint32_t* words = shared.take<uint32_t>(kBoxWords);
  uint64_t* full = shared.take<uint64_t>(1);
  const int lane = threadIdx.x;
  const int* at = reinterpret_cast<const int*>(p.in[1]);
  if (lane == 0) {
    mbarrier_init(full, 1);
    mbarrier_init_fence();
    mbarrier_arrive_expect(full, kWords * 4);
    if (kDims == 2)
      tma_load(words, map, full, at[0], at[1]);
    else if (kDims == 3)
      tma_load(words, map, full, at[0], at[1], at[2]);
    else
      tma_load(words, map, full, at[0], at[1], at[2], at[3]);
  }
  __syncwarp();
  mbarrier_wait(full, 0);
  for (int i = lane; i < kWords; i += 32) p.out[i] = words[i];
}
// A cluster of 2 blocks, of which the second loads for both.
__global__ void __launch_bounds__(32)
    probe_tma_load_multicast(const __grid_constant__ TensorMap map, Probe p) {
  Shared shared;
  uint32_t* words = shared.take<uint32_t>(kBoxWords);
  uint64_t* full = shared.take<uint64_t>(1);
  const int lane = threadIdx.x, rank = cluster_rank();
  const int* at = reinterpret_cast<const int*>(p.in[1]);
  if (lane == 0) {
    mbarrier_init(full, 1);
    mbarrier_init_fence();
    mbarrier_arrive_expect(full, kBoxWords * 4);
  }
  cluster_barrier();
  if (rank == 1 && lane == 0) tma_load_multicast(words, map, full, 3, at[0], at[1], at[2]);
  mbarrier_wait(full, 0);
  for (int i = lane; i < kBoxWords; i += 32) p.out[rank * kBoxWords + i] = words[i];
  cluster_barrier();
}

// in: images, where to begin (channel, x, y, image, dx, dy). out: the pixels as they lie in shared
// memory. Filters of 3x3 with steps of 2 and 1, padding 1.
constexpr int64_t kImages[4] = {40, 7, 5, 3};
constexpr int64_t kImageStrides[4] = {1, 40, 40 * 7, 40 * 7 * 5};
constexpr ImageWindow kWindow = {{-1, -1}, {-1, -1}, {2, 1}};
constexpr int kPixels = 48, kPixelWords = kPixels * 32;
__global__ void __launch_bounds__(32)
    probe_tma_load_pixels(const __grid_constant__ TensorMap map, Probe p) {
  Shared shared;
  uint32_t* words = shared.take<uint32_t>(kPixelWords);
  uint64_t* full = shared.take<uint64_t>(1);
  const int lane = threadIdx.x;
  const int* at = reinterpret_cast<const int*>(p.in[1]);
  if (lane == 0) {
    mbarrier_init(full, 1);
    mbarrier_init_fence();
    mbarrier_arrive_expect(full, kPixelWords * 4);
    tma_load_pixels(words, map, full, at[0], at[1], at[2], at[3], at[4], at[5]);
  }
  __syncwarp();
  mbarrier_wait(full, 0);
  for (int i = lane; i < kPixelWords; i += 32) p.out[i] = words[i];
}

// in: a box as it lies in shared memory, its coordinates, a tensor. out: the tensor and three times
// the box, added by as many blocks.
__global__ void copy_words(Probe p) {
  for (int64_t i = thread_number(); i < p.size; i += thread_count()) p.out[i] = p.in[2][i];
}
__global__ void __launch_bounds__(32)
    probe_tma_add(const __grid_constant__ TensorMap map, Probe p) {
  constexpr int kWords = kBoxWords / 2;
  Shared shared;
  uint32_t* words = shared.take<uint32_t>(kWords);
  const int lane = threadIdx.x;
  const int* at = reinterpret_cast<const int*>(p.in[1]);
  for (int i = lane; i < kWords; i += 32) words[i] = p.in[0][i];
  proxy_fence();
  __syncwarp();
  if (lane == 0) {
    tma_add(map, words, at[0], at[1]);
    tma_store_commit();
    tma_store_wait<0>();
  }
}

// in: a box as it lies in shared memory, its coordinates. out: a tensor of zeros with the box.
__global__ void fill_with_zeros(Probe p) {
  for (int64_t i = thread_number(); i < p.size; i += thread_count()) p.out[i] = 0;
}
template <int kDims>
__global__ void __launch_bounds__(32)
    probe_tma_store(const __grid_constant__ TensorMap map, Probe p) {
  constexpr int kWords = kDims == 2 ? kBoxWords / 2 : kBoxWords;
  Shared shared;
  uint32_t* words = shared.take<uint32_t>(kWords);
  const int lane = threadIdx.x;
  const int* at = reinterpret_cast<const int*>(p.in[1]);
  for (int i = lane; i < kWords; i += 32) words[i] = p.in[0][i];
  proxy_fence();
  __syncwarp();
  if (lane == 0) {
    if (kDims == 2)
      tma_store(map, words, at[0], at[1]);
    else
      tma_store(map, words, at[0], at[1], at[2]);
    tma_store_commit();
    tma_store_wait<0>();
  }
  __syncwarp();
  for (int i = lane; i < kWords; i += 32) words[i] = 0;  // has been read
}

// in: a, 64 rows and 64 of k, and b, kN columns and 64 of k, as they lie in shared memory; the
// registers of each thread; whether to add to them. out: the registers.
template <class T, int kN, bool kAAlongK, bool kBAlongK>
__global__ void __launch_bounds__(128) probe_wgmma(Probe p) {
  constexpr int kAWords = 64 * 64 / 2, kBWords = kN * 64 / 2, kCount = kN / 2;
  Shared shared;
  uint32_t* a = shared.take<uint32_t>(kAWords);
  uint32_t* b = shared.take<uint32_t>(kBWords);
  const int t = threadIdx.x;
  for (int i = t; i < kAWords; i += 128) a[i] = p.in[0][i];
  for (int i = t; i < kBWords; i += 128) b[i] = p.in[0][kAWords + i];
  float d[kCount];
#pragma unroll
  for (int i = 0; i < kCount; ++i) d[i] = as_float(p.in[1][t * kCount + i]);
  const bool add = p.in[2][0] != 0;
  proxy_fence();
  __syncthreads();
  pin(d);
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < 64; k += 16)
    wgmma<T, kN, kAAlongK, kBAlongK>(
        d, matrix_descriptor(a + (kAAlongK ? k : k * 64) / 2, 8192, 1024),
        matrix_descriptor(b + (kBAlongK ? k : k * 64) / 2, 8192, 1024), add || k > 0);
  wgmma_commit();
  wgmma_wait<0>();
  pin(d);
#pragma unroll
  for (int i = 0; i < kCount; ++i) p.out[t * kCount + i] = bits_of(d[i]);
}

// The same of floats, 64 rows and kN columns and 32 of k.
template <int kN>
__global__ void __launch_bounds__(128) probe_wgmma_tf32(Probe p) {
  constexpr int kAWords = 64 * 32, kBWords = kN * 32, kCount = kN / 2;
  Shared shared;
  uint32_t* a = shared.take<uint32_t>(kAWords);
  uint32_t* b = shared.take<uint32_t>(kBWords);
  const int t = threadIdx.x;
  for (int i = t; i < kAWords; i += 128) a[i] = p.in[0][i];
  for (int i = t; i < kBWords; i += 128) b[i] = p.in[0][kAWords + i];
  float d[kCount];
#pragma unroll
  for (int i = 0; i < kCount; ++i) d[i] = as_float(p.in[1][t * kCount + i]);
  const bool add = p.in[2][0] != 0;
  proxy_fence();
  __syncthreads();
  pin(d);
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < 32; k += 8)
    wgmma_tf32<kN>(d, matrix_descriptor(a + k, 0, 1024), matrix_descriptor(b + k, 0, 1024),
                   add || k > 0);
  wgmma_commit();
  wgmma_wait<0>();
  pin(d);
#pragma unroll
  for (int i = 0; i < kCount; ++i) p.out[t * kCount + i] = bits_of(d[i]);
}

// The same with a in registers. in: b; the registers of d of each thread; for each thread the registers
// of a for four steps along k, and whether to add.
template <class T, int kN, bool kBAlongK>
__global__ void __launch_bounds__(128) probe_wgmma_registers(Probe p) {
  constexpr int kBWords = kN * 64 / 2, kCount = kN / 2;
  Shared shared;
  uint32_t* b = shared.take<uint32_t>(kBWords);
  const int t = threadIdx.x;
  for (int i = t; i < kBWords; i += 128) b[i] = p.in[0][i];
  float d[kCount];
  uint32_t a[4][4];
#pragma unroll
  for (int i = 0; i < kCount; ++i) d[i] = as_float(p.in[1][t * kCount + i]);
#pragma unroll
  for (int i = 0; i < 16; ++i) a[i / 4][i % 4] = p.in[2][t * 16 + i];
  const bool add = p.in[2][128 * 16] != 0;
  proxy_fence();
  __syncthreads();
  pin(d);
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < 64; k += 16)
    wgmma<T, kN, kBAlongK>(
        d, a[k / 16], matrix_descriptor(b + (kBAlongK ? k : k * 64) / 2, 8192, 1024), add || k > 0);
  wgmma_commit();
  wgmma_wait<0>();
  pin(d);
#pragma unroll
  for (int i = 0; i < kCount; ++i) p.out[t * kCount + i] = bits_of(d[i]);
}

// ---- kernels with bugs, for the emulator alone ----

#ifdef GREBE_EMULATE

// out = in reversed, by way of shared memory.
template <bool kBug>
__global__ void missing_barrier(Probe p) {
  Shared shared;
  uint32_t* words = shared.take<uint32_t>(256);
  words[threadIdx.x] = p.in[0][threadIdx.x];
  if (!kBug) __syncthreads();
  p.out[threadIdx.x] = words[255 - threadIdx.x];
}

// Only some warps come to a barrier.
template <bool kBug>
__global__ void partial_barrier(Probe p) {
  if (!kBug || threadIdx.x < 64) __syncthreads();
  p.out[threadIdx.x] = p.in[0][threadIdx.x];
}

// out = in, by way of stages that are copied ahead.
enum class StageBug { kNone, kWait, kOverwrite };
template <StageBug kBug>
__global__ void staged_copies(Probe p) {
  constexpr int kStages = 3, kSlices = 8, kWords = 256 * 4;
  Shared shared;
  uint32_t* words = shared.take<uint32_t>(kStages * kWords);
  const int t = threadIdx.x;
  auto bring = [&](int s) {
    if (s < kSlices) copy_async(words + s % kStages * kWords + t * 4, p.in[0] + s * kWords + t * 4);
    copy_async_commit();
  };
  for (int s = 0; s < kStages - 1; ++s) bring(s);
  for (int s = 0; s < kSlices; ++s) {
    copy_async_wait<kBug == StageBug::kWait ? kStages - 1 : kStages - 2>();
    if (kBug == StageBug::kOverwrite) bring(s + kStages - 1);  // others may still read the stage
    __syncthreads();
    if (kBug != StageBug::kOverwrite) bring(s + kStages - 1);
    for (int i = 0; i < 4; ++i)
      p.out[s * kWords + i * 256 + t] = words[s % kStages * kWords + (i * 256 + t)];
  }
}

// Writes behind the shared memory of the launch.
template <bool kBug>
__global__ void outside_shared(Probe p) {
  Shared shared;
  uint32_t* words = shared.take<uint32_t>(256);
  words[threadIdx.x + (kBug ? 1 : 0)] = p.in[0][threadIdx.x];
  __syncthreads();
  p.out[threadIdx.x] = words[threadIdx.x + (kBug ? 1 : 0)];
}

// out = in, by way of stages that one thread fills by bulk copies, 8 rows of 32 words each.
enum class RingBug { kNone, kFullParity, kEmptyParity, kBytes, kRelease };
template <RingBug kBug>
__global__ void ring(TensorMap map, Probe p) {
  constexpr int kStages = 2, kWords = 256, kReaders = 64;
  Shared shared;
  uint32_t* words = shared.take<uint32_t>(kStages * kWords);
  uint64_t* full = shared.take<uint64_t>(kStages);
  uint64_t* empty = shared.take<uint64_t>(kStages);
  const int slices = static_cast<int>(p.size / kWords), reader = threadIdx.x - 32;
  if (threadIdx.x == 0)
    for (int s = 0; s < kStages; ++s) {
      mbarrier_init(full + s, 1);
      mbarrier_init(empty + s, kReaders);
    }
  __syncthreads();
  if (reader < 0 && threadIdx.x > 0) return;
  for (int s = 0; s < slices; ++s) {
    const int stage = s % kStages;
    const uint32_t parity = s / kStages & 1;
    if (threadIdx.x == 0) {
      mbarrier_wait(empty + stage, kBug == RingBug::kEmptyParity ? parity : parity ^ 1);
      mbarrier_arrive_expect(full + stage, kWords * (kBug == RingBug::kBytes ? 2 : 4));
      tma_load(words + stage * kWords, map, full + stage, 0, s * 8);
    } else {
      mbarrier_wait(full + stage, kBug == RingBug::kFullParity ? parity ^ 1 : parity);
      if (kBug == RingBug::kRelease) mbarrier_arrive(empty + stage);
      for (int i = reader; i < kWords; i += kReaders) {
        const int row = i / 32, chunk = i % 32 / 4 ^ row;
        p.out[s * kWords + i] = words[stage * kWords + row * 32 + chunk * 4 + i % 4];
      }
      if (kBug != RingBug::kRelease) mbarrier_arrive(empty + stage);
    }
  }
}
template <RingBug kBug>
void run_ring(const Probe& p) {
  const int64_t shape[2] = {32, p.size / 32}, strides[2] = {1, 32};
  const int box[2] = {32, 8};
  const TensorMap map =
      make_tensor_map(reinterpret_cast<const float*>(p.in[0]), 2, shape, strides, box);
  launch("probe", ring<kBug>, 1, 96, 2 * 1024 + 32, map, p);
}

// out = 16 in the first 128 * 32 words: a product of ones, whose operands a second one overwrites.
enum class ProductBug { kNone, kUnwaited, kOverwritten };
template <ProductBug kBug>
__global__ void product_of_ones(Probe p) {
  Shared shared;
  bf16* a = shared.take<bf16>(64 * 64);
  bf16* b = shared.take<bf16>(64 * 64);
  for (int i = threadIdx.x; i < 64 * 64; i += 128) a[i] = b[i] = bf16(1.0f);
  proxy_fence();
  __syncthreads();
  float d[32] = {};
  wgmma_fence();
  wgmma<bf16, 64, true, true>(d, matrix_descriptor(a, 8192, 1024), matrix_descriptor(b, 8192, 1024),
                              false);
  wgmma_commit();
  if (kBug == ProductBug::kNone) wgmma_wait<0>();
  if (kBug != ProductBug::kUnwaited) {
    __syncthreads();
    for (int i = threadIdx.x; i < 64 * 64; i += 128) a[i] = bf16(0.0f);
    __syncthreads();
  }
  if (kBug == ProductBug::kOverwritten) wgmma_wait<0>();
  for (int i = 0; i < 32; ++i) p.out[threadIdx.x * 32 + i] = bits_of(d[i]);
}

#endif

// ---- by name ----

struct Entry {
  const char* name;
  int inputs;
  void (*run)(const Probe&);
};

template <void (*kKernel)(Probe), int kCount, int kBytes, int kCluster = 1>
void run(const Probe& p) {
  launch_clusters("probe", kCluster, kKernel, kCluster, kCount, kBytes, p);
}

TensorMap map_of_tensor(const uint32_t* data, int ndim) {
  return make_tensor_map(reinterpret_cast<const float*>(data), ndim, kTensor, kTensorStrides, kBox);
}
template <int kDims>
void run_tma_load(const Probe& p) {
  launch("probe", probe_tma_load<kDims>, 1, 32, kBoxWords * 4 + 16, map_of_tensor(p.in[0], kDims),
         p);
}
void run_tma_load_plain(const Probe& p) {
  const TensorMap map = make_tensor_map(reinterpret_cast<const float*>(p.in[0]), 2, kTensor,
                                        kTensorStrides, kBox, false);
  launch("probe", probe_tma_load<2>, 1, 32, kBoxWords * 4 + 16, map, p);
}
void run_tma_load_multicast(const Probe& p) {
  launch_clusters("probe", 2, probe_tma_load_multicast, 2, 32, kBoxWords * 4 + 16,
                  map_of_tensor(p.in[0], 3), p);
}
void run_tma_load_pixels(const Probe& p) {
  const TensorMap map = make_image_map(reinterpret_cast<const float*>(p.in[0]), kImages,
                                       kImageStrides, kWindow, 32, kPixels);
  launch("probe", probe_tma_load_pixels, 1, 32, kPixelWords * 4 + 16, map, p);
}
void run_tma_add(const Probe& p) {
  launch("probe", copy_words, 8, 256, 0, p);
  launch("probe", probe_tma_add, 3, 32, kBoxWords * 2, map_of_tensor(p.out, 2), p);
}
void run_grid_barrier(const Probe& p) {
  uint32_t* arrivals = static_cast<uint32_t*>(workspace(sizeof(uint32_t)));
  launch("probe", fill_with_zeros, 1, 1, 0, Probe{{}, arrivals, 1});
  launch_together("probe", probe_grid_barrier, 4, 64, 0, p, arrivals);
}
template <int kN>
void run_wgmma_tf32(const Probe& p) {
  launch("probe", probe_wgmma_tf32<kN>, 1, 128, (64 + kN) * 128, p);
}
template <int kDims>
void run_tma_store(const Probe& p) {
  launch("probe", fill_with_zeros, 8, 256, 0, p);
  launch("probe", probe_tma_store<kDims>, 1, 32, kBoxWords * 4, map_of_tensor(p.out, kDims), p);
}
template <class T, int kN, bool kAAlongK, bool kBAlongK>
void run_wgmma(const Probe& p) {
  launch("probe", probe_wgmma<T, kN, kAAlongK, kBAlongK>, 1, 128, (64 + kN) * 128, p);
}
template <class T, int kN, bool kBAlongK>
void run_wgmma_registers(const Probe& p) {
  launch("probe", probe_wgmma_registers<T, kN, kBAlongK>, 1, 128, kN * 128, p);
}
#define WGMMA_REGISTER_PROBES(name, T, kN)                             \
  {"wgmma_registers_" name "_k", 3, run_wgmma_registers<T, kN, true>}, \
      {"wgmma_registers_" name "_t", 3, run_wgmma_registers<T, kN, false>},
#define WGMMA_PROBES(name, T, kN)                              \
  {"wgmma_" name "_tt", 3, run_wgmma<T, kN, false, false>},    \
      {"wgmma_" name "_tk", 3, run_wgmma<T, kN, false, true>}, \
      {"wgmma_" name "_kt", 3, run_wgmma<T, kN, true, false>}, \
      {"wgmma_" name "_kk", 3, run_wgmma<T, kN, true, true>},

const Entry kEntries[] = {
    {"copy_async", 2, run<probe_copy_async, 32, 512>},
    {"load_matrices", 2, run<probe_load_matrices<false>, 32, kChunks * 16>},
    {"load_matrices_transposed", 2, run<probe_load_matrices<true>, 32, kChunks * 16>},
    {"multiply_bf16", 3, run<probe_multiply<0>, 32, 0>},
    {"multiply_half", 3, run<probe_multiply<1>, 32, 0>},
    {"multiply_tf32", 3, run<probe_multiply<2>, 32, 0>},
    {"round_tf32", 1, run<probe_round_tf32, 256, 0>},
    {"exp2_fast", 1, run<probe_exp2_fast, 256, 0>},
    {"shuffles", 2, run<probe_shuffles, 32, 0>},
    {"grid_barrier", 1, run_grid_barrier},
    {"store_matrices", 3, run<probe_store_matrices<false>, 32, kChunks * 16>},
    {"store_matrices_transposed", 3, run<probe_store_matrices<true>, 32, kChunks * 16>},
    {"barrier_sync", 1, run<probe_barrier_sync, 128, 512>},
    {"cluster", 1, run<probe_cluster, 32, 128, 4>},
    {"arrive_in", 1, run<probe_arrive_in, 32, 144, 2>},
    {"mbarrier", 1, run<probe_mbarrier, 64, 256 + 32>},
    {"registers", 1, run<probe_registers, 256, 0>},
    {"tma_load_2d", 2, run_tma_load<2>},
    {"tma_load_3d", 2, run_tma_load<3>},
    {"tma_load_4d", 2, run_tma_load<4>},
    {"tma_load_plain", 2, run_tma_load_plain},
    {"tma_load_multicast", 2, run_tma_load_multicast},
    {"tma_load_pixels", 2, run_tma_load_pixels},
    {"tma_add", 3, run_tma_add},
    {"wgmma_tf32_64", 3, run_wgmma_tf32<64>},
    {"wgmma_tf32_128", 3, run_wgmma_tf32<128>},
    {"wgmma_tf32_256", 3, run_wgmma_tf32<256>},
    {"tma_store_2d", 2, run_tma_store<2>},
    {"tma_store_3d", 2, run_tma_store<3>},
    WGMMA_PROBES("bf16_64", bf16, 64) WGMMA_PROBES("bf16_128", bf16, 128) WGMMA_PROBES(
        "bf16_256", bf16, 256) WGMMA_PROBES("half_64", half, 64) WGMMA_PROBES("half_128", half, 128)
        WGMMA_PROBES("half_256", half, 256) WGMMA_REGISTER_PROBES("bf16_64", bf16, 64)
            WGMMA_REGISTER_PROBES("bf16_128", bf16, 128) WGMMA_REGISTER_PROBES("half_64", half, 64)
                WGMMA_REGISTER_PROBES("half_128", half, 128)
#ifdef GREBE_EMULATE
                    {"missing_barrier:right", 1, run<missing_barrier<false>, 256, 1024>},
    {"missing_barrier:wrong", 1, run<missing_barrier<true>, 256, 1024>},
    {"partial_barrier:right", 1, run<partial_barrier<false>, 128, 0>},
    {"partial_barrier:wrong", 1, run<partial_barrier<true>, 128, 0>},
    {"staged_copies:right", 1, run<staged_copies<StageBug::kNone>, 256, 3 * 4096>},
    {"staged_copies:wait", 1, run<staged_copies<StageBug::kWait>, 256, 3 * 4096>},
    {"staged_copies:overwrite", 1, run<staged_copies<StageBug::kOverwrite>, 256, 3 * 4096>},
    {"outside_shared:right", 1, run<outside_shared<false>, 256, 1024>},
    {"outside_shared:wrong", 1, run<outside_shared<true>, 256, 1024>},
    {"ring:right", 1, run_ring<RingBug::kNone>},
    {"ring:full_parity", 1, run_ring<RingBug::kFullParity>},
    {"ring:empty_parity", 1, run_ring<RingBug::kEmptyParity>},
    {"ring:bytes", 1, run_ring<RingBug::kBytes>},
    {"ring:release", 1, run_ring<RingBug::kRelease>},
    {"product:right", 0, run<product_of_ones<ProductBug::kNone>, 128, 16384>},
    {"product:unwaited", 0, run<product_of_ones<ProductBug::kUnwaited>, 128, 16384>},
    {"product:overwritten", 0, run<product_of_ones<ProductBug::kOverwritten>, 128, 16384>},
#endif
};

}  // namespace

void probe(const std::string& name, const std::vector<View>& inputs, const View& output) {
  for (const Entry& entry : kEntries) {
    if (name != entry.name) continue;
    if (static_cast<int>(inputs.size()) != entry.inputs)
      throw Error("probe " + name + ": takes " + std::to_string(entry.inputs) + " inputs");
    Probe p{};
    for (int i = 0; i < entry.inputs; ++i) p.in[i] = data<const uint32_t>(inputs[i]);
    p.out = data<uint32_t>(output);
    p.size = numel(output);
    return entry.run(p);
  }
  throw Error("no probe " + name);
}

}  // namespace grebe::cuda
