// softmax, log_softmax, logsumexp, cross entropy and negative log likelihood, forward and backward.
//
// An array is [outer, n, inner], contiguous; the reduction runs over n, one of the outer * inner
// positions is a row. Where inner is 1, 8 lanes, a warp, a block or a cluster of blocks (sm_90)
// holds a row in registers: it is read once. Rows longer than that (on sm_90 131072 floats) a block
// reads twice. Where inner > 1 one thread owns a row, and its neighbours read neighbouring elements.
//
// Everything starts from (reference, sum): the largest element and the sum of exp(x - reference).
// Rows in memory find both in one pass: the sum so far shrinks when a larger element appears (Milakov
// and Gimelshein 2018). Cross entropy keeps only these two numbers per position; backward makes
// exp(x - reference) again, subtracts the target and scales, in one pass. 16-bit elements are widened
// on the way. A row of -inf only has reference 0 and sum 0: softmax NaN, logsumexp -inf, as in
// PyTorch.
//
// Floor: memory, softmax 8 bytes per float32 element, cross entropy 4 forward, 8 backward. Not
// measured on a device yet.
#include "divider.cuh"

namespace grebe::cuda {
namespace {

constexpr int kRowBlock = 1024;  // threads of a row that a block or a cluster owns
constexpr int kMostClusters = 8;  // blocks of a row
// 16-byte packs of a thread of a warp and of a block: two arrays of them fit into its registers.
template <class T>
constexpr int kWarpPacks = sizeof(T) == 2 ? 4 : 8;
template <class T>
constexpr int kBlockPacks = sizeof(T) == 2 ? 2 : 4;

struct Layout {
  int64_t outer, n, inner;
  bool packs = false;  // 16-byte accesses are possible
  int cluster = 1;  // blocks of a row
  GREBE_EVERYWHERE int64_t positions() const { return outer * inner; }
};

// Long chains of additions, one thread's alone, are kept in float64.
template <int kLanes, class W>
struct SumOf {
  using type = W;
};
template <class W>
struct SumOf<1, W> {
  using type = double;
};

// One row and the threads that share it: kLanes of them, or whole blocks (0). Each has kPacks packs of
// a row in registers, or any number in memory (0).
template <class Element, int kLanesOfRow, int kPacksOfThread>
struct Group {
  using T = Element;
  using W = Wide<T>;
  static constexpr int kLanes = kLanesOfRow, kPacks = kPacksOfThread;
  static constexpr bool kHeld = kPacks > 0;
  static constexpr int kCount = kLanes == 1 ? 1 : kPack<T>;
  static constexpr int kBlock = kLanes ? kThreads : kRowBlock;
  using Part = Pack<T, kCount>;
  using Sum = typename SumOf<kLanes, W>::type;

  const Layout& a;
  int64_t position, base;  // of its first element
  bool valid;  // is there such a row?
  int64_t n;  // 0 if not
  int lane, lanes;
  Sum* space;  // of block_combine, then a slot for each combination of a cluster
  int turn = 0;

  DEVICE explicit Group(const Layout& a) : a(a) {
    lanes = kLanes ? kLanes : static_cast<int>(blockDim.x) * a.cluster;
    const int64_t number = thread_number();
    const int64_t unit = number / lanes;
    lane = static_cast<int>(number % lanes);
    valid = unit < a.positions();
    n = valid ? a.n : 0;
    position = valid ? unit : 0;
    base = kLanes == 1 ? position / a.inner * a.n * a.inner + position % a.inner : position * a.n;
    Shared shared;
    space = shared.take<Sum>(kSlots);
  }
  static constexpr int kSlots = kRowBlock / 32 + 4;
  static constexpr size_t kSpace = kLanes ? 0 : kSlots * sizeof(Sum);

  // This thread's part of a row of an array.
  struct Row {
    Part parts[kHeld ? kPacks : 1];
    const T* memory;
    int64_t stride;
    bool packs;

    DEVICE Row(const Group& g, const T* array)
        : memory(array + g.base), stride(kLanes == 1 ? g.a.inner : 1), packs(g.a.packs) {
      if constexpr (kHeld) {
#pragma unroll
        for (int k = 0; k < kPacks; ++k) parts[k] = load((k * g.lanes + g.lane) * kCount, g.n);
      }
    }
    DEVICE Part load(int64_t j, int64_t n) const {
      Part part;
      if (packs && j < n) {
        part = *reinterpret_cast<const Part*>(memory + j);
      } else {
#pragma unroll
        for (int t = 0; t < kCount; ++t) part.v[t] = j + t < n ? memory[(j + t) * stride] : T(0.0f);
      }
      return part;
    }
    DEVICE Part part(int k, int64_t j, int64_t n) const {
      if constexpr (kHeld)
        return parts[k];
      else
        return load(j, n);
    }
  };

