// Losses between two arrays, element by element: value and gradient.
//
// Idea: a loss is a struct with two functions on vectors, its value and its slope in x. One loop
// sums the values, one writes slope * weight * factor * grad, so that forward reads both arrays once
// and stores nothing, and backward reads them once and writes the gradient.
//
// Layout: x, t and the results are dense in the same order. Weights repeat with a period (one per
// class, say), so that the broadcast array never exists.
//
// Determinism: blocks of 4096 elements are summed in T, in four vectors; their totals are added in
// double, in order.
//
// Floor: memory, 8 bytes per float32 element forward and 12 backward; binary cross entropy: an exp
// and a log1p forward, an exp backward. Measured shares: docs/kernels/loss.md.
#include "kernels.h"

namespace grebe::GREBE_ISA {
namespace {

constexpr int64_t kBlock = 4096;  // elements summed in T
constexpr int64_t kGrain = 4 * kBlock;

#define FORMULA inline
#include "../losses.h"

// ---- the loops ----

template <class T>
struct Operands {
  const T *x, *t, *weight, *positive;  // the last two may be nullptr
  int64_t period;  // of the weights

  Operands(const View& vx, const View& vt, const View& w, const View& q)
      : x(data<T>(vx)), t(data<T>(vt)), weight(data<T>(w)), positive(data<T>(q)) {
    period = weight ? numel(w) : positive ? numel(q) : numel(vx);
  }
};

template <class T>
inline vec<T> part(const T* p, int64_t n) {
  return load_upto(p, n);
}

// f(slot, i, valid, x, t, weight, q) for the vectors of [begin, end); four slots in turn.
template <bool kWeights, class T, class F>
inline void each_vector(const Operands<T>& a, int64_t begin, int64_t end, const F& f) {
  constexpr int64_t L = lanes<T>;
  const vec<T> one = splat(T(1));
  for (int64_t i = begin; i < end;) {
    const int64_t at = kWeights ? i % a.period : 0;
    const int64_t stop = kWeights && end - i > a.period - at ? i + a.period - at : end;
    const T* w = kWeights && a.weight ? a.weight + at - i : nullptr;
    const T* q = kWeights && a.positive ? a.positive + at - i : nullptr;
    auto step = [&](int slot, int64_t j, int64_t n) {
      f(slot, j, n, part(a.x + j, n), part(a.t + j, n), w ? part(w + j, n) : one,
        q ? part(q + j, n) : one);
    };
    for (; i + 4 * L <= stop; i += 4 * L)
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) step(k, i + k * L, L);
    for (; i + L <= stop; i += L) step(0, i, L);
    if (i < stop) step(1, i, stop - i);
    i = stop;
  }
}

template <class Loss, bool kWeights, class T>
double block_sum(const Operands<T>& a, int64_t begin, int64_t end, vec<T> p) {
  vec<T> sum[4] = {};
  each_vector<kWeights>(
      a, begin, end, [&](int slot, int64_t, int64_t n, vec<T> x, vec<T> t, vec<T> w, vec<T> q) {
        const vec<T> v = Loss::value(x, t, p, q) * w;
        sum[slot] = sum[slot] + (n == lanes<T> ? v : select(lane_mask<T>(n), v, vec<T>{}));
      });
  return static_cast<double>(hsum((sum[0] + sum[1]) + (sum[2] + sum[3])));
}

// y = f(x, t, weight, q, i, valid) for all n elements.
template <bool kWeights, class T, class F>
void write_all(const Operands<T>& a, int64_t n, T* y, const F& f) {
  parallel_for(n, kGrain, [&](int64_t begin, int64_t end) {
    each_vector<kWeights>(
        a, begin, end, [&](int, int64_t i, int64_t valid, vec<T> x, vec<T> t, vec<T> w, vec<T> q) {
          const vec<T> v = f(x, t, w, q, i, valid);
          valid == lanes<T> ? store(y + i, v) : store_n(y + i, v, valid);
        });
  });
}

struct Forward {
  In x, t;
  OptIn weight, positive;
  Out loss;
  double p, factor;
  bool each;

