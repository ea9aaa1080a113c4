// Optimizer steps: one launch over all parameters of a group.
//
// Idea: the rules are the CPU's (optim_rules.h), one element at a time. A launch takes the addresses
// of up to kMostTensors tensors in its parameters; a block updates one chunk of one tensor and finds
// it by bisection. So a model of many small tensors costs a few launches.
//
// Floor: memory. Bytes per float32 element: SGD 12, with momentum 20, Adam 28, Adagrad 20. Not
// measured on a device yet.
#include "kernels.cuh"

namespace grebe::cuda {
namespace {

#define FORMULA DEVICE
#include "../optim_rules.h"

constexpr int kMostTensors = 48;  // keeps the parameters of a launch below 4 KB
constexpr int64_t kChunk = 8192;  // elements per block

struct Tensors {
  int count;
  void* data[kStreams][kMostTensors];
  int64_t size[kMostTensors];
  int64_t first_chunk[kMostTensors + 1];  // tensor t owns the chunks from first_chunk[t] on
};

// The tensor that owns `chunk`.
DEVICE int tensor_of(const Tensors& t, int64_t chunk) {
  int low = 0, high = t.count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (t.first_chunk[middle] <= chunk)
      low = middle;
    else
      high = middle;
  }
  return low;
}

// f(stream pointers at the element) for this thread's elements of the block's chunk.
template <class T, class F>
DEVICE void for_each_element(const Tensors& t, F f) {
  const int64_t chunk = blockIdx.x;
  const int tensor = tensor_of(t, chunk);
  const int64_t begin = (chunk - t.first_chunk[tensor]) * kChunk, stop = begin + kChunk;
  const int64_t end = stop < t.size[tensor] ? stop : t.size[tensor];
  for (int64_t i = begin + threadIdx.x; i < end; i += blockDim.x) f(tensor, i);
}

template <class Rule>
constexpr bool kCorrected = false;
template <class T>
constexpr bool kCorrected<Adam<T>> = true;

// corrections: what the rule depends on that the device alone knows, or nullptr.
template <class T, class Rule>
__global__ void __launch_bounds__(kThreads)
    update(Tensors t, Rule rule, const double* corrections) {
  if constexpr (kCorrected<Rule>)
    if (corrections) rule.correct(corrections[0], corrections[1]);
  for_each_element<T>(t, [&](int tensor, int64_t i) {
    T v[kStreams];
#pragma unroll
    for (int s = 0; s < kStreams; ++s) {
      const T* p = static_cast<const T*>(t.data[s][tensor]);
      v[s] = p ? p[i] : T(0);
    }
    rule(v);
#pragma unroll
    for (int s = 0; s < kStreams; ++s) {
      T* p = static_cast<T*>(t.data[s][tensor]);
      if (p && s != kGrad) p[i] = v[s];
    }
  });
}

struct Scale {
  double factor;
  template <class T>
  DEVICE T operator()(T x) const {
    return x * static_cast<T>(factor);
  }
};
struct Clamp {
  double low, high;
  template <class T>
  DEVICE T operator()(T x) const {
    return min_nan(max_nan(x, static_cast<T>(low)), static_cast<T>(high));
  }
};
template <class T, class F>
__global__ void __launch_bounds__(kThreads) map(Tensors t, F f) {
  for_each_element<T>(t, [&](int tensor, int64_t i) {
    T* p = static_cast<T*>(t.data[kParam][tensor]);
    p[i] = f(p[i]);
  });
}

// partial[chunk] = sum of squares of the chunk's elements.
template <class T>
__global__ void __launch_bounds__(kThreads) chunk_sums(Tensors t, double* partial) {
  Shared shared;
  double* space = shared.take<double>(kThreads / 32);
  double sum = 0;
  for_each_element<T>(t, [&](int tensor, int64_t i) {
    const double x = static_cast<const T*>(t.data[kParam][tensor])[i];
    sum = fma(x, x, sum);
  });
  sum = block_combine(sum, space, Plus{});
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// One block: the sum of all partial sums, each thread's in order.
__global__ void __launch_bounds__(kThreads)
    add_chunks(const double* partial, int64_t n, double* total) {
  Shared shared;
  double* space = shared.take<double>(kThreads / 32);
  double sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += kThreads) sum += partial[i];
  sum = block_combine(sum, space, Plus{});
  if (threadIdx.x == 0) *total = sum;
}

// f(tensors of one dtype, their chunks) for all tensors of the lists, as many at a time as a launch
// takes.
template <class F>
void for_each_launch(const Views (&lists)[kStreams], DType dtype, const F& f) {
  Tensors t{};
  auto flush = [&] {
    if (t.count > 0) f(t, t.first_chunk[t.count]);
    t = Tensors{};
  };
  for (int64_t k = 0; k < lists[kParam].size; ++k) {
    const View& v = lists[kParam].items[k];
    const int64_t n = numel(v);
    if (v.dtype != dtype || n == 0) continue;
    for (int s = 0; s < kStreams; ++s)
      t.data[s][t.count] = lists[s].size ? lists[s].items[k].data : nullptr;
    t.size[t.count] = n;
    t.first_chunk[t.count + 1] = t.first_chunk[t.count] + divide_up(n, kChunk);
    if (++t.count == kMostTensors) flush();
  }
  flush();
}

template <template <class> class Rule, class Options>
void step(const char* name, const Views (&lists)[kStreams], const Options& o,
          const double* corrections = nullptr) {
  const Rule<float> single(o);
  for_each_launch(lists, DType::kFloat32, [&](const Tensors& t, int64_t chunks) {
    launch(name, update<float, Rule<float>>, static_cast<unsigned>(chunks), kThreads, 0, t, single,
           corrections);
  });
  const Rule<double> twice(o);
  for_each_launch(lists, DType::kFloat64, [&](const Tensors& t, int64_t chunks) {
    launch(name, update<double, Rule<double>>, static_cast<unsigned>(chunks), kThreads, 0, t, twice,
           corrections);
  });
}

template <class F>
void map_tensors(const char* name, Views tensors, F f) {
  const Views lists[kStreams] = {tensors, {}, {}, {}, {}};
  for_each_launch(lists, DType::kFloat32, [&](const Tensors& t, int64_t chunks) {
    launch(name, map<float, F>, static_cast<unsigned>(chunks), kThreads, 0, t, f);
  });
  for_each_launch(lists, DType::kFloat64, [&](const Tensors& t, int64_t chunks) {
    launch(name, map<double, F>, static_cast<unsigned>(chunks), kThreads, 0, t, f);
  });
}

}  // namespace

