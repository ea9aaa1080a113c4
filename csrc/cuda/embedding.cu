// Lookup of rows and sums of rows: embedding, its gradient, and bags of embeddings.
//
// gather_rows copies row index[k] of a table to row k of the output. sum_rows is its transpose and
// more: y[target[k]] += factor[k] x[source[k]] over all k. The terms are sorted by target, stably, by
// radix; then a block owns a row of the output, finds its terms by bisection and adds them in order:
// no atomics on floats, the same bits on every run. Rows without terms become zeros.
//
// Floor: memory. gather reads and writes D elements per index; the dense gradient of a table writes
// all its V x D elements and reads D per index. Not measured on a device yet.
#include "kernels.cuh"

namespace grebe::cuda {
namespace {

// ---- a stable radix sort of (key, place), four bits at a time ----

constexpr int kBits = 4, kDigits = 1 << kBits;

DEVICE int digit_of(int64_t key, int shift) {
  return static_cast<int>(key >> shift) & (kDigits - 1);
}

// Lanes of the warp whose digit is this lane's; `valid` lanes only.
DEVICE uint32_t lanes_alike(int digit, bool valid) {
  uint32_t alike = __ballot_sync(~0u, valid);
#pragma unroll
  for (int bit = 0; bit < kBits; ++bit) {
    const uint32_t set = __ballot_sync(~0u, digit >> bit & 1);
    alike &= digit >> bit & 1 ? set : ~set;
  }
  return alike;
}

DEVICE int bits_set(uint32_t x) {
#ifdef __CUDA_ARCH__
  return __popc(x);
#else
  return __builtin_popcount(x);
#endif
}

// counts[warp][digit] of a block's tile of kThreads keys.
DEVICE void count_digits(int* counts, int digit, bool valid, uint32_t alike) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (int i = threadIdx.x; i < kThreads / 32 * kDigits; i += kThreads) counts[i] = 0;
  __syncthreads();
  const bool first = (alike & ((1u << lane) - 1)) == 0;
  if (valid && first) counts[warp * kDigits + digit] = bits_set(alike);
  __syncthreads();
}

// histogram[digit][block]: how many keys of the block's tile have the digit.
__global__ void __launch_bounds__(kThreads)
    radix_count(int64_t n, int shift, const int64_t* keys, int64_t* histogram) {
  Shared shared;
  int* counts = shared.take<int>(kThreads / 32 * kDigits);
  const int64_t i = thread_number();
  const bool valid = i < n;
  const int digit = valid ? digit_of(keys[i], shift) : 0;
  count_digits(counts, digit, valid, lanes_alike(digit, valid));
  if (threadIdx.x >= kDigits) return;
  int64_t total = 0;
  for (int w = 0; w < kThreads / 32; ++w) total += counts[w * kDigits + threadIdx.x];
  histogram[threadIdx.x * gridDim.x + blockIdx.x] = total;
}

// One block: every element of `values` becomes the sum of those before it.
__global__ void __launch_bounds__(kThreads) exclusive_scan(int64_t n, int64_t* values) {
  Shared shared;
  int64_t* sums = shared.take<int64_t>(kThreads);
  const int64_t each = (n + kThreads - 1) / kThreads;
  const int64_t begin = threadIdx.x * each, end = begin + each < n ? begin + each : n;
  int64_t sum = 0;
  for (int64_t i = begin; i < end; ++i) sum += values[i];
  sums[threadIdx.x] = sum;
  __syncthreads();
  int64_t before = 0;
  for (int t = 0; t < static_cast<int>(threadIdx.x); ++t) before += sums[t];
  for (int64_t i = begin; i < end; ++i) {
    const int64_t value = values[i];
    values[i] = before;
    before += value;
  }
}

// Moves keys and places to where the scanned histogram says; places null: 0, 1, 2, ...
__global__ void __launch_bounds__(kThreads)
    radix_scatter(int64_t n, int shift, const int64_t* keys, const int64_t* places,
                  const int64_t* histogram, int64_t* keys_out, int64_t* places_out) {
  Shared shared;
  int* counts = shared.take<int>(kThreads / 32 * kDigits);
  const int64_t i = thread_number();
  const bool valid = i < n;
  const int64_t key = valid ? keys[i] : 0;
  const int digit = valid ? digit_of(key, shift) : 0;
  const uint32_t alike = lanes_alike(digit, valid);
  count_digits(counts, digit, valid, alike);
  if (!valid) return;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int64_t to = histogram[digit * gridDim.x + blockIdx.x] + bits_set(alike & ((1u << lane) - 1));
  for (int w = 0; w < warp; ++w) to += counts[w * kDigits + digit];
  keys_out[to] = key;
  places_out[to] = places ? places[i] : i;
}

// Targets outside [0, rows) go behind all others.
__global__ void __launch_bounds__(kThreads)
    make_keys(int64_t n, int64_t rows, const int64_t* target, int64_t* keys) {
  const int64_t i = thread_number();
  if (i < n) keys[i] = target[i] >= 0 && target[i] < rows ? target[i] : rows;
}

struct Sorted {
  const int64_t *keys, *places;
};

int64_t* new_numbers(int64_t n) {
  return static_cast<int64_t*>(workspace(n * static_cast<int64_t>(sizeof(int64_t))));
}

Sorted sort_by_target(const int64_t* target, int64_t n, int64_t rows) {
  const unsigned blocks = blocks_for(n, kThreads);
  int64_t* keys[2] = {new_numbers(n), new_numbers(n)};
  int64_t* places[2] = {new_numbers(n), new_numbers(n)};
  int64_t* histogram = new_numbers(static_cast<int64_t>(kDigits) * blocks);
  launch("embedding", make_keys, blocks, kThreads, 0, n, rows, target, keys[0]);
  int now = 0;
  constexpr size_t kCounts = kThreads / 32 * kDigits * sizeof(int);
  for (int shift = 0; rows >> shift != 0; shift += kBits) {
    const int64_t *from = keys[now], *order = shift ? places[now] : nullptr;
    launch("embedding", radix_count, blocks, kThreads, kCounts, n, shift, from, histogram);
    launch("embedding", exclusive_scan, 1, kThreads, kThreads * sizeof(int64_t),
           static_cast<int64_t>(kDigits) * blocks, histogram);
    launch("embedding", radix_scatter, blocks, kThreads, kCounts, n, shift, from, order,
           static_cast<const int64_t*>(histogram), keys[1 - now], places[1 - now]);
    now = 1 - now;
  }
  return {keys[now], places[now]};
}

// ---- sums of rows ----

// The first of n sorted keys that is not below `key`.
DEVICE int64_t lower_bound(const int64_t* keys, int64_t n, int64_t key) {
  int64_t low = 0, high = n;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (keys[middle] < key)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

// A row of y per block along x, a stretch of columns along y.
template <class T>
__global__ void __launch_bounds__(kThreads) add_rows(int64_t n, int64_t d, Sorted terms, const T* x,
                                                     const int64_t* source, const T* factor, T* y) {
  const int64_t row = blockIdx.x,
                column = static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x;
  const int64_t begin = lower_bound(terms.keys, n, row), end = lower_bound(terms.keys, n, row + 1);
  if (column >= d) return;
  Wide<T> sum = 0;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t k = terms.places[i];
    const Wide<T> value = widen(x[(source ? source[k] : k) * d + column]);
    sum = factor ? fma(value, widen(factor[k]), sum) : sum + value;
  }
  y[row * d + column] = narrow<T>(sum);
}

// ---- rows as they are ----

// Words of the largest size that divides a row. Rows that are not there (only a CUDA graph can ask for
// them: otherwise Python has looked) are NaN.
template <class Word>
__global__ void __launch_bounds__(kThreads)
    copy_rows(int64_t n, int64_t words, int64_t rows, const Word* table, const int64_t* index,
              Word* y) {
  const int64_t size = n * words;
  for (int64_t at = thread_number(); at < size; at += thread_count()) {
    const int64_t row = index[at / words];
    if (row >= 0 && row < rows)
      y[at] = table[row * words + at % words];
    else
      memset(y + at, 0xff, sizeof(Word));
  }
}

template <class Word>
void gather(const View& x, const View& index, const View& y, int64_t bytes) {
  const int64_t n = numel(index), words = bytes / static_cast<int64_t>(sizeof(Word));
  const int64_t threads = n * words < int64_t{1} << 24 ? n * words : int64_t{1} << 24;
  launch("embedding", copy_rows<Word>, blocks_for(threads, kThreads), kThreads, 0, n, words,
         x.shape[0], static_cast<const Word*>(data<Word>(x)),
         static_cast<const int64_t*>(data<int64_t>(index)), data<Word>(y));
}

int64_t item_bytes(DType t) {
  constexpr int8_t kBytes[] = {4, 8, 2, 2, 8, 4, 1, 1};  // in the order of DType
  return kBytes[static_cast<int>(t)];
}

// A thread per bag and column.
template <class T>
__global__ void __launch_bounds__(kThreads)
    bag_best(int64_t bags, int64_t d, const T* x, const int64_t* index, const int64_t* offsets,
             int64_t padding, int64_t* arg) {
  for (int64_t at = thread_number(); at < bags * d; at += thread_count()) {
    const int64_t b = at / d, c = at % d;
    int64_t best = -1;
    for (int64_t k = offsets[b]; k < offsets[b + 1]; ++k) {
      if (index[k] == padding) continue;
      const T v = x[index[k] * d + c];
      if (best < 0 || v > x[best * d + c] || v != v) best = index[k];
    }
    arg[at] = best;
  }
}

}  // namespace