  // f(class of the first element, parts of the rows) for all of this thread's packs.
  template <class F, class... Rows>
  DEVICE void each_part(F f, const Rows&... rows) const {
    if constexpr (kHeld) {
#pragma unroll
      for (int k = 0; k < kPacks; ++k) {
        const int64_t j = (k * lanes + lane) * kCount;
        if (j < n) f(j, rows.part(k, j, n)...);
      }
    } else {
      for (int64_t j = lane * kCount; j < n; j += static_cast<int64_t>(lanes) * kCount)
        f(j, rows.part(0, j, n)...);
    }
  }
  // f(class, elements of the rows) for all of this thread's elements.
  template <class F, class... Rows>
  DEVICE void each(F f, const Rows&... rows) const {
    each_part(
        [&](int64_t j, const auto&... parts) {
#pragma unroll
          for (int t = 0; t < kCount; ++t)
            if (j + t < n) f(j + t, widen(parts.v[t])...);
        },
        rows...);
  }
  // The same, and what f returns goes to a row of `out`.
  template <class F, class... Rows>
  DEVICE void write(T* out, F f, const Rows&... rows) const {
    T* to = out + base;
    const int64_t stride = kLanes == 1 ? a.inner : 1;
    each_part(
        [&](int64_t j, const auto&... parts) {
          Part result;
#pragma unroll
          for (int t = 0; t < kCount; ++t) result.v[t] = narrow<T>(f(j + t, widen(parts.v[t])...));
          if (a.packs) {
            *reinterpret_cast<Part*>(to + j) = result;
          } else {
#pragma unroll
            for (int t = 0; t < kCount; ++t)
              if (j + t < n) to[(j + t) * stride] = result.v[t];
          }
        },
        rows...);
  }

