// What every kernel file includes: launching, numbers and mathematics, sums over warps and blocks.
//
// A file compiles with nvcc for the device and with the host's compiler for the emulator. Rules that
// make this possible: PTX only in ptx.cuh; `launch` instead of <<<>>>; shared memory only through
// `Shared`; no extended lambdas, no cooperative_groups, no cub. Kernels are templates or stand in an
// anonymous namespace; the functions of ops.def check nothing (Python has), may throw Error.
#pragma once
#include <stdexcept>
#include <string>
#include <type_traits>

#include "../random.h"
#include "../view.h"
#include "ptx.cuh"

namespace grebe::cuda {

// What Python sees as RuntimeError.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// ---- given by module.cpp ----

void* current_stream();
// Memory on the device until the end of the running operation.
void* workspace(int64_t bytes);
size_t workspaces();
void release_workspaces(size_t kept);
// At its end lets the workspaces go that were made since: what comes next on the stream may use them.
struct Scope {
  const size_t kept = workspaces();
  Scope() = default;
  Scope(const Scope&) = delete;
  ~Scope() { release_workspaces(kept); }
};
// 10 times the current device's: 80 for sm_80.
int compute_capability();
// May float32 operands of products be read as TF32 (10 bits of mantissa)?
bool tf32_allowed();
// How many blocks run at once that fill a multiprocessor each.
int multiprocessors();
[[noreturn]] void unsupported(const char* name, DType dtype);

// ---- launching ----

// Threads per block of kernels that don't care.
constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = int64_t{1} << 30;

inline int64_t divide_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit; }
inline unsigned blocks_for(int64_t n, int64_t per_block) {
  const int64_t blocks = divide_up(n, per_block);
  return static_cast<unsigned>(blocks < kMostBlocks ? blocks : kMostBlocks);
}

#ifdef __CUDACC__
inline void check(const char* name, cudaError_t error) {
  if (error != cudaSuccess) throw Error(std::string(name) + ": " + cudaGetErrorString(error));
}

template <class... P, class... A>
void launch_with(const char* name, cudaLaunchAttribute attribute, void (*kernel)(P...), dim3 grid,
                 dim3 block, size_t shared_bytes, A... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  if (shared_bytes > 48 << 10)
    check(name, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                     static_cast<int>(shared_bytes)));
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(current_stream());
  config.attrs = &attribute;
  config.numAttrs = attribute.id != cudaLaunchAttributeIgnore;
  check(name, cudaLaunchKernelEx(&config, kernel, P(arguments)...));
}
#endif

// Runs kernel(arguments...) on the current stream; an empty grid is no work. `cluster` blocks that
// are neighbours along x form a cluster.
template <class... P, class... A>
void launch_clusters(const char* name, unsigned cluster, void (*kernel)(P...), dim3 grid,
                     dim3 block, size_t shared_bytes, A... arguments) {
#ifdef __CUDACC__
  cudaLaunchAttribute attribute{};
  attribute.id = cluster > 1 ? cudaLaunchAttributeClusterDimension : cudaLaunchAttributeIgnore;
  attribute.val.clusterDim = {cluster, 1, 1};
  launch_with(name, attribute, kernel, grid, block, shared_bytes, arguments...);
#else
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  emulator::launch(name, kernel, grid, block, shared_bytes, cluster, arguments...);
#endif
}

// Runs all blocks of the grid, which has one dimension, at the same time: see grid_barrier.
template <class... P, class... A>
void launch_together(const char* name, void (*kernel)(P...), unsigned grid, dim3 block,
                     size_t shared_bytes, A... arguments) {
#ifdef __CUDACC__
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = 1;
  launch_with(name, attribute, kernel, grid, block, shared_bytes, arguments...);
#else
  launch_clusters(name, grid, kernel, grid, block, shared_bytes, arguments...);
#endif
}

template <class... P, class... A>
void launch(const char* name, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes,
            A... arguments) {
  launch_clusters(name, 1, kernel, grid, block, shared_bytes, arguments...);
}

// Arrays one after the other in the block's shared memory; the launch says how many bytes in all.
struct Shared {
  char* next = nullptr;
  DEVICE Shared() : next(shared_memory()) {}
  template <class T>
  DEVICE T* take(int64_t n) {
    T* array = reinterpret_cast<T*>(next);
    next += (n * static_cast<int64_t>(sizeof(T)) + 15) / 16 * 16;
    return array;
  }
};

// The number of this thread in the grid's x dimension, and how many there are.
DEVICE int64_t thread_number() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}
DEVICE int64_t thread_count() { return static_cast<int64_t>(gridDim.x) * blockDim.x; }

// All threads of a grid started by launch_together wait for each other; what they wrote before, all
// of them see. `arrivals` is 0 before the launch.
DEVICE void grid_barrier(uint32_t* arrivals) {
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    const uint32_t goal = (atomicAdd(arrivals, 1u) / gridDim.x + 1) * gridDim.x;
    while (load_acquire(arrivals) < goal) {
    }
  }
  __syncthreads();
}

// ---- numbers ----

