// What the two files of normalisation share: 16-byte accesses with a fallback, and the calls from
// one to the other (layer_norm.cu has rows that fit into a block's registers, norm.cu all others).
#pragma once
#include "divider.cuh"

namespace grebe::cuda {

// Elements j .. j + kCount of n. `packs`: 16-byte accesses are possible. Beyond n they are 0.
template <int kCount, class T>
DEVICE void load_pack(const T* p, int64_t j, int64_t n, bool packs, T (&v)[kCount]) {
  if (packs && j < n) {
    const Pack<T, kCount> all = *reinterpret_cast<const Pack<T, kCount>*>(p + j);
#pragma unroll
    for (int t = 0; t < kCount; ++t) v[t] = all.v[t];
  } else {
#pragma unroll
    for (int t = 0; t < kCount; ++t) v[t] = j + t < n ? p[j + t] : T(0.0f);
  }
}
template <int kCount, class T>
DEVICE void store_pack(T* p, int64_t j, int64_t n, bool packs, const T (&v)[kCount]) {
  if (packs && j < n) {
    Pack<T, kCount> all;
#pragma unroll
    for (int t = 0; t < kCount; ++t) all.v[t] = v[t];
    *reinterpret_cast<Pack<T, kCount>*>(p + j) = all;
  } else {
#pragma unroll
    for (int t = 0; t < kCount; ++t)
      if (j + t < n) p[j + t] = v[t];
  }
}

// Parameters belong to packs of 16-bit numbers in twice the width: two accesses.
template <int kCount, class W>
DEVICE void load_wide(const W* p, int64_t j, int64_t n, bool packs, W (&v)[kCount]) {
  constexpr int kPart = kCount < kPack<W> ? kCount : kPack<W>;
#pragma unroll
  for (int first = 0; first < kCount; first += kPart) {
    W part[kPart];
    load_pack<kPart>(p, j + first, n, packs, part);
#pragma unroll
    for (int t = 0; t < kPart; ++t) v[first + t] = part[t];
  }
}

// How weight and bias lie: element j of row r belongs to channel r % groups * size + j / inner.
struct RowChannels {
  int64_t groups, size, inner;
};

// layer_norm.cu: does a row of n elements fit, and the rows themselves. No mean: RMS norm.
bool rows_fit(DType dtype, int64_t n);
void normalize_rows(const View& x, const View& weight, const View& bias, const View& y,
                    const View& mean, const View& invstd, int64_t rows, int64_t n,
                    const RowChannels& channels, double eps);

// norm.cu: the same for layer norm's rows of any length, and their gradient.
void normalize_long_rows(const View& x, const View& weight, const View& bias, const View& y,
                         const View& mean, const View& invstd, int64_t rows, int64_t n, double eps);
void long_rows_backward(const View& grad, const View& x, const View& weight, const View& mean,
                        const View& invstd, const View& gx, int64_t rows, int64_t n);

}  // namespace grebe::cuda
