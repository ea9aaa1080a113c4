// The space that an elementwise operation runs over, and how its operands lie in it.
#pragma once
#include "view.h"

namespace grebe {

constexpr int kMaxOperands = 3;

// Operand 0 is the output. Strides count bytes.
struct Iteration {
  int operands;
  int ndim;
  int64_t shape[kMaxDims];
  char* data[kMaxOperands];
  int64_t strides[kMaxOperands][kMaxDims];
};

// Drops dimensions of size 1, orders by the output's strides (largest first), merges neighbours
// where every operand allows it, so that any dense permutation (channels-last among them) becomes
// one dimension.
static inline void coalesce(Iteration& it) {
  int order[kMaxDims], n = 0;
  auto key = [&](int d) { return it.strides[0][d] < 0 ? -it.strides[0][d] : it.strides[0][d]; };
  for (int d = 0; d < it.ndim; ++d) {
    if (it.shape[d] == 1) continue;
    int at = n++;  // stable insertion sort
    for (; at > 0 && key(order[at - 1]) < key(d); --at) order[at] = order[at - 1];
    order[at] = d;
  }
  Iteration out;
  out.operands = it.operands;
  out.ndim = 0;
  for (int k = 0; k < it.operands; ++k) out.data[k] = it.data[k];
  for (int i = 0; i < n; ++i) {
    const int d = order[i], last = out.ndim - 1;
    bool merge = last >= 0;
    for (int k = 0; merge && k < it.operands; ++k)
      merge = out.strides[k][last] == it.strides[k][d] * it.shape[d];
    const int target = merge ? last : out.ndim++;
    out.shape[target] = merge ? out.shape[target] * it.shape[d] : it.shape[d];
    for (int k = 0; k < it.operands; ++k) out.strides[k][target] = it.strides[k][d];
  }
  it = out;
}

}  // namespace grebe
