// Broadcasting, memory format and threads for the elementwise loops: they see one dimension.
//
// The dimensions are ordered by the output's strides and merged where every operand allows it, so
// that any dense permutation (channels-last among them) runs as one flat loop.
#pragma once
#include <algorithm>
#include <cstdint>

#include "../parallel.h"
#include "../view.h"

namespace grebe {

constexpr int kMaxOperands = 3;
constexpr int64_t kParallelGrain = 16384;  // elements: below this a second thread costs more

// Operand 0 is the output. Strides count bytes.
struct Iteration {
  int operands;
  int ndim;
  int64_t shape[kMaxDims];
  char* data[kMaxOperands];
  int64_t strides[kMaxOperands][kMaxDims];
};

// Drops dimensions of size 1, orders by the output's strides (largest first), merges neighbours.
static inline void coalesce(Iteration& it) {
  int order[kMaxDims], n = 0;
  for (int d = 0; d < it.ndim; ++d)
    if (it.shape[d] != 1) order[n++] = d;
  auto key = [&](int d) { return it.strides[0][d] < 0 ? -it.strides[0][d] : it.strides[0][d]; };
  std::stable_sort(order, order + n, [&](int a, int b) { return key(a) > key(b); });
  Iteration out = it;
  out.ndim = 0;
  for (int i = 0; i < n; ++i) {
    const int d = order[i], last = out.ndim - 1;
    bool merge = last >= 0;
    for (int k = 0; merge && k < it.operands; ++k)
      merge = out.strides[k][last] == it.strides[k][d] * it.shape[d];
    if (merge) out.shape[last] *= it.shape[d];
    const int target = merge ? last : out.ndim++;
    if (!merge) out.shape[target] = it.shape[d];
    for (int k = 0; k < it.operands; ++k) out.strides[k][target] = it.strides[k][d];
  }
  it = out;
}

// inner(n, data[], strides[]) over the whole iteration space, by several threads if it is large.
template <class Inner>
static inline void iterate(Iteration& it, const Inner& inner) {
  coalesce(it);
  int64_t total = 1;
  for (int d = 0; d < it.ndim; ++d) total *= it.shape[d];
  if (total == 0) return;
  if (it.ndim == 0) it.shape[0] = 1;
  const int last = it.ndim > 0 ? it.ndim - 1 : 0;
  const int64_t inner_size = it.ndim > 0 ? it.shape[last] : 1;
  int64_t inner_strides[kMaxOperands] = {};
  for (int k = 0; k < it.operands && it.ndim > 0; ++k) inner_strides[k] = it.strides[k][last];

  // A flat range [begin, end) of elements: partial first row, whole rows, partial last row.
  parallel_for(total, kParallelGrain, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end;) {
      int64_t row = at / inner_size, column = at % inner_size;
      const int64_t n = std::min(inner_size - column, end - at);
      char* p[kMaxOperands];
      for (int k = 0; k < it.operands; ++k) p[k] = it.data[k] + column * inner_strides[k];
      for (int d = last - 1; d >= 0; --d) {
        const int64_t i = row % it.shape[d];
        row /= it.shape[d];
        for (int k = 0; k < it.operands; ++k) p[k] += i * it.strides[k][d];
      }
      inner(n, p, inner_strides);
      at += n;
    }
  });
}

}  // namespace grebe
