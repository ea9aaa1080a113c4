// Recurrent layers: Elman RNN (tanh, relu), LSTM and GRU over whole sequences, forward and backward.
// Formulas, gates and the layout of sequences of different lengths are those of csrc/cpu/rnn.cpp.
//
// The products with the inputs of all steps come in `gates`; what is left is one product with the
// recurrent weight per step, and the arithmetic of the gates. Two ways:
//   clusters  on sm_90, where the weight fits the shared memory of kCluster blocks: a cluster takes up
//             to kMostRows sequences through all steps in one launch. Each block keeps the weight of
//             its units, and gives every new h (backward: the gates' gradients) to all blocks of the
//             cluster by way of distributed shared memory; one cluster barrier per step.
//   steps     else, and for sequences of different lengths: matmul and one kernel for the gates, per
//             step.
// (Appleyard et al., arXiv 1604.01946; Diamos et al., "Persistent RNNs", 2016.)
//
// Floor: 2 G H H operations per token (G = 1, 4, 3 gates); for few sequences the latency of a step: a
// barrier and the chain of H multiply-adds. Not measured on a device yet.
#include "kernels.cuh"

namespace grebe::cuda {

bool matmul(In a, In b, OptIn bias, Out c, int64_t activation, double beta);  // matmul.cu

namespace {

enum Mode : int { kTanh, kRelu, kLstm, kGru };

constexpr GREBE_EVERYWHERE bool is_plain(Mode mode) { return mode == kTanh || mode == kRelu; }
constexpr GREBE_EVERYWHERE int weight_gates(Mode mode) {
  return mode == kLstm ? 4 : mode == kGru ? 3 : 1;
}
constexpr GREBE_EVERYWHERE int stored_gates(Mode mode) { return is_plain(mode) ? 1 : 4; }
// Where gate `j` of the weight stands among the stored ones: GRU's third is W h' + b, kept apart.
constexpr GREBE_EVERYWHERE int stored_gate(Mode mode, int j) {
  return mode == kGru && j == 2 ? 3 : j;
}

// ---- one unit of one sequence ----

// From the sums of the gates to their values, and h. GRU: g[2] is the input's part of n, g[3] W h' + b;
// `before`: h'. c: LSTM's cell.
template <Mode kMode, class T>
DEVICE T cell(T (&g)[4], T* c, T before) {
  if (kMode == kTanh) return tanh(g[0]);
  if (kMode == kRelu) return max_nan(g[0], T(0));
  g[0] = sigmoid(g[0]);
  g[1] = sigmoid(g[1]);
  if (kMode == kLstm) {
    g[2] = tanh(g[2]);
    g[3] = sigmoid(g[3]);
    *c = fma(g[1], *c, g[0] * g[2]);
    return g[3] * tanh(*c);
  }
  g[2] = tanh(fma(g[0], g[3], g[2]));
  return fma(g[1], before - g[2], g[2]);
}

// The gradients `to` of the gates' sums from d, that of h. y: h (plain), c (LSTM), h' (GRU); before:
// c' of LSTM. dc: of c, then of c'. Returns what reaches h' past the gates.
template <Mode kMode, class T>
DEVICE T cell_backward(T d, const T (&g)[4], T y, T before, T* dc, T (&to)[4]) {
  if (kMode == kTanh) to[0] = d * fnma(y, y, T(1));
  if (kMode == kRelu) to[0] = select(y > 0, d, T(0));
  if (kMode == kLstm) {
    const T out = tanh(y), e = fma(d * g[3], fnma(out, out, T(1)), *dc);
    to[0] = e * g[2] * (g[0] * (1 - g[0]));
    to[1] = e * before * (g[1] * (1 - g[1]));
    to[2] = e * g[0] * fnma(g[2], g[2], T(1));
    to[3] = d * out * (g[3] * (1 - g[3]));
    *dc = e * g[1];
  }
  if (kMode != kGru) return 0;
  const T da = d * (1 - g[1]) * fnma(g[2], g[2], T(1));
  to[0] = da * g[3] * (g[0] * (1 - g[0]));
  to[1] = d * (y - g[2]) * (g[1] * (1 - g[1]));
  to[2] = da;
  to[3] = da * g[0];
  return d * g[1];
}

// ---- steps ----

// A state before a step: rows below `continued` are those of the step before, the others begin here.
template <class T>
struct Before {
  const T *previous, *initial;
  int64_t continued;
  DEVICE T at(int64_t row, int64_t columns, int64_t column) const {
    return (row < continued ? previous : initial)[row * columns + column];
  }
};

// The arrays of a step begin with its first row; gates has kStored * size columns.
template <Mode kMode, class T>
__global__ void __launch_bounds__(kThreads)
    step_forward(int64_t rows, int64_t size, T* gates, Before<T> before, T* h, T* c) {
  constexpr int kStored = stored_gates(kMode);
  for (int64_t i = thread_number(); i < rows * size; i += thread_count()) {
    const int64_t row = i / size, unit = i % size;
    T* at = gates + row * kStored * size + unit;
    T g[4] = {};
    for (int j = 0; j < kStored; ++j) g[j] = at[j * size];
    const T old = is_plain(kMode) ? T(0) : before.at(row, size, unit);
    T now = old;
    h[i] = cell<kMode>(g, &now, old);
    if (kMode == kLstm) c[i] = now;
    for (int j = 0; j < kStored && !is_plain(kMode); ++j) at[j * size] = g[j];
  }
}

// grad: of h by what comes after the layer, or all of it (`full`: then dh is not read). dh [rows, size].
template <Mode kMode, class T>
__global__ void __launch_bounds__(kThreads)
    step_backward(int64_t rows, int64_t size, const T* gates, const T* h, const T* c,
                  Before<T> before, const T* grad, bool full, T* dgates, T* dh, T* dc) {
  constexpr int kStored = stored_gates(kMode);
  for (int64_t i = thread_number(); i < rows * size; i += thread_count()) {
    const int64_t row = i / size, unit = i % size, at = row * kStored * size + unit;
    T g[4] = {}, to[4] = {};
    for (int j = 0; j < kStored && !is_plain(kMode); ++j) g[j] = gates[at + j * size];
    const T old = is_plain(kMode) ? T(0) : before.at(row, size, unit);
    const T y = kMode == kLstm ? c[i] : kMode == kGru ? old : h[i];
    T cell_gradient = kMode == kLstm ? dc[i] : T(0);
    const T d = full ? grad[i] : grad[i] + dh[i];
    const T through = cell_backward<kMode>(d, g, y, old, &cell_gradient, to);
    for (int j = 0; j < kStored; ++j) dgates[at + j * size] = to[j];
    if (kMode == kLstm) dc[i] = cell_gradient;
    if (kMode == kGru) dh[i] = through;
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) add_arrays(int64_t n, const T* a, const T* b, T* sum) {
  for (int64_t i = thread_number(); i < n; i += thread_count()) sum[i] = a[i] + b[i];
}

template <class T>
In matrix(DType dtype, const T* data, int64_t rows, int64_t columns, int64_t row_stride,
          int64_t column_stride = 1) {
  View v{const_cast<T*>(data), 2, dtype, {rows, columns}, {row_stride, column_stride}};
  return In{v};
}

// What both passes know. Steps are in the order of the recurrence.
template <class T>
struct Layer {
  DType dtype;
  const int64_t* offsets;
  int64_t steps, size, width;  // H; of h: H, or P with a projection
  bool reverse;
  const T *weight, *projection, *inner_bias, *h0, *c0;
  T *gates, *h, *c;

  int64_t time(int64_t step) const { return reverse ? steps - 1 - step : step; }
  int64_t first(int64_t step) const { return offsets[time(step)]; }
  int64_t rows(int64_t step) const { return offsets[time(step) + 1] - first(step); }
  int64_t continued(int64_t step) const {
    return step == 0 ? 0 : rows(step) < rows(step - 1) ? rows(step) : rows(step - 1);
  }
  Before<T> before(const T* states, const T* initial, int64_t columns, int64_t step) const {
    return {step == 0 ? initial : states + first(step - 1) * columns, initial, continued(step)};
  }
  bool equal_lengths() const {
    for (int64_t step = 1; step < steps; ++step)
      if (rows(step) != rows(0)) return false;
    return true;
  }
  // c = a b^T + beta c (`transposed`), else a b, for row-major matrices.
  void multiply(const T* a, int64_t a_row, int64_t m, int64_t k, const T* b, int64_t n,
                bool transposed, T* c, int64_t c_row, double beta, const T* bias = nullptr) const {
    OptIn bias_view{};
    if (bias) static_cast<View&>(bias_view) = View{const_cast<T*>(bias), 1, dtype, {n}, {1}};
    const In right = transposed ? matrix(dtype, b, k, n, 1, k) : matrix(dtype, b, k, n, n);
    const In to = matrix(dtype, c, m, n, c_row);
    matmul(matrix(dtype, a, m, k, a_row), right, bias_view, Out{to}, 0, beta);
  }
};

// gates += h' W^T for rows that are neighbours in memory.
template <Mode kMode, class T>
void add_hidden(const Layer<T>& p, const T* before, int64_t rows, T* gates) {
  const int64_t h = p.size, row = stored_gates(kMode) * h;
  const int64_t together = (kMode == kGru ? 2 : weight_gates(kMode)) * h;
  if (rows == 0) return;
  p.multiply(before, p.width, rows, p.width, p.weight, together, true, gates, row, 1);
  if (kMode == kGru)
    p.multiply(before, p.width, rows, p.width, p.weight + together * p.width, h, true,
               gates + 3 * h, row, 0, p.inner_bias);
}

template <Mode kMode, class T>
void forward_steps(const Layer<T>& p, T* full) {
  const int64_t row = stored_gates(kMode) * p.size;
  T* const target = full ? full : p.h;
  for (int64_t step = 0; step < p.steps; ++step) {
    const Scope scope;
    const int64_t first = p.first(step), rows = p.rows(step), border = p.continued(step);
    T* const gates = p.gates + first * row;
    const Before<T> h = p.before(p.h, p.h0, p.width, step);
    const Before<T> c = p.before(p.c, p.c0, p.size, step);
    if (p.weight) {
      add_hidden<kMode>(p, h.previous, border, gates);
      add_hidden<kMode>(p, p.h0 + border * p.width, rows - border, gates + border * row);
    }
    launch("rnn", step_forward<kMode, T>, blocks_for(rows * p.size, kThreads), kThreads, 0, rows,
           p.size, gates, kMode == kLstm ? c : h, target + first * p.size, p.c + first * p.size);
    if (full)
      p.multiply(full + first * p.size, p.size, rows, p.size, p.projection, p.width, true,
                 p.h + first * p.width, p.width, 0);
  }
}

template <class T>
struct Gradients {
  const T* h;
  T *dgates, *dh, *dc, *dprojected;
};

// dh of a step = dgates W, for GRU added to what its gates let through.
template <Mode kMode, class T>
void hidden_gradient(const Layer<T>& p, const T* dgates, int64_t rows, T* dh) {
  const int64_t h = p.size, row = stored_gates(kMode) * h;
  const int64_t together = (kMode == kGru ? 2 : weight_gates(kMode)) * h;
  p.multiply(dgates, row, rows, together, p.weight, p.width, false, dh, p.width, kMode == kGru);
  if (kMode == kGru)
    p.multiply(dgates + 3 * h, row, rows, h, p.weight + together * p.width, p.width, false, dh,
               p.width, 1);
}

template <Mode kMode, class T>
void backward_steps(const Layer<T>& p, const Gradients<T>& g) {
  const int64_t row = stored_gates(kMode) * p.size, bytes = sizeof(T);
  const int64_t sequences = p.steps ? p.offsets[1] : 0;
  T* const dfull = p.projection ? static_cast<T*>(workspace(sequences * p.size * bytes)) : nullptr;
  for (int64_t step = p.steps - 1; step >= 0; --step) {
    const Scope scope;
    const int64_t first = p.first(step), rows = p.rows(step);
    const T* grad = g.h + first * p.width;
    T* const dgates = g.dgates + first * row;
    if (p.projection) {
      T* const sum = g.dprojected + first * p.width;
      launch("rnn_backward", add_arrays<T>, blocks_for(rows * p.width, kThreads), kThreads, 0,
             rows * p.width, grad, static_cast<const T*>(g.dh), sum);
      p.multiply(sum, p.width, rows, p.width, p.projection, p.size, false, dfull, p.size, 0);
      grad = dfull;
    }
    const Before<T> before =
        kMode == kLstm ? p.before(p.c, p.c0, p.size, step) : p.before(p.h, p.h0, p.size, step);
    launch("rnn_backward", step_backward<kMode, T>, blocks_for(rows * p.size, kThreads), kThreads,
           0, rows, p.size, static_cast<const T*>(p.gates + first * row),
           static_cast<const T*>(p.h + first * p.size), static_cast<const T*>(p.c + first * p.size),
           before, grad, p.projection != nullptr, dgates, g.dh, g.dc);
    if (p.weight) hidden_gradient<kMode>(p, dgates, rows, g.dh);
  }
}

// ---- clusters ----

constexpr int kCluster = 8, kMostRows = 8;
constexpr int64_t kSharedMost = 227 << 10;
constexpr int64_t kManySequences = 256;  // more: products of whole steps use the device better

// How the units are shared out among the blocks of a cluster, and what a block keeps.
struct Units {
  int size, per_block, depth, columns;  // columns of this block's product, its depth in packs of 4

  GREBE_EVERYWHERE Units(int size, int gates, bool backward)
      : size(size),
        per_block((size + kCluster - 1) / kCluster),
        depth(((backward ? gates : 1) * size + 3) / 4),
        columns((backward ? 1 : gates) * per_block) {}
  // Threads that share a column's depth, and columns side by side.
  GREBE_EVERYWHERE int lanes() const {
    return columns >= kThreads ? kThreads : (columns + 31) / 32 * 32;
  }
  GREBE_EVERYWHERE int groups() const { return kThreads / lanes(); }
  template <class T>
  int64_t shared_bytes(int rows) const {
    const int64_t weight = int64_t{4} * depth * columns, states = int64_t{2} * rows * depth * 4;
    const int64_t partials = int64_t{1} * groups() * rows * columns,
                  own = int64_t{2} * rows * per_block;
    return static_cast<int64_t>(sizeof(T)) * (weight + states + partials + own) + 5 * 16;
  }
};

template <class T>
struct Persistent {
  const T *weight, *inner_bias, *h0, *c0;
  T *gates, *h, *c;
  Gradients<T> gradients;
  int steps, batch, size;
  bool reverse;

  DEVICE int64_t token(int step, int row) const {
    return static_cast<int64_t>(reverse ? steps - 1 - step : step) * batch + row;
  }
  DEVICE T before(const T* states, const T* initial, int step, int row, int unit) const {
    return step == 0 ? initial[static_cast<int64_t>(row) * size + unit]
                     : states[token(step - 1, row) * size + unit];
  }
};

// The product of kRows states with the block's part of the weight, in the memory of a block.
template <class T, int kRows>
struct Product {
  using Four = Pack<T, 4>;
  const Units units;
  Four *weight, *states;  // [depth][columns]; two buffers of [kRows][depth]
  T* partials;  // [groups][kRows][columns]

  DEVICE Product(Shared& shared, const Units& units) : units(units) {
    weight = shared.take<Four>(units.depth * units.columns);
    states = shared.take<Four>(2 * kRows * units.depth);
    partials = shared.take<T>(units.groups() * kRows * units.columns);
  }
  DEVICE T* state(int buffer, int row) {
    return reinterpret_cast<T*>(states + (buffer * kRows + row) * units.depth);
  }
  // f(k, column): the weight; 0 beyond its borders.
  template <class F>
  DEVICE void keep_weight(F f, bool along_k) {
    const int n = units.depth * 4 * units.columns, depth = units.depth * 4;
    for (int i = threadIdx.x; i < n; i += kThreads) {
      const int k = along_k ? i % depth : i / units.columns;
      const int column = along_k ? i / depth : i % units.columns;
      weight[k / 4 * units.columns + column].v[k % 4] = f(k, column);
    }
    for (int i = threadIdx.x; i < 2 * kRows * depth; i += kThreads) state(0, 0)[i] = 0;
  }
  DEVICE void multiply(int buffer) {
    const int lanes = units.lanes(), group = threadIdx.x / lanes, groups = units.groups();
    const int begin = units.depth * group / groups, end = units.depth * (group + 1) / groups;
    const Four* state = states + buffer * kRows * units.depth;
    for (int column = threadIdx.x % lanes; column < units.columns && group < groups;
         column += lanes) {
      T sum[kRows] = {};
      for (int k = begin; k < end; ++k) {
        const Four w = weight[k * units.columns + column];
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          const Four s = state[r * units.depth + k];
#pragma unroll
          for (int e = 0; e < 4; ++e) sum[r] = fma(w.v[e], s.v[e], sum[r]);
        }
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r)
        partials[(group * kRows + r) * units.columns + column] = sum[r];
    }
    __syncthreads();
  }
  DEVICE T result(int row, int column) const {
    T sum = 0;
    for (int g = 0; g < units.groups(); ++g)
      sum += partials[(g * kRows + row) * units.columns + column];
    return sum;
  }
  // x becomes element k of a row's state in all blocks of the cluster.
  DEVICE void give(int buffer, int row, int k, T x) {
    T* const place = state(buffer, row) + k;
    for (int rank = 0; rank < kCluster; ++rank) *in_block(place, rank) = x;
  }
};

// f(row in the cluster, sequence, unit in the block, unit) for this thread's units and sequences.
template <int kRows, class F>
DEVICE void each_unit(const Units& units, int batch, F f) {
  const int first_row = static_cast<int>(blockIdx.x) / kCluster * kRows;
  const int first_unit = cluster_rank() * units.per_block;
  for (int i = threadIdx.x; i < kRows * units.per_block; i += kThreads) {
    const int r = i / units.per_block, u = i % units.per_block;
    if (first_row + r < batch && first_unit + u < units.size)
      f(r, first_row + r, u, first_unit + u);
  }
}

template <Mode kMode, class T, int kRows>
__global__ void __launch_bounds__(kThreads, 1) forward_clusters(Persistent<T> p) {
  constexpr int kGates = weight_gates(kMode), kStored = stored_gates(kMode);
  Shared shared;
  const Units units(p.size, kGates, false);
  Product<T, kRows> product(shared, units);
  T* const cells = shared.take<T>(kRows * units.per_block);
  const int first_unit = cluster_rank() * units.per_block;
  product.keep_weight(
      [&](int k, int column) {
        const int gate = column / units.per_block, unit = first_unit + column % units.per_block;
        const bool valid = k < p.size && unit < p.size;
        return valid ? p.weight[(static_cast<int64_t>(gate) * p.size + unit) * p.size + k] : T(0);
      },
      true);
  cluster_barrier();
  each_unit<kRows>(units, p.batch, [&](int r, int row, int u, int unit) {
    const int64_t at = static_cast<int64_t>(row) * p.size + unit;
    product.give(0, r, unit, p.h0[at]);
    if (kMode == kLstm) cells[r * units.per_block + u] = p.c0[at];
  });
  cluster_barrier();
  for (int step = 0; step < p.steps; ++step) {
    product.multiply(step % 2);
    each_unit<kRows>(units, p.batch, [&](int r, int row, int u, int unit) {
      const int64_t token = p.token(step, row);
      T* const gates = p.gates + token * kStored * p.size + unit;
      T g[4] = {};
      for (int j = 0; j < kStored; ++j)
        if (kMode != kGru || j < 3) g[j] = gates[j * p.size];
      if (kMode == kGru && p.inner_bias) g[3] = p.inner_bias[unit];
      for (int j = 0; j < kGates; ++j)
        g[stored_gate(kMode, j)] += product.result(r, j * units.per_block + u);
      T now = kMode == kLstm ? cells[r * units.per_block + u] : T(0);
      const T h = cell<kMode>(g, &now, product.state(step % 2, r)[unit]);
      p.h[token * p.size + unit] = h;
      if (kMode == kLstm) cells[r * units.per_block + u] = p.c[token * p.size + unit] = now;
      for (int j = 0; j < kStored && !is_plain(kMode); ++j) gates[j * p.size] = g[j];
      product.give((step + 1) % 2, r, unit, h);
    });
    cluster_barrier();
  }
}

template <Mode kMode, class T, int kRows>
__global__ void __launch_bounds__(kThreads, 1) backward_clusters(Persistent<T> p) {
  constexpr int kGates = weight_gates(kMode), kStored = stored_gates(kMode);
  Shared shared;
  const Units units(p.size, kGates, true);
  Product<T, kRows> product(shared, units);
  T* const dh = shared.take<T>(kRows * units.per_block);
  T* const dc = shared.take<T>(kRows * units.per_block);
  const int first_unit = cluster_rank() * units.per_block;
  product.keep_weight(
      [&](int k, int column) {
        const bool valid = k < kGates * p.size && first_unit + column < p.size;
        return valid ? p.weight[static_cast<int64_t>(k) * p.size + first_unit + column] : T(0);
      },
      false);
  cluster_barrier();
  const Gradients<T>& to = p.gradients;
  each_unit<kRows>(units, p.batch, [&](int r, int row, int u, int unit) {
    const int64_t at = static_cast<int64_t>(row) * p.size + unit;
    dh[r * units.per_block + u] = to.dh[at];
    dc[r * units.per_block + u] = kMode == kLstm ? to.dc[at] : T(0);
  });
  for (int step = p.steps - 1; step >= 0; --step) {
    each_unit<kRows>(units, p.batch, [&](int r, int row, int u, int unit) {
      const int64_t at = p.token(step, row) * p.size + unit;
      const int64_t gate = p.token(step, row) * kStored * p.size + unit;
      const int own = r * units.per_block + u;
      T g[4] = {}, dgates[4] = {};
      for (int j = 0; j < kStored && !is_plain(kMode); ++j) g[j] = p.gates[gate + j * p.size];
      const T old = is_plain(kMode) ? T(0)
                                    : p.before(kMode == kLstm ? p.c : p.h,
                                               kMode == kLstm ? p.c0 : p.h0, step, row, unit);
      const T y = kMode == kLstm ? p.c[at] : kMode == kGru ? old : p.h[at];
      dh[own] = cell_backward<kMode>(to.h[at] + dh[own], g, y, old, dc + own, dgates);
      for (int j = 0; j < kStored; ++j) to.dgates[gate + j * p.size] = dgates[j];
      for (int j = 0; j < kGates; ++j)
        product.give(step % 2, r, j * p.size + unit, dgates[stored_gate(kMode, j)]);
    });
    cluster_barrier();
    product.multiply(step % 2);
    each_unit<kRows>(units, p.batch, [&](int r, int, int u, int) {
      dh[r * units.per_block + u] += product.result(r, u);
    });
    __syncthreads();
  }
  each_unit<kRows>(units, p.batch, [&](int r, int row, int u, int unit) {
    const int64_t at = static_cast<int64_t>(row) * p.size + unit;
    to.dh[at] = dh[r * units.per_block + u];
    if (kMode == kLstm) to.dc[at] = dc[r * units.per_block + u];
  });
  cluster_barrier();  // no block ends while others may still write to it
}

template <Mode kMode, int kRows, class T>
void launch_clusters_of(const Persistent<T>& p, bool backward) {
  const Units units(p.size, weight_gates(kMode), backward);
  const unsigned blocks = blocks_for(p.batch, kRows) * kCluster;
  launch_clusters(backward ? "rnn_backward" : "rnn", kCluster,
                  backward ? backward_clusters<kMode, T, kRows> : forward_clusters<kMode, T, kRows>,
                  blocks, kThreads, static_cast<size_t>(units.shared_bytes<T>(kRows)), p);
}

// False: not for clusters.
template <Mode kMode, class T>
bool run_clusters(const Layer<T>& p, const Gradients<T>* gradients) {
  const int64_t batch = p.steps ? p.rows(0) : 0;
  if (compute_capability() != 90 || p.steps < 2 || !p.weight || p.projection) return false;
  if (batch == 0 || batch > kManySequences || p.size > 4096 || !p.equal_lengths()) return false;
  int rows = 1;
  while (rows < kMostRows && divide_up(batch, rows) * kCluster > multiprocessors()) rows *= 2;
  const Units units(static_cast<int>(p.size), weight_gates(kMode), gradients != nullptr);
  if (units.shared_bytes<T>(rows) > kSharedMost) return false;
  Persistent<T> q{p.weight, p.inner_bias, p.h0, p.c0, p.gates, p.h, p.c, {}, 0, 0, 0, p.reverse};
  if (gradients) q.gradients = *gradients;
  q.steps = static_cast<int>(p.steps);
  q.batch = static_cast<int>(batch);
  q.size = static_cast<int>(p.size);
  switch (rows) {
    case 1: launch_clusters_of<kMode, 1>(q, gradients != nullptr); break;
    case 2: launch_clusters_of<kMode, 2>(q, gradients != nullptr); break;
    case 4: launch_clusters_of<kMode, 4>(q, gradients != nullptr); break;
    default: launch_clusters_of<kMode, 8>(q, gradients != nullptr); break;
  }
  return true;
}

// ---- dispatch ----

// f(type, mode) with both as constants.
template <class F>
void with_mode(const char* name, DType dtype, int64_t mode, const F& f) {
  auto typed = [&](auto zero) {
    switch (mode) {
      case kTanh: return f(zero, std::integral_constant<Mode, kTanh>{});
      case kRelu: return f(zero, std::integral_constant<Mode, kRelu>{});
      case kLstm: return f(zero, std::integral_constant<Mode, kLstm>{});
      default: return f(zero, std::integral_constant<Mode, kGru>{});
    }
  };
  if (dtype == DType::kFloat32) return typed(float{});
  if (dtype == DType::kFloat64) return typed(double{});
  unsupported(name, dtype);
}

template <class T>
Layer<T> layer_of(const View& weight, const View& projection, const View& h0, const View& c0,
                  const View& offsets, const View& gates, const View& h, const View& c,
                  int64_t size, bool reverse) {
  return {h.dtype,     data<int64_t>(offsets), offsets.shape[0] - 1, size,      h0.shape[1],
          reverse,     data<T>(weight),        data<T>(projection),  nullptr,   data<T>(h0),
          data<T>(c0), data<T>(gates),         data<T>(h),           data<T>(c)};
}

}  // namespace

bool rnn(OptIn x, OptIn, OptIn weight, OptIn projection, OptIn, OptIn inner_bias, In h0, OptIn c0,
         HostIn offsets, OptOut gates, Out h, OptOut c, OptOut full, int64_t size, int64_t mode,
         bool reverse) {
  if (x.data || !gates.data) throw Error("rnn: expects the product with the inputs in gates");
  with_mode("rnn", h.dtype, mode, [&](auto zero, auto m) {
    using T = decltype(zero);
    Layer<T> p = layer_of<T>(weight, projection, h0, c0, offsets, gates, h, c, size, reverse);
    p.inner_bias = data<T>(inner_bias);
    if (!run_clusters<m(), T>(p, nullptr)) forward_steps<m()>(p, data<T>(full));
  });
  return true;
}

bool rnn_backward(OptIn weight, OptIn projection, In h0, OptIn c0, HostIn offsets, OptIn gates,
                  In h, OptIn c, In grad, Out dgates, Out dh, OptOut dc, OptOut dprojected,
                  int64_t size, int64_t mode, bool reverse) {
  with_mode("rnn_backward", h.dtype, mode, [&](auto zero, auto m) {
    using T = decltype(zero);
    const Layer<T> p = layer_of<T>(weight, projection, h0, c0, offsets, gates, h, c, size, reverse);
    const Gradients<T> g{data<T>(grad), data<T>(dgates), data<T>(dh), data<T>(dc),
                         data<T>(dprojected)};
    if (!run_clusters<m(), T>(p, &g)) backward_steps<m()>(p, g);
  });
  return true;
}

}  // namespace grebe::cuda
