// Optimizer steps: one pass over all parameters of a group.
//
// A step is elementwise over up to five arrays of equal dense layout (parameter, gradient, state),
// so the whole list runs as one flat loop: the tensors are laid end to end, each padded to kPad
// elements, and the flat range is cut into fixed chunks. One parallel section serves a model of
// many small tensors, and no result depends on where a chunk ends.
//
// Floor: memory. Bytes per float32 element: SGD 12, with momentum 20, Adam 28, Adagrad 20.
// Measured shares: docs/kernels/optim.md.
#include "kernels.h"

namespace grebe::GREBE_ISA {
namespace {

constexpr int64_t kPad = 64;       // elements: keeps chunk boundaries on whole vectors
constexpr int64_t kChunk = 16384;  // elements

inline int64_t padded(int64_t n) { return round_up(n, kPad); }

int64_t flat_size(Views list) {
  int64_t total = 0;
  for (int64_t k = 0; k < list.size; ++k) total += padded(numel(list.items[k]));
  return total;
}

// f(tensor, begin, end, chunk) for pieces that cover all tensors; a piece lies within one chunk,
// and the pieces of a chunk come in order from one thread.
template <class F>
void for_each_piece(Views list, const F& f) {
  parallel_for(flat_size(list), kChunk, [&](int64_t begin, int64_t end) {
    int64_t start = 0;
    for (int64_t k = 0; k < list.size && start < end; ++k) {
      const int64_t n = numel(list.items[k]), next = start + padded(n);
      int64_t at = begin > start ? begin : start;
      while (at < next && at < end) {
        const int64_t chunk = at / kChunk;
        const int64_t boundary = (chunk + 1) * kChunk, stop = boundary < next ? boundary : next;
        const int64_t piece_end = stop - start < n ? stop - start : n;
        if (at - start < piece_end) f(k, at - start, piece_end, chunk);
        at = stop;
      }
      start = next;
    }
  });
}

// ---- updates ----

#define FORMULA inline
#include "../optim_rules.h"

// update(v) on vectors of all streams; absent streams are zero and not stored.
template <class T, class Update>
void update_piece(T* const (&p)[kStreams], int64_t n, const Update& update) {
  vec<T> v[kStreams] = {};
  int64_t i = 0;
  for (; i + lanes<T> <= n; i += lanes<T>) {
    for (int s = 0; s < kStreams; ++s)
      if (p[s]) v[s] = load(p[s] + i);
    update(v);
    for (int s = 0; s < kStreams; ++s)
      if (p[s] && s != kGrad) store(p[s] + i, v[s]);
  }
  if (i == n) return;
  for (int s = 0; s < kStreams; ++s)
    if (p[s]) v[s] = load_n(p[s] + i, n - i);
  update(v);
  for (int s = 0; s < kStreams; ++s)
    if (p[s] && s != kGrad) store_n(p[s] + i, v[s], n - i);
}

template <class T, class Update>
void update_tensor(const Views (&lists)[kStreams], int64_t k, int64_t begin, int64_t end,
                   const Update& update) {
  T* p[kStreams] = {};
  for (int s = 0; s < kStreams; ++s)
    if (lists[s].size) p[s] = data<T>(lists[s].items[k]) + begin;
  update_piece<T>(p, end - begin, update);
}

template <template <class> class Rule, class Options>
void step(const Views (&lists)[kStreams], const Options& o) {
  const Rule<vec<float>> single(o);
  const Rule<vec<double>> twice(o);
  for_each_piece(lists[kParam], [&](int64_t k, int64_t begin, int64_t end, int64_t) {
    if (lists[kParam].items[k].dtype == DType::kFloat32)
      update_tensor<float>(lists, k, begin, end, single);
    else
      update_tensor<double>(lists, k, begin, end, twice);
  });
}

// ---- gradient clipping ----

template <class T>
double piece_sum_squares(const T* x, int64_t n) {
  constexpr int64_t L = lanes<T>;
  vec<T> sum[4] = {};
  int64_t i = 0;
  for (; i + 4 * L <= n; i += 4 * L)
    for (int k = 0; k < 4; ++k) {
      const vec<T> v = load(x + i + k * L);
      sum[k] = fma(v, v, sum[k]);
    }
  for (; i < n; i += L) {
    const vec<T> v = n - i < L ? load_n(x + i, n - i) : load(x + i);
    sum[0] = fma(v, v, sum[0]);
  }
  const vec<T> all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
  double total = 0;
  for (int64_t k = 0; k < L; ++k) total += static_cast<double>(all[k]);
  return total;
}

template <class T, class F>
void map_piece(T* x, int64_t n, const F& f) {
  int64_t i = 0;
  for (; i + lanes<T> <= n; i += lanes<T>) store(x + i, f(load(x + i)));
  if (i < n) store_n(x + i, f(load_n(x + i, n - i)), n - i);
}

// x = f(x) for all tensors, f taking vectors of either type.
template <class F>
void map_tensors(Views tensors, const F& f) {
  for_each_piece(tensors, [&](int64_t k, int64_t begin, int64_t end, int64_t) {
    const View& t = tensors.items[k];
    if (t.dtype == DType::kFloat32)
      map_piece(data<float>(t) + begin, end - begin, f);
    else
      map_piece(data<double>(t) + begin, end - begin, f);
  });
}

}  // namespace

void sgd_step(Views params, Views grads, Views momentum_buffers, double lr, double momentum,
              double dampening, double weight_decay, bool nesterov, bool maximize, bool first) {
  step<Sgd>({params, grads, momentum_buffers, {}, {}},
            SgdOptions{lr, momentum, dampening, weight_decay, nesterov, maximize, first});
}

// decay: factor on the parameter (decoupled weight decay). correction2: sqrt(1 - beta2^t). With
// `corrections` [2] step_size and correction2 stand there.
void adam_step(Views params, Views grads, Views exp_avgs, Views exp_avg_sqs, Views max_exp_avg_sqs,
               OptIn corrections, double step_size, double beta1, double beta2, double eps,
               double weight_decay, double decay, double correction2, bool maximize) {
  if (corrections.data) {
    step_size = data<double>(corrections)[0];
    correction2 = data<double>(corrections)[1];
  }
  step<Adam>({params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs},
             AdamOptions{step_size, beta1, beta2, eps, weight_decay, decay, correction2,
                         max_exp_avg_sqs.size > 0, maximize});
}

void adamax_step(Views params, Views grads, Views exp_avgs, Views exp_infs, double step_size,
                 double beta1, double beta2, double eps, double weight_decay, bool maximize) {
  step<Adamax>({params, grads, exp_avgs, exp_infs, {}},
               AdamaxOptions{step_size, beta1, beta2, eps, weight_decay, maximize});
}

void nadam_step(Views params, Views grads, Views exp_avgs, Views exp_avg_sqs, double grad_step,
                double momentum_step, double beta1, double beta2, double eps, double weight_decay,
                double decay, double correction2, bool maximize) {
  step<Nadam>({params, grads, exp_avgs, exp_avg_sqs, {}},
              NadamOptions{grad_step, momentum_step, beta1, beta2, eps, weight_decay, decay,
                           correction2, maximize});
}

void adagrad_step(Views params, Views grads, Views sums, double lr, double weight_decay, double eps,
                  bool maximize) {
  step<Adagrad>({params, grads, sums, {}, {}}, AdagradOptions{lr, weight_decay, eps, maximize});
}

void rmsprop_step(Views params, Views grads, Views square_avgs, Views momentum_buffers,
                  Views grad_avgs, double lr, double alpha, double eps, double weight_decay,
                  double momentum, bool maximize) {
  step<Rmsprop>(
      {params, grads, square_avgs, momentum_buffers, grad_avgs},
      RmspropOptions{lr, alpha, eps, weight_decay, momentum, grad_avgs.size > 0, maximize});
}

void adadelta_step(Views params, Views grads, Views square_avgs, Views acc_deltas, double lr,
                   double rho, double eps, double weight_decay, bool maximize) {
  step<Adadelta>({params, grads, square_avgs, acc_deltas, {}},
                 AdadeltaOptions{lr, rho, eps, weight_decay, maximize});
}

// total[0] = sum of squares over all tensors: chunks in the tensors' precision, added in double.
bool sum_squares(Views tensors, Out total) {
  const int64_t chunks = (flat_size(tensors) + kChunk - 1) / kChunk;
  double* partial = static_cast<double*>(scratch(sizeof(double) * (chunks + 1)));
  if (!partial) return false;
  for (int64_t c = 0; c < chunks; ++c) partial[c] = 0;
  for_each_piece(tensors, [&](int64_t k, int64_t begin, int64_t end, int64_t chunk) {
    const View& t = tensors.items[k];
    partial[chunk] += t.dtype == DType::kFloat32
                          ? piece_sum_squares(data<float>(t) + begin, end - begin)
                          : piece_sum_squares(data<double>(t) + begin, end - begin);
  });
  double sum = 0;
  for (int64_t c = 0; c < chunks; ++c) sum += partial[c];
  *data<double>(total) = sum;
  return true;
}

void scale_tensors(Views tensors, double factor) {
  map_tensors(tensors, [=](auto v) { return v * static_cast<decltype(v[0] + 0)>(factor); });
}

void clamp_tensors(Views tensors, double low, double high) {
  map_tensors(tensors, [=](auto v) {
    using T = decltype(v[0] + 0);
    using V = decltype(v);
    return min_nan(max_nan(v, V{} + static_cast<T>(low)), V{} + static_cast<T>(high));
  });
}

}  // namespace grebe::GREBE_ISA
