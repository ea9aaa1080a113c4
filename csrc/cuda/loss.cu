// Losses between two arrays, element by element: value and gradient.
//
// Idea: the losses are the CPU's (losses.h), one element at a time. Forward sums the values of a
// chunk per block in float64 and adds the chunks in order; backward writes slope * weight * factor *
// grad in one pass. Weights repeat with a period, so that the broadcast array never exists.
//
// Floor: memory, 8 bytes per float32 element forward and 12 backward. Not measured on a device yet.
#include "kernels.cuh"

namespace grebe::cuda {
namespace {

#define FORMULA DEVICE
#include "../losses.h"

constexpr int64_t kChunk = 4096;  // elements of a block

template <class T>
struct Operands {
  const T *x, *t, *weight, *positive;  // the last two may be nullptr
  int64_t n, period;  // of the weights
  T p;

  Operands(const View& vx, const View& vt, const View& w, const View& q, double parameter)
      : x(data<T>(vx)),
        t(data<T>(vt)),
        weight(data<T>(w)),
        positive(data<T>(q)),
        n(numel(vx)),
        period(w.data   ? numel(w)
               : q.data ? numel(q)
                        : 1),
        p(static_cast<T>(parameter)) {}
  DEVICE T weight_at(int64_t i) const { return weight ? weight[i % period] : T(1); }
  DEVICE T positive_at(int64_t i) const { return positive ? positive[i % period] : T(1); }
};

template <class Loss, class T>
DEVICE T value(const Operands<T>& a, int64_t i) {
  return Loss::value(a.x[i], a.t[i], a.p, a.positive_at(i)) * a.weight_at(i);
}

template <class Loss, class T>
__global__ void __launch_bounds__(kThreads) write_values(Operands<T> a, T* loss) {
  for (int64_t i = thread_number(); i < a.n; i += thread_count()) loss[i] = value<Loss>(a, i);
}

template <class Loss, class T>
__global__ void __launch_bounds__(kThreads) sum_chunks(Operands<T> a, double* partial) {
  Shared shared;
  double* space = shared.take<double>(kThreads / 32);
  const int64_t begin = blockIdx.x * kChunk, stop = begin + kChunk;
  const int64_t end = stop < a.n ? stop : a.n;
  double sum = 0;
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads)
    sum += static_cast<double>(value<Loss>(a, i));
  sum = block_combine(sum, space, Plus{});
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    add_chunks(const double* partial, int64_t chunks, double factor, T* loss) {
  Shared shared;
  double* space = shared.take<double>(kThreads / 32);
  double sum = 0;
  for (int64_t i = threadIdx.x; i < chunks; i += kThreads) sum += partial[i];
  sum = block_combine(sum, space, Plus{});
  if (threadIdx.x == 0) *loss = static_cast<T>(sum * factor);
}

template <class Loss, class T>
__global__ void __launch_bounds__(kThreads)
    write_slopes(Operands<T> a, const T* grad, int64_t grad_stride, T factor, T* gx) {
  for (int64_t i = thread_number(); i < a.n; i += thread_count())
    gx[i] = Loss::slope(a.x[i], a.t[i], a.p, a.positive_at(i)) * a.weight_at(i) *
            (grad[i * grad_stride] * factor);
}

constexpr size_t kSpace = kThreads / 32 * sizeof(double);

struct Forward {
  const View &x, &t, &weight, &positive, &loss;
  double p, factor;
  bool each;

  template <class Loss, class T>
  void run() const {
    const Operands<T> a(x, t, weight, positive, p);
    if (each) {
      launch("loss", write_values<Loss, T>, blocks_for(a.n, kThreads), kThreads, 0, a,
             data<T>(loss));
      return;
    }
    const int64_t chunks = divide_up(a.n, kChunk);
    double* partial =
        static_cast<double*>(workspace(chunks * static_cast<int64_t>(sizeof(double))));
    launch("loss", sum_chunks<Loss, T>, static_cast<unsigned>(chunks), kThreads, kSpace, a,
           partial);
    launch("loss", add_chunks<T>, 1, kThreads, kSpace, static_cast<const double*>(partial), chunks,
           factor, data<T>(loss));
  }
};

struct Backward {
  const View &x, &t, &weight, &positive, &grad, &gx;
  double p, factor;

  template <class Loss, class T>
  void run() const {
    const Operands<T> a(x, t, weight, positive, p);
    const int64_t stride = numel(grad) == 1 ? 0 : 1;
    launch("loss", write_slopes<Loss, T>, blocks_for(a.n, kThreads), kThreads, 0, a,
           static_cast<const T*>(data<T>(grad)), stride, static_cast<T>(factor), data<T>(gx));
  }
};

template <class Loss, class Pass>
void run_typed(const Pass& pass) {
  if (pass.x.dtype == DType::kFloat32) return pass.template run<Loss, float>();
  if (pass.x.dtype == DType::kFloat64) return pass.template run<Loss, double>();
  unsupported("loss", pass.x.dtype);
}

template <class Pass>
bool run_kind(int64_t kind, const Pass& pass) {
  switch (kind) {
    case 0: run_typed<Squared>(pass); break;
    case 1: run_typed<Absolute>(pass); break;
    case 2: run_typed<Huber>(pass); break;
    case 3: run_typed<SmoothL1>(pass); break;
    case 4: run_typed<Logits>(pass); break;
    case 5: run_typed<Probabilities>(pass); break;
    case 6: run_typed<Divergence>(pass); break;
    default: run_typed<LogDivergence>(pass); break;
  }
  return true;
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

}  // namespace grebe::cuda