  template <class Combine, class V>
  DEVICE V combine(V x, Combine op) {
    if constexpr (kLanes > 0) {
      return warp_combine<kLanes>(x, op);
    } else {
      V all = block_combine(x, reinterpret_cast<V*>(space), op);
      if (a.cluster == 1) return all;
      V* slot = reinterpret_cast<V*>(space + kRowBlock / 32 + turn++);
      if (threadIdx.x == 0) *slot = all;
      cluster_barrier();
      all = *in_block(slot, 0);
      for (int rank = 1; rank < a.cluster; ++rank) all = op(all, *in_block(slot, rank));
      return all;
    }
  }
  // At the end, after combinations: the others of the cluster may still read this block's slots.
  DEVICE void finish() const {
    if (kLanes == 0 && a.cluster > 1) cluster_barrier();
  }
};

template <class W>
struct Exponentials {
  W reference, sum;
};

// Of rows in registers.
template <class G, class Row, std::enable_if_t<G::kHeld, int> = 0>
DEVICE Exponentials<typename G::W> exponentials(G& g, const Row& x) {
  using W = typename G::W;
  W top = -infinity<W>();
  g.each([&](int64_t, W v) { top = max_nan(top, v); }, x);
  top = g.combine(top, Larger{});
  const W reference = top == -infinity<W>() ? W(0) : top;
  W sum = 0;
  g.each([&](int64_t, W v) { sum += exp(v - reference); }, x);
  return {reference, g.combine(sum, Plus{})};
}
// Of rows in memory, in one pass.
template <class G, class Row, std::enable_if_t<!G::kHeld, int> = 0>
DEVICE Exponentials<typename G::W> exponentials(G& g, const Row& x) {
  using W = typename G::W;
  using Sum = typename G::Sum;
  W top = -infinity<W>();
  Sum sum = 0;
  g.each_part(
      [&](int64_t j, const auto& part) {
        W larger = top;
#pragma unroll
        for (int t = 0; t < G::kCount; ++t)
          if (j + t < g.n) larger = max_nan(larger, widen(part.v[t]));
        if (larger == -infinity<W>()) return;
        if (larger != top) sum *= static_cast<Sum>(exp(top - larger));
        top = larger;
#pragma unroll
        for (int t = 0; t < G::kCount; ++t)
          if (j + t < g.n) sum += static_cast<Sum>(exp(widen(part.v[t]) - top));
      },
      x);
  const W all = g.combine(top, Larger{});
  const W reference = all == -infinity<W>() ? W(0) : all;
  sum *= static_cast<Sum>(exp(top - reference));
  return {reference, static_cast<W>(g.combine(sum, Plus{}))};
}

template <class G>
__global__ void __launch_bounds__(G::kBlock)
    softmax_kernel(Layout a, const typename G::T* x, typename G::T* y, bool logarithm) {
  using W = typename G::W;
  G g(a);
  const typename G::Row row(g, x);
  const Exponentials<W> e = exponentials(g, row);
  const W factor = 1 / e.sum, shift = log(e.sum);
  const auto result = [&](int64_t, W v) {
    return logarithm ? v - e.reference - shift : exp(v - e.reference) * factor;
  };
  g.write(y, result, row);
  g.finish();
}

template <class G>
__global__ void __launch_bounds__(G::kBlock)
    logsumexp_kernel(Layout a, const typename G::T* x, typename G::T* y) {
  using W = typename G::W;
  G g(a);
  const Exponentials<W> e = exponentials(g, typename G::Row(g, x));
  const W value = e.reference == infinity<W>() ? e.reference : e.reference + log(e.sum);
  if (g.valid && g.lane == 0) y[g.position] = narrow<typename G::T>(value);
  g.finish();
}

template <class G>
__global__ void __launch_bounds__(G::kBlock)
    softmax_backward_kernel(Layout a, const typename G::T* grad, const typename G::T* y,
                            typename G::T* gx, bool logarithm) {
  using W = typename G::W;
  G g(a);
  const typename G::Row grads(g, grad), results(g, y);
  typename G::Sum part = 0;
  g.each([&](int64_t, W d, W v) { part += logarithm ? d : d * v; }, grads, results);
  const W sum = static_cast<W>(g.combine(part, Plus{}));
  const auto result = [&](int64_t, W d, W v) {
    return logarithm ? d - exp(v) * sum : (d - sum) * v;
  };
  g.write(gx, result, grads, results);
  g.finish();
}

template <class G>
__global__ void __launch_bounds__(G::kBlock)
    logsumexp_backward_kernel(Layout a, const typename G::T* grad, const typename G::T* x,
                              const typename G::T* lse, typename G::T* gx) {
  using W = typename G::W;
  G g(a);
  if (g.n == 0) return;
  const W scale = widen(grad[g.position]), shift = widen(lse[g.position]);
  g.write(gx, [&](int64_t, W v) { return exp(v - shift) * scale; }, typename G::Row(g, x));
}

// ---- losses over class labels ----

enum Reduction : int64_t { kNone, kMean, kSum };

// Target of one position: (1 - smoothing) weight[label] on the label, and for every class
// smoothing / n times its weight. An ignored position has no target.
template <class W>
struct Targets {
  const int64_t* labels;
  const W* weight;  // per class, or nullptr for ones
  const double* weight_total;  // of all classes, where there are weights
  int64_t n, ignore_index;
  W on_label, on_all;

