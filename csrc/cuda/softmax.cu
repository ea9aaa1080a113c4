// softmax, log_softmax, logsumexp, cross entropy and negative log likelihood, forward and backward.
//
// An array is [outer, n, inner], contiguous; the reduction runs over n. A group of kLanes threads owns
// one of the outer * inner positions: a warp where inner is 1 and rows are short, a block where they
// are long, a single thread where inner > 1 (neighbouring threads then read neighbouring elements).
//
// Everything starts from (reference, sum): the largest element and the sum of exp(x - reference). A
// row is read again for what follows, from the caches. Cross entropy keeps only these two numbers
// per position; backward makes exp(x - reference) again, subtracts the target and scales, in one pass.
// A row of -inf only has reference 0 and sum 0: softmax NaN, logsumexp -inf, as in PyTorch.
//
// Floor: memory, softmax 8 bytes per float32 element, cross entropy 4 forward, 8 backward. Not
// measured on a device yet.
#include "kernels.cuh"

namespace grebe::cuda {
namespace {

constexpr int64_t kWarpUpTo = 1024;  // elements of a row

struct Layout {
  int64_t outer, n, inner;
  GREBE_EVERYWHERE int64_t positions() const { return outer * inner; }
};

// f(T{}) for float32 and float64, which is all that Python sends here.
template <class F>
void with_real(const char* name, DType dtype, const F& f) {
  if (dtype == DType::kFloat32) return f(float{});
  if (dtype == DType::kFloat64) return f(double{});
  unsupported(name, dtype);
}

// One position and the threads that share it.
template <int kLanes>
struct Group {
  int64_t position, base;  // of its first element
  int64_t stride;
  int lane;
  bool valid;

  DEVICE explicit Group(const Layout& a) {
    const int64_t unit = thread_number() / kLanes;
    lane = static_cast<int>(threadIdx.x % kLanes);
    valid = unit < a.positions();
    position = valid ? unit : 0;
    stride = a.inner;
    base = position / a.inner * a.n * a.inner + position % a.inner;
  }
  // f(class, offset) for this thread's elements.
  template <class F>
  DEVICE void each(const Layout& a, F f) const {
    if (!valid) return;
    for (int64_t c = lane; c < a.n; c += kLanes) f(c, base + c * stride);
  }
  template <class T, class Combine>
  DEVICE T combine(T x, Combine op) const {
    if constexpr (kLanes == 1) {
      return x;
    } else if constexpr (kLanes == 32) {
      return warp_combine(x, op);
    } else {
      Shared shared;
      const T all = block_combine(x, shared.take<T>(kLanes / 32), op);
      __syncthreads();
      return all;
    }
  }
};

// Long chains of additions, one thread's alone, are kept in float64.
template <int kLanes, class T>
struct SumOf {
  using type = T;
};
template <class T>
struct SumOf<1, T> {
  using type = double;
};

template <class T>
struct Exponentials {
  T reference, sum;
};

template <int kLanes, class T>
DEVICE Exponentials<T> exponentials(const Group<kLanes>& g, const Layout& a, const T* x) {
  T top = -infinity<T>();
  g.each(a, [&](int64_t, int64_t at) { top = max_nan(top, x[at]); });
  top = g.combine(top, Larger{});
  const T reference = top == -infinity<T>() ? T(0) : top;
  typename SumOf<kLanes, T>::type sum = 0;
  g.each(a, [&](int64_t, int64_t at) { sum += exp(x[at] - reference); });
  return {reference, static_cast<T>(g.combine(sum, Plus{}))};
}

template <int kLanes, class T>
__global__ void __launch_bounds__(kThreads)
    softmax_kernel(Layout a, const T* x, T* y, bool logarithm) {
  const Group<kLanes> g(a);
  const Exponentials<T> e = exponentials(g, a, x);
  const T factor = 1 / e.sum, shift = log(e.sum);
  g.each(a, [&](int64_t, int64_t at) {
    const T v = x[at] - e.reference;
    y[at] = logarithm ? v - shift : exp(v) * factor;
  });
}

template <int kLanes, class T>
__global__ void __launch_bounds__(kThreads) logsumexp_kernel(Layout a, const T* x, T* y) {
  const Group<kLanes> g(a);
  const Exponentials<T> e = exponentials(g, a, x);
  if (g.valid && g.lane == 0)
    y[g.position] = e.reference == infinity<T>() ? e.reference : e.reference + log(e.sum);
}

template <int kLanes, class T>
__global__ void __launch_bounds__(kThreads)
    softmax_backward_kernel(Layout a, const T* grad, const T* y, T* gx, bool logarithm) {
  const Group<kLanes> g(a);
  typename SumOf<kLanes, T>::type part = 0;
  g.each(a, [&](int64_t, int64_t at) { part += logarithm ? grad[at] : grad[at] * y[at]; });
  const T sum = static_cast<T>(g.combine(part, Plus{}));
  g.each(a, [&](int64_t, int64_t at) {
    gx[at] = logarithm ? grad[at] - exp(y[at]) * sum : (grad[at] - sum) * y[at];
  });
}

template <int kLanes, class T>
__global__ void __launch_bounds__(kThreads)
    logsumexp_backward_kernel(Layout a, const T* grad, const T* x, const T* lse, T* gx) {
  const Group<kLanes> g(a);
  const T scale = grad[g.position], shift = lse[g.position];
  g.each(a, [&](int64_t, int64_t at) { gx[at] = exp(x[at] - shift) * scale; });
}

// ---- losses over class labels ----

enum Reduction : int64_t { kNone, kMean, kSum };

// Target of one position: (1 - smoothing) weight[label] on the label, and for every class
// smoothing / n times its weight. An ignored position has no target.
template <class T>
struct Targets {
  const int64_t* labels;
  const T* weight;  // per class, or nullptr for ones
  const double* weight_total;  // of all classes, where there are weights
  int64_t n, ignore_index;
  T on_label, on_all;