// What T is computed in.
template <class T>
struct WideOf {
  using type = float;
};
template <>
struct WideOf<double> {
  using type = double;
};
template <class T>
using Wide = typename WideOf<T>::type;

template <class T>
DEVICE Wide<T> widen(T x) {
  return static_cast<Wide<T>>(x);
}
template <class T>
DEVICE T narrow(Wide<T> x) {
  return static_cast<T>(x);
}

// kCount elements that move together.
template <class T, int kCount>
struct alignas(sizeof(T) * kCount) Pack {
  T v[kCount];
};
template <class T>
constexpr int kPack = 16 / static_cast<int>(sizeof(T));
template <class T>
inline bool is_aligned(const T* p) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0;
}

// Calls f(T{}) for the type behind a floating dtype.
template <class F>
void with_float(const char* name, DType dtype, const F& f) {
  switch (dtype) {
    case DType::kFloat32: return f(float{});
    case DType::kFloat64: return f(double{});
    case DType::kBFloat16: return f(bf16{});
    case DType::kFloat16: return f(half{});
    default: unsupported(name, dtype);
  }
}

// ---- mathematics of single elements, under the names of the CPU's vectors ----

template <class V>
using scalar = V;
template <class V>
DEVICE V splat(V x) {
  return x;
}
template <class V>
DEVICE V select(bool condition, V a, V b) {
  return condition ? a : b;
}
template <class V>
DEVICE V min(V a, V b) {
  return a < b ? a : b;
}
template <class V>
DEVICE V max(V a, V b) {
  return a > b ? a : b;
}
template <class V>
DEVICE V min_nan(V a, V b) {
  return a != a || a < b ? a : b;
}
template <class V>
DEVICE V max_nan(V a, V b) {
  return a != a || a > b ? a : b;
}
DEVICE float abs(float x) { return ::fabsf(x); }
DEVICE double abs(double x) { return ::fabs(x); }
DEVICE float exp(float x) { return ::expf(x); }
DEVICE double exp(double x) { return ::exp(x); }
DEVICE float expm1(float x) { return ::expm1f(x); }
DEVICE double expm1(double x) { return ::expm1(x); }
DEVICE float log(float x) { return ::logf(x); }
DEVICE double log(double x) { return ::log(x); }
DEVICE float log1p(float x) { return ::log1pf(x); }
DEVICE double log1p(double x) { return ::log1p(x); }
DEVICE float log2(float x) { return ::log2f(x); }
DEVICE double log2(double x) { return ::log2(x); }
DEVICE float sqrt(float x) { return ::sqrtf(x); }
DEVICE double sqrt(double x) { return ::sqrt(x); }
DEVICE float sin(float x) { return ::sinf(x); }
DEVICE double sin(double x) { return ::sin(x); }
DEVICE float cos(float x) { return ::cosf(x); }
DEVICE double cos(double x) { return ::cos(x); }
DEVICE float tanh(float x) { return ::tanhf(x); }
DEVICE double tanh(double x) { return ::tanh(x); }
DEVICE float erf(float x) { return ::erff(x); }
DEVICE double erf(double x) { return ::erf(x); }
DEVICE float fma(float a, float b, float c) { return ::fmaf(a, b, c); }
DEVICE double fma(double a, double b, double c) { return ::fma(a, b, c); }
template <class V>
DEVICE V fnma(V a, V b, V c) {
  return fma(-a, b, c);
}
template <class V>
DEVICE V sigmoid(V x) {
  const V e = exp(-abs(x)), large = 1 / (1 + e);
  return x < 0 ? e * large : large;
}
// log(1 + x) for 0 <= x <= 1.
template <class V>
DEVICE V log1p_unit(V x) {
  return log1p(x);
}
template <class T>
DEVICE T infinity() {
  return static_cast<T>(INFINITY);
}

// ---- sums and maxima over threads ----

struct Plus {
  template <class T>
  DEVICE T operator()(T a, T b) const {
    return a + b;
  }
};
struct Larger {  // NaN wins
  template <class T>
  DEVICE T operator()(T a, T b) const {
    return max_nan(a, b);
  }
};
struct Smaller {
  template <class T>
  DEVICE T operator()(T a, T b) const {
    return min_nan(a, b);
  }
};

// The combination over kLanes neighbouring lanes, in all of them.
template <int kLanes = 32, class Combine, class T>
DEVICE T warp_combine(T x, Combine combine) {
#pragma unroll
  for (int d = kLanes / 2; d > 0; d /= 2) x = combine(x, __shfl_xor_sync(~0u, x, d));
  return x;
}
// The combination over all threads of a block of whole warps, in all of them. `space`: one element
// per warp, free for the next use after a __syncthreads.
template <class Combine, class T>
DEVICE T block_combine(T x, T* space, Combine combine) {
  const int warps = blockDim.x / 32, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  x = warp_combine(x, combine);
  if (warps == 1) return x;
  __syncthreads();
  if (lane == 0) space[warp] = x;
  __syncthreads();
  T all = space[0];
  for (int w = 1; w < warps; ++w) all = combine(all, space[w]);
  return all;
}

}  // namespace grebe::cuda