  DEVICE bool ignored(int64_t i) const { return labels[i] == ignore_index; }
  DEVICE bool bad(int64_t i) const {
    return !ignored(i) && static_cast<uint64_t>(labels[i]) >= static_cast<uint64_t>(n);
  }
  DEVICE W class_weight(int64_t c) const { return weight ? weight[c] : W(1); }
  DEVICE W total_weight() const {
    return weight ? static_cast<W>(*weight_total) : static_cast<W>(n);
  }
  DEVICE W total(int64_t i) const {
    return on_label * class_weight(labels[i]) + on_all * total_weight();
  }
};

DEVICE int64_t label_offset(const Layout& a, int64_t i, int64_t label) {
  return (i / a.inner * a.n + label) * a.inner + i % a.inner;
}

// The loss of position i; NaN for a label that is none, which Python reports.
template <class T, class W>
DEVICE W loss_of_position(const Layout& a, const Targets<W>& t, int64_t i, const T* x,
                          const Exponentials<W>& e, W gap) {
  if (t.ignored(i)) return 0;
  if (t.bad(i)) return static_cast<W>(NAN);
  const W log_sum = log(e.sum), at_label = widen(x[label_offset(a, i, t.labels[i])]);
  W loss = t.on_label * t.class_weight(t.labels[i]) * (log_sum - (at_label - e.reference));
  if (t.on_all != 0) loss += t.on_all * (t.total_weight() * log_sum + gap);
  return loss;
}

template <class G>
__global__ void __launch_bounds__(G::kBlock)
    cross_entropy_kernel(Layout a, Targets<typename G::W> t, const typename G::T* x,
                         typename G::W* stats, typename G::W* loss) {
  using W = typename G::W;
  G g(a);
  const typename G::Row row(g, x);
  const Exponentials<W> e = exponentials(g, row);
  W gap = 0;
  if (t.on_all != 0) {
    typename G::Sum part = 0;
    g.each([&](int64_t c, W v) { part += (e.reference - v) * t.class_weight(c); }, row);
    gap = static_cast<W>(g.combine(part, Plus{}));
  }
  if (g.valid && g.lane == 0) {
    stats[g.position] = e.reference;
    stats[a.positions() + g.position] = e.sum;
    loss[g.position] = loss_of_position(a, t, g.position, x, e, gap);
  }
  g.finish();
}

// Gradient of one loss per position: a scalar for all, or one each; times `factor`.
template <class W>
struct LossGrad {
  const W* grad;
  int64_t stride;
  W factor;
  LossGrad(const View& g, double f)
      : grad(data<W>(g)), stride(numel(g) == 1 ? 0 : 1), factor(static_cast<W>(f)) {}
  DEVICE W operator()(int64_t i) const { return grad[i * stride] * factor; }
};

template <class G>
__global__ void __launch_bounds__(G::kBlock)
    cross_entropy_backward_kernel(Layout a, Targets<typename G::W> t, const typename G::T* x,
                                  const typename G::W* stats, LossGrad<typename G::W> grad,
                                  typename G::T* gx) {
  using W = typename G::W;
  G g(a);
  const int64_t i = g.position;
  if (g.n == 0) return;
  const typename G::Row row(g, x);
  if (t.ignored(i) || t.bad(i)) return g.write(gx, [](int64_t, W) { return W(0); }, row);
  const W scale = grad(i), reference = stats[i];
  const W slope = t.total(i) * scale / stats[a.positions() + i];
  const int64_t label = t.labels[i];
  const auto result = [&](int64_t c, W at) {
    W v = exp(at - reference) * slope;
    if (t.on_all != 0 && c < g.n) v -= t.on_all * scale * t.class_weight(c);
    if (c == label) v -= t.on_label * t.class_weight(c) * scale;
    return v;
  };
  g.write(gx, result, row);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    nll_kernel(Layout a, Targets<Wide<T>> t, const T* x, Wide<T>* loss) {
  for (int64_t i = thread_number(); i < a.positions(); i += thread_count()) {
    Wide<T> value = 0;
    if (t.bad(i))
      value = static_cast<Wide<T>>(NAN);
    else if (!t.ignored(i))
      value = -t.class_weight(t.labels[i]) * widen(x[label_offset(a, i, t.labels[i])]);
    loss[i] = value;
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    nll_backward_kernel(Layout a, Targets<Wide<T>> t, LossGrad<Wide<T>> grad, T* gx) {
  const int64_t size = a.positions() * a.n;
  for (int64_t at = thread_number(); at < size; at += thread_count()) {
    const int64_t i = at / (a.n * a.inner) * a.inner + at % a.inner, c = at / a.inner % a.n;
    const bool hit = !t.ignored(i) && t.labels[i] == c;
    gx[at] = narrow<T>(hit ? -t.class_weight(c) * grad(i) : Wide<T>(0));
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

template <class W>
Targets<W> make_targets(const View& labels, const View& weight, const Layout& a, int64_t ignored,
                        double smoothing) {
  Targets<W> t{data<int64_t>(labels),
               data<W>(weight),
               nullptr,
               a.n,
               ignored,
               static_cast<W>(1 - smoothing),
               static_cast<W>(a.n ? smoothing / static_cast<double>(a.n) : 0)};
  if (weight.data) {
    double* total = static_cast<double*>(workspace(sizeof(double)));
    launch("cross_entropy", add_weights<W>, 1, kThreads, kSpace, t.weight, a.n, total);
    t.weight_total = total;
  }
  return t;
}

template <class G>
struct Kind {
  using type = G;
};

// Calls f(Kind<Group>) for rows that are read once and need not be held.
template <class T, class F>
void with_memory_rows(const Layout& a, const F& f) {
  if (a.positions() == 0) return;
  if (a.inner > 1) return f(Kind<Group<T, 1, 0>>{});
  if (a.n <= kThreads * kPack<T>) return f(Kind<Group<T, 32, 0>>{});
  f(Kind<Group<T, 0, 0>>{});
}
// Calls f(Kind<Group>) for rows that are held if they fit. Sets how many blocks share a row.
template <class T, class F>
void with_rows(Layout& a, const F& f) {
  const int64_t packs = divide_up(a.n, kPack<T>);
  const int64_t threads = divide_up(packs, kBlockPacks<T>);
  if constexpr (sizeof(T) < 8) {
    if (a.positions() > 0 && a.inner == 1 && packs <= 8 * 2) return f(Kind<Group<T, 8, 2>>{});
    if (a.positions() > 0 && a.inner == 1 && packs <= 32 * kWarpPacks<T>)
      return f(Kind<Group<T, 32, kWarpPacks<T>>>{});
    const int most = compute_capability() >= 90 ? kMostClusters : 1;
    if (a.positions() > 0 && a.inner == 1 && threads <= int64_t{kRowBlock} * most) {
      while (threads > int64_t{kRowBlock} * a.cluster) a.cluster *= 2;
      return f(Kind<Group<T, 0, kBlockPacks<T>>>{});
    }
  }
  with_memory_rows<T>(a, f);
}
template <class G, class... P, class... A>
void launch_rows(const char* name, void (*kernel)(P...), const Layout& a, A... arguments) {
  if (G::kLanes) {
    launch(name, kernel, blocks_for(a.positions(), kThreads / (G::kLanes ? G::kLanes : 1)),
           kThreads, 0, a, arguments...);
    return;
  }
  // Of a row in registers no more threads than it fills.
  const int64_t part = divide_up(divide_up(a.n, G::kCount), a.cluster);
  const int64_t wanted = divide_up(divide_up(part, G::kHeld ? G::kPacks : 1), 32) * 32;
  const unsigned threads = static_cast<unsigned>(wanted < kRowBlock ? wanted : kRowBlock);
  launch_clusters(name, static_cast<unsigned>(a.cluster), kernel,
                  blocks_for(a.positions(), 1) * static_cast<unsigned>(a.cluster), threads,
                  G::kSpace, a, arguments...);
}

// Can 16-byte accesses be made to all rows of the arrays?
template <class T, class... Arrays>
Layout layout_of(int64_t outer, int64_t n, int64_t inner, const Arrays&... arrays) {
  Layout a{outer, n, inner};
  a.packs = inner == 1 && n % kPack<T> == 0 && (is_aligned(arrays.data) && ...);
  return a;
}

// The losses of all positions by `run(array)`, then what `reduction` asks for.
template <class W, class F>
void reduce_loss(const char* name, const Targets<W>& t, const Layout& a, int64_t reduction,
                 const View& loss, const View& info, const F& run) {
  const int64_t count = a.positions();
  W* each = data<W>(loss);
  if (reduction != kNone)
    each = static_cast<W*>(workspace(count * static_cast<int64_t>(sizeof(W))));
  run(each);
  launch(name, reduce_losses<W>, 1, kThreads, kSpace, count, t, reduction == kMean,
         static_cast<const W*>(each), reduction == kNone ? nullptr : data<W>(loss),
         data<double>(info));
}

}  // namespace

void softmax(In x, Out y, int64_t outer, int64_t n, int64_t inner, bool logarithm) {
  with_float("softmax", x.dtype, [&](auto zero) {
    using T = decltype(zero);
    Layout a = layout_of<T>(outer, n, inner, x, y);
    with_rows<T>(a, [&](auto kind) {
      using G = typename decltype(kind)::type;
      launch_rows<G>("softmax", softmax_kernel<G>, a, data<const T>(x), data<T>(y), logarithm);
    });
  });
}

void softmax_backward(In grad, In y, Out gx, int64_t outer, int64_t n, int64_t inner,
                      bool logarithm) {
  with_float("softmax", y.dtype, [&](auto zero) {
    using T = decltype(zero);
    Layout a = layout_of<T>(outer, n, inner, grad, y, gx);
    with_rows<T>(a, [&](auto kind) {
      using G = typename decltype(kind)::type;
      launch_rows<G>("softmax", softmax_backward_kernel<G>, a, data<const T>(grad),
                     data<const T>(y), data<T>(gx), logarithm);
    });
  });
}

void logsumexp(In x, Out y, int64_t outer, int64_t n, int64_t inner) {
  with_float("logsumexp", x.dtype, [&](auto zero) {
    using T = decltype(zero);
    Layout a = layout_of<T>(outer, n, inner, x);
    with_rows<T>(a, [&](auto kind) {
      using G = typename decltype(kind)::type;
      launch_rows<G>("logsumexp", logsumexp_kernel<G>, a, data<const T>(x), data<T>(y));
    });
  });
}

void logsumexp_backward(In grad, In x, In y, Out gx, int64_t outer, int64_t n, int64_t inner) {
  with_float("logsumexp", x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const Layout a = layout_of<T>(outer, n, inner, x, gx);
    with_memory_rows<T>(a, [&](auto kind) {
      using G = typename decltype(kind)::type;
      launch_rows<G>("logsumexp", logsumexp_backward_kernel<G>, a, data<const T>(grad),
                     data<const T>(x), data<const T>(y), data<T>(gx));
    });
  });
}

bool cross_entropy(In x, In labels, OptIn weight, Out stats, Out loss, Out info, int64_t outer,
                   int64_t n, int64_t inner, int64_t ignore_index, double smoothing,
                   int64_t reduction) {
  with_float("cross_entropy", x.dtype, [&](auto zero) {
    using T = decltype(zero);
    using W = Wide<T>;
    Layout a = layout_of<T>(outer, n, inner, x);
    const Targets<W> t = make_targets<W>(labels, weight, a, ignore_index, smoothing);
    reduce_loss("cross_entropy", t, a, reduction, loss, info, [&](W* each) {
      with_rows<T>(a, [&](auto kind) {
        using G = typename decltype(kind)::type;
        launch_rows<G>("cross_entropy", cross_entropy_kernel<G>, a, t, data<const T>(x),
                       data<W>(stats), each);
      });
    });
  });
  return true;
}

void cross_entropy_backward(In x, In labels, OptIn weight, In stats, In grad, Out gx, int64_t outer,
                            int64_t n, int64_t inner, int64_t ignore_index, double smoothing,
                            double factor) {
  with_float("cross_entropy", x.dtype, [&](auto zero) {
    using T = decltype(zero);
    using W = Wide<T>;
    const Layout a = layout_of<T>(outer, n, inner, x, gx);
    const Targets<W> t = make_targets<W>(labels, weight, a, ignore_index, smoothing);
    with_memory_rows<T>(a, [&](auto kind) {
      using G = typename decltype(kind)::type;
      launch_rows<G>("cross_entropy", cross_entropy_backward_kernel<G>, a, t, data<const T>(x),
                     data<const W>(stats), LossGrad<W>(grad, factor), data<T>(gx));
    });
  });
}

bool nll_loss(In x, In labels, OptIn weight, Out loss, Out info, int64_t outer, int64_t n,
              int64_t inner, int64_t ignore_index, int64_t reduction) {
  const Layout a{outer, n, inner};
  with_float("nll_loss", x.dtype, [&](auto zero) {
    using T = decltype(zero);
    using W = Wide<T>;
    const Targets<W> t = make_targets<W>(labels, weight, a, ignore_index, 0);
    reduce_loss("nll_loss", t, a, reduction, loss, info, [&](W* each) {
      launch("nll_loss", nll_kernel<T>, blocks_for(a.positions(), kThreads), kThreads, 0, a, t,
             data<const T>(x), each);
    });
  });
  return true;
}

void nll_loss_backward(In labels, OptIn weight, In grad, Out gx, int64_t outer, int64_t n,
                       int64_t inner, int64_t ignore_index, double factor) {
  const Layout a{outer, n, inner};
  with_float("nll_loss", gx.dtype, [&](auto zero) {
    using T = decltype(zero);
    using W = Wide<T>;
    const Targets<W> t = make_targets<W>(labels, weight, a, ignore_index, 0);
    launch("nll_loss", nll_backward_kernel<T>, blocks_for(a.positions() * a.n, kThreads), kThreads,
           0, a, t, LossGrad<W>(grad, factor), data<T>(gx));
  });
}

}  // namespace grebe::cuda