  template <class Loss, bool kWeights, class T>
  bool run() const {
    const Operands<T> a(x, t, weight, positive);
    const int64_t n = numel(x);
    const vec<T> parameter = splat(static_cast<T>(p));
    if (each) {
      write_all<kWeights>(a, n, data<T>(loss),
                          [=](vec<T> vx, vec<T> vt, vec<T> w, vec<T> q, int64_t, int64_t) {
                            return Loss::value(vx, vt, parameter, q) * w;
                          });
      return true;
    }
    double* partial =
        static_cast<double*>(scratch(sizeof(double) * static_cast<size_t>(n / kBlock + 1)));
    if (!partial) return false;
    parallel_for(n, kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i += kBlock)
        partial[i / kBlock] =
            block_sum<Loss, kWeights>(a, i, end - i < kBlock ? end : i + kBlock, parameter);
    });
    double sum = 0;
    for (int64_t i = 0; i * kBlock < n; ++i) sum += partial[i];
    *data<T>(loss) = static_cast<T>(sum * factor);
    return true;
  }
};

struct Backward {
  In x, t;
  OptIn weight, positive;
  In grad;
  Out gx;
  double p, factor;

  template <class Loss, bool kWeights, class T>
  bool run() const {
    const Operands<T> a(x, t, weight, positive);
    const vec<T> parameter = splat(static_cast<T>(p));
    const T* g = data<T>(grad);
    const vec<T> scale = splat(static_cast<T>(factor));
    if (numel(grad) == 1) {
      const vec<T> all = scale * g[0];
      write_all<kWeights>(a, numel(x), data<T>(gx),
                          [=](vec<T> vx, vec<T> vt, vec<T> w, vec<T> q, int64_t, int64_t) {
                            return Loss::slope(vx, vt, parameter, q) * w * all;
                          });
    } else {
      write_all<kWeights>(a, numel(x), data<T>(gx),
                          [=](vec<T> vx, vec<T> vt, vec<T> w, vec<T> q, int64_t i, int64_t n) {
                            return Loss::slope(vx, vt, parameter, q) * w * (part(g + i, n) * scale);
                          });
    }
    return true;
  }
};

template <class Loss, class Pass>
bool run_typed(const Pass& pass) {
  const bool weights = pass.weight.data || pass.positive.data;
  if (pass.x.dtype == DType::kFloat32)
    return weights ? pass.template run<Loss, true, float>()
                   : pass.template run<Loss, false, float>();
  return weights ? pass.template run<Loss, true, double>()
                 : pass.template run<Loss, false, double>();
}

// The numbers of ops/loss.py.
template <class Pass>
bool run_kind(int64_t kind, const Pass& pass) {
  switch (kind) {
    case 0: return run_typed<Squared>(pass);
    case 1: return run_typed<Absolute>(pass);
    case 2: return run_typed<Huber>(pass);
    case 3: return run_typed<SmoothL1>(pass);
    case 4: return run_typed<Logits>(pass);
    case 5: return run_typed<Probabilities>(pass);
    case 6: return run_typed<Divergence>(pass);
    default: return run_typed<LogDivergence>(pass);
  }
}

}  // namespace

bool pointwise_loss(In x, In t, OptIn weight, OptIn positive, Out loss, int64_t kind, double p,
                    double factor, bool each) {
  return run_kind(kind, Forward{x, t, weight, positive, loss, p, factor, each});
}

bool pointwise_loss_backward(In x, In t, OptIn weight, OptIn positive, In grad, Out gx,
                             int64_t kind, double p, double factor) {
  return run_kind(kind, Backward{x, t, weight, positive, grad, gx, p, factor});
}

}  // namespace grebe::GREBE_ISA