void sgd_step(Views params, Views grads, Views momentum_buffers, double lr, double momentum,
              double dampening, double weight_decay, bool nesterov, bool maximize, bool first) {
  step<Sgd>("SGD", {params, grads, momentum_buffers, {}, {}},
            SgdOptions{lr, momentum, dampening, weight_decay, nesterov, maximize, first});
}

void adam_step(Views params, Views grads, Views exp_avgs, Views exp_avg_sqs, Views max_exp_avg_sqs,
               OptIn corrections, double step_size, double beta1, double beta2, double eps,
               double weight_decay, double decay, double correction2, bool maximize) {
  step<Adam>("Adam", {params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs},
             AdamOptions{step_size, beta1, beta2, eps, weight_decay, decay, correction2,
                         max_exp_avg_sqs.size > 0, maximize},
             data<const double>(corrections));
}

void adamax_step(Views params, Views grads, Views exp_avgs, Views exp_infs, double step_size,
                 double beta1, double beta2, double eps, double weight_decay, bool maximize) {
  step<Adamax>("Adamax", {params, grads, exp_avgs, exp_infs, {}},
               AdamaxOptions{step_size, beta1, beta2, eps, weight_decay, maximize});
}

void nadam_step(Views params, Views grads, Views exp_avgs, Views exp_avg_sqs, double grad_step,
                double momentum_step, double beta1, double beta2, double eps, double weight_decay,
                double decay, double correction2, bool maximize) {
  step<Nadam>("NAdam", {params, grads, exp_avgs, exp_avg_sqs, {}},
              NadamOptions{grad_step, momentum_step, beta1, beta2, eps, weight_decay, decay,
                           correction2, maximize});
}

void adagrad_step(Views params, Views grads, Views sums, double lr, double weight_decay, double eps,
                  bool maximize) {
  step<Adagrad>("Adagrad", {params, grads, sums, {}, {}},
                AdagradOptions{lr, weight_decay, eps, maximize});
}

void rmsprop_step(Views params, Views grads, Views square_avgs, Views momentum_buffers,
                  Views grad_avgs, double lr, double alpha, double eps, double weight_decay,
                  double momentum, bool maximize) {
  step<Rmsprop>(
      "RMSprop", {params, grads, square_avgs, momentum_buffers, grad_avgs},
      RmspropOptions{lr, alpha, eps, weight_decay, momentum, grad_avgs.size > 0, maximize});
}

void adadelta_step(Views params, Views grads, Views square_avgs, Views acc_deltas, double lr,
                   double rho, double eps, double weight_decay, bool maximize) {
  step<Adadelta>("Adadelta", {params, grads, square_avgs, acc_deltas, {}},
                 AdadeltaOptions{lr, rho, eps, weight_decay, maximize});
}

bool sum_squares(Views tensors, Out total) {
  const Views lists[kStreams] = {tensors, {}, {}, {}, {}};
  int64_t chunks = 0;
  for (int64_t k = 0; k < tensors.size; ++k) chunks += divide_up(numel(tensors.items[k]), kChunk);
  double* const partial =
      static_cast<double*>(workspace(chunks * static_cast<int64_t>(sizeof(double))));
  double* next = partial;
  constexpr size_t kSpace = kThreads / 32 * sizeof(double);
  for_each_launch(lists, DType::kFloat32, [&](const Tensors& t, int64_t n) {
    launch("clip_grad_norm_", chunk_sums<float>, static_cast<unsigned>(n), kThreads, kSpace, t,
           next);
    next += n;
  });
  for_each_launch(lists, DType::kFloat64, [&](const Tensors& t, int64_t n) {
    launch("clip_grad_norm_", chunk_sums<double>, static_cast<unsigned>(n), kThreads, kSpace, t,
           next);
    next += n;
  });
  launch("clip_grad_norm_", add_chunks, 1, kThreads, kSpace, static_cast<const double*>(partial),
         chunks, data<double>(total));
  return true;
}

void scale_tensors(Views tensors, double factor) {
  map_tensors("scale_tensors", tensors, Scale{factor});
}

void clamp_tensors(Views tensors, double low, double high) {
  map_tensors("clamp_tensors", tensors, Clamp{low, high});
}

}  // namespace grebe::cuda