  DEVICE bool ignored(int64_t i) const { return labels[i] == ignore_index; }
  DEVICE bool bad(int64_t i) const {
    return !ignored(i) && static_cast<uint64_t>(labels[i]) >= static_cast<uint64_t>(n);
  }
  DEVICE T class_weight(int64_t c) const { return weight ? weight[c] : T(1); }
  DEVICE T total_weight() const {
    return weight ? static_cast<T>(*weight_total) : static_cast<T>(n);
  }
  DEVICE T total(int64_t i) const {
    return on_label * class_weight(labels[i]) + on_all * total_weight();
  }
};

// The loss of every position; NaN for a label that is none, which Python reports.
template <int kLanes, class T>
__global__ void __launch_bounds__(kThreads)
    cross_entropy_kernel(Layout a, Targets<T> t, const T* x, T* stats, T* loss) {
  const Group<kLanes> g(a);
  const Exponentials<T> e = exponentials(g, a, x);
  T gap = 0;
  if (t.on_all != 0) {
    typename SumOf<kLanes, T>::type part = 0;
    g.each(a, [&](int64_t c, int64_t at) { part += (e.reference - x[at]) * t.class_weight(c); });
    gap = static_cast<T>(g.combine(part, Plus{}));
  }
  if (!g.valid || g.lane != 0) return;
  const int64_t i = g.position;
  stats[i] = e.reference;
  stats[a.positions() + i] = e.sum;
  if (t.ignored(i) || t.bad(i)) {
    loss[i] = t.ignored(i) ? T(0) : static_cast<T>(NAN);
    return;
  }
  const T log_sum = log(e.sum);
  loss[i] = t.on_label * t.class_weight(t.labels[i]) *
            (log_sum - (x[g.base + t.labels[i] * g.stride] - e.reference));
  if (t.on_all != 0) loss[i] += t.on_all * (t.total_weight() * log_sum + gap);
}

// Gradient of one loss per position: a scalar for all, or one each; times `factor`.
template <class T>
struct LossGrad {
  const T* grad;
  int64_t stride;
  T factor;
  LossGrad(const View& g, double f)
      : grad(data<T>(g)), stride(numel(g) == 1 ? 0 : 1), factor(static_cast<T>(f)) {}
  DEVICE T operator()(int64_t i) const { return grad[i * stride] * factor; }
};

template <int kLanes, class T>
__global__ void __launch_bounds__(kThreads)
    cross_entropy_backward_kernel(Layout a, Targets<T> t, const T* x, const T* stats,
                                  LossGrad<T> grad, T* gx) {
  const Group<kLanes> g(a);
  const int64_t i = g.position;
  if (!g.valid) return;
  if (t.ignored(i) || t.bad(i)) return g.each(a, [&](int64_t, int64_t at) { gx[at] = 0; });
  const T scale = grad(i), reference = stats[i];
  const T slope = t.total(i) * scale / stats[a.positions() + i];
  const int64_t label = t.labels[i];
  g.each(a, [&](int64_t c, int64_t at) {
    T v = exp(x[at] - reference) * slope;
    if (t.on_all != 0) v -= t.on_all * scale * t.class_weight(c);
    if (c == label) v -= t.on_label * t.class_weight(c) * scale;
    gx[at] = v;
  });
}

DEVICE int64_t label_offset(const Layout& a, int64_t i, int64_t label) {
  return (i / a.inner * a.n + label) * a.inner + i % a.inner;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    nll_kernel(Layout a, Targets<T> t, const T* x, T* loss) {
  for (int64_t i = thread_number(); i < a.positions(); i += thread_count()) {
    T value = 0;
    if (t.bad(i))
      value = static_cast<T>(NAN);
    else if (!t.ignored(i))
      value = -t.class_weight(t.labels[i]) * x[label_offset(a, i, t.labels[i])];
    loss[i] = value;
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    nll_backward_kernel(Layout a, Targets<T> t, LossGrad<T> grad, T* gx) {
  const int64_t size = a.positions() * a.n;
  for (int64_t at = thread_number(); at < size; at += thread_count()) {
    const int64_t i = at / (a.n * a.inner) * a.inner + at % a.inner, c = at / a.inner % a.n;
    const bool hit = !t.ignored(i) && t.labels[i] == c;
    gx[at] = hit ? -t.class_weight(c) * grad(i) : T(0);
  }
}

// One block: info = {weight of the labels that count, position of the first bad label or -1}, and,
// where `loss` is given, the sum of the losses over that weight.
template <class T>
__global__ void __launch_bounds__(kThreads)
    reduce_losses(int64_t count, Targets<T> t, bool mean, const T* each, T* loss, double* info) {
  Shared shared;
  double* space = shared.take<double>(kThreads / 32);
  double sum = 0, used = 0, first_bad = INFINITY;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) {
    if (t.bad(i) && first_bad > static_cast<double>(i)) first_bad = static_cast<double>(i);
    if (!t.ignored(i) && !t.bad(i)) used += static_cast<double>(t.class_weight(t.labels[i]));
    if (loss) sum += static_cast<double>(each[i]);
  }
  sum = block_combine(sum, space, Plus{});
  used = block_combine(used, space, Plus{});
  first_bad = block_combine(first_bad, space, Smaller{});
  if (threadIdx.x != 0) return;
  const double weight = mean ? used : 1;
  info[0] = weight;
  info[1] = first_bad == INFINITY ? -1 : first_bad;
  if (loss) *loss = static_cast<T>(sum / weight);
}

template <class T>
__global__ void __launch_bounds__(kThreads) add_weights(const T* weight, int64_t n, double* total) {
  Shared shared;
  double* space = shared.take<double>(kThreads / 32);
  double sum = 0;
  for (int64_t c = threadIdx.x; c < n; c += kThreads) sum += static_cast<double>(weight[c]);
  sum = block_combine(sum, space, Plus{});
  if (threadIdx.x == 0) *total = sum;
}

// ---- launches ----

constexpr size_t kSpace = kThreads / 32 * sizeof(double);

template <class T>
Targets<T> make_targets(const View& labels, const View& weight, const Layout& a, int64_t ignored,
                        double smoothing) {
  Targets<T> t{data<int64_t>(labels),
               data<T>(weight),
               nullptr,
               a.n,
               ignored,
               static_cast<T>(1 - smoothing),
               static_cast<T>(a.n ? smoothing / static_cast<double>(a.n) : 0)};
  if (weight.data) {
    double* total = static_cast<double*>(workspace(sizeof(double)));
    launch("cross_entropy", add_weights<T>, 1, kThreads, kSpace, t.weight, a.n, total);
    t.weight_total = total;
  }
  return t;
}

// Calls f with the number of threads for a position as a constant.
template <class F>
void with_lanes(const Layout& a, const F& f) {
  if (a.positions() == 0) return;
  if (a.inner > 1) return f(std::integral_constant<int, 1>{});
  if (a.n <= kWarpUpTo) return f(std::integral_constant<int, 32>{});
  f(std::integral_constant<int, kThreads>{});
}
template <int kLanes>
unsigned blocks_of(const Layout& a) {
  return blocks_for(a.positions(), kThreads / kLanes);
}

// The losses of all positions by `run(array)`, then what `reduction` asks for.
template <class T, class F>
void reduce_loss(const char* name, const Targets<T>& t, const Layout& a, int64_t reduction,
                 const View& loss, const View& info, const F& run) {
  const int64_t count = a.positions();
  T* each = data<T>(loss);
  if (reduction != kNone)
    each = static_cast<T*>(workspace(count * static_cast<int64_t>(sizeof(T))));
  run(each);
  launch(name, reduce_losses<T>, 1, kThreads, kSpace, count, t, reduction == kMean,
         static_cast<const T*>(each), reduction == kNone ? nullptr : data<T>(loss),
         data<double>(info));
}

}  // namespace

void softmax(In x, Out y, int64_t outer, int64_t n, int64_t inner, bool logarithm) {
  const Layout a{outer, n, inner};
  with_real("softmax", x.dtype, [&](auto zero) {
    using T = decltype(zero);
    with_lanes(a, [&](auto lanes) {
      launch("softmax", softmax_kernel<lanes(), T>, blocks_of<lanes()>(a), kThreads, kSpace, a,
             static_cast<const T*>(data<T>(x)), data<T>(y), logarithm);
    });
  });
}

void softmax_backward(In grad, In y, Out gx, int64_t outer, int64_t n, int64_t inner,
                      bool logarithm) {
  const Layout a{outer, n, inner};
  with_real("softmax", y.dtype, [&](auto zero) {
    using T = decltype(zero);
    with_lanes(a, [&](auto lanes) {
      launch("softmax", softmax_backward_kernel<lanes(), T>, blocks_of<lanes()>(a), kThreads,
             kSpace, a, static_cast<const T*>(data<T>(grad)), static_cast<const T*>(data<T>(y)),
             data<T>(gx), logarithm);
    });
  });
}

void logsumexp(In x, Out y, int64_t outer, int64_t n, int64_t inner) {
  const Layout a{outer, n, inner};
  with_real("logsumexp", x.dtype, [&](auto zero) {
    using T = decltype(zero);
    with_lanes(a, [&](auto lanes) {
      launch("logsumexp", logsumexp_kernel<lanes(), T>, blocks_of<lanes()>(a), kThreads, kSpace, a,
             static_cast<const T*>(data<T>(x)), data<T>(y));
    });
  });
}

void logsumexp_backward(In grad, In x, In y, Out gx, int64_t outer, int64_t n, int64_t inner) {
  const Layout a{outer, n, inner};
  with_real("logsumexp", x.dtype, [&](auto zero) {
    using T = decltype(zero);
    with_lanes(a, [&](auto lanes) {
      launch("logsumexp", logsumexp_backward_kernel<lanes(), T>, blocks_of<lanes()>(a), kThreads, 0,
             a, static_cast<const T*>(data<T>(grad)), static_cast<const T*>(data<T>(x)),
             static_cast<const T*>(data<T>(y)), data<T>(gx));
    });
  });
}

bool cross_entropy(In x, In labels, OptIn weight, Out stats, Out loss, Out info, int64_t outer,
                   int64_t n, int64_t inner, int64_t ignore_index, double smoothing,
                   int64_t reduction) {
  const Layout a{outer, n, inner};
  with_real("cross_entropy", x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const Targets<T> t = make_targets<T>(labels, weight, a, ignore_index, smoothing);
    reduce_loss("cross_entropy", t, a, reduction, loss, info, [&](T* each) {
      with_lanes(a, [&](auto lanes) {
        launch("cross_entropy", cross_entropy_kernel<lanes(), T>, blocks_of<lanes()>(a), kThreads,
               kSpace, a, t, static_cast<const T*>(data<T>(x)), data<T>(stats), each);
      });
    });
  });
  return true;
}

void cross_entropy_backward(In x, In labels, OptIn weight, In stats, In grad, Out gx, int64_t outer,
                            int64_t n, int64_t inner, int64_t ignore_index, double smoothing,
                            double factor) {
  const Layout a{outer, n, inner};
  with_real("cross_entropy", x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const Targets<T> t = make_targets<T>(labels, weight, a, ignore_index, smoothing);
    with_lanes(a, [&](auto lanes) {
      launch("cross_entropy", cross_entropy_backward_kernel<lanes(), T>, blocks_of<lanes()>(a),
             kThreads, 0, a, t, static_cast<const T*>(data<T>(x)),
             static_cast<const T*>(data<T>(stats)), LossGrad<T>(grad, factor), data<T>(gx));
    });
  });
}

bool nll_loss(In x, In labels, OptIn weight, Out loss, Out info, int64_t outer, int64_t n,
              int64_t inner, int64_t ignore_index, int64_t reduction) {
  const Layout a{outer, n, inner};
  with_real("nll_loss", x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const Targets<T> t = make_targets<T>(labels, weight, a, ignore_index, 0);
    reduce_loss("nll_loss", t, a, reduction, loss, info, [&](T* each) {
      launch("nll_loss", nll_kernel<T>, blocks_for(a.positions(), kThreads), kThreads, 0, a, t,
             static_cast<const T*>(data<T>(x)), each);
    });
  });
  return true;
}

void nll_loss_backward(In labels, OptIn weight, In grad, Out gx, int64_t outer, int64_t n,
                       int64_t inner, int64_t ignore_index, double factor) {
  const Layout a{outer, n, inner};
  with_real("nll_loss", gx.dtype, [&](auto zero) {
    using T = decltype(zero);
    const Targets<T> t = make_targets<T>(labels, weight, a, ignore_index, 0);
    launch("nll_loss", nll_backward_kernel<T>, blocks_for(a.positions() * a.n, kThreads), kThreads,
           0, a, t, LossGrad<T>(grad, factor), data<T>(gx));
  });
}

}  // namespace grebe::cuda