void gather_rows(In x, In index, Out y) {
  const int64_t n = numel(index), rows = x.shape[0];
  if (n == 0 || rows == 0) return;
  const int64_t bytes = numel(x) / rows * item_bytes(x.dtype);
  const uintptr_t ends = reinterpret_cast<uintptr_t>(x.data) | reinterpret_cast<uintptr_t>(y.data) |
                         static_cast<uintptr_t>(bytes);
  if (bytes == 0) return;
  if (ends % 16 == 0) return gather<uint4>(x, index, y, bytes);
  if (ends % 4 == 0) return gather<uint32_t>(x, index, y, bytes);
  gather<uint8_t>(x, index, y, bytes);
}

bool sum_rows(In x, OptIn source, In target, OptIn factor, Out y) {
  const int64_t n = numel(target), rows = y.shape[0], d = y.shape[1];
  if (rows == 0 || d == 0) return true;
  Sorted terms{nullptr, nullptr};
  if (n > 0) terms = sort_by_target(data<int64_t>(target), n, rows);
  const dim3 grid(static_cast<unsigned>(rows), blocks_for(d, kThreads));
  with_float("embedding", x.dtype, [&](auto zero) {
    using T = decltype(zero);
    launch("embedding", add_rows<T>, grid, kThreads, 0, n, d, terms,
           static_cast<const T*>(data<T>(x)), static_cast<const int64_t*>(data<int64_t>(source)),
           static_cast<const T*>(data<T>(factor)), data<T>(y));
  });
  return true;
}

void bag_argmax(In x, In index, In offsets, Out arg, int64_t padding) {
  const int64_t bags = arg.shape[0], d = x.shape[1];
  with_float("embedding_bag", x.dtype, [&](auto zero) {
    using T = decltype(zero);
    launch("embedding_bag", bag_best<T>, blocks_for(bags * d, kThreads), kThreads, 0, bags, d,
           static_cast<const T*>(data<T>(x)), static_cast<const int64_t*>(data<int64_t>(index)),
           static_cast<const int64_t*>(data<int64_t>(offsets)), padding, data<int64_t>(arg));
  });
}

}  // namespace grebe::cuda
