// Recurrent layers: Elman RNN (tanh, relu), LSTM and GRU over whole sequences, forward and backward.
//
//   RNN    h = act(x_t + W h')
//   LSTM   i, f, o = sigmoid(...), g = tanh(...) of x_t + W h';  c = f c' + i g;  h = o tanh(c)
//   GRU    r, z = sigmoid(x_t + W h');  n = tanh(x_t + r (W h' + b));  h = (1 - z) n + z h'
//
// x_t = W_ih x + biases. Per step one skinny product with W and W_ih, and the gate arithmetic on the
// tile while it is in registers. Both are packed once per sequence so that a tile's columns are the
// gates of the same units:
//   panel [k][gate][unit of the vector], for one vector of units (RNN: kVectors of them),
//   first the k of the input, then those of h'.
// With few sequences W_ih would be read for too few rows per step: then one product for all steps
// (matmul) has put x_t into `gates`. They receive what backward needs: activated gates (GRU: r, z, n
// and W h' + b).
// Backward walks the steps the other way: gate arithmetic to `dgates`, then dh' = dgates W. The
// gradients of weights and inputs are products over all steps, made by the caller.
//
// Sequences may have different lengths, sorted from long to short: step t has the rows
// [offsets[t], offsets[t + 1]) of all arrays, row b of it belonging to sequence b.
//
// Threads split either the sequences (no thread ever waits for another), or, where there are few of
// them or W would not stay in a core's L2, the units (one barrier per step). Each element is one
// chain of multiply-adds over k in both ways: the same bits for any number of threads.
// Floor: 2 G H^2 operations per token and direction of the pass (G = 1, 4, 3 gates); for one
// sequence the bytes of W per step. Reached: see docs/kernels/rnn.md.
#include "gemm.h"
#include "simd_math.h"

namespace grebe::GREBE_ISA {
namespace {

enum Mode : int64_t { kTanh, kRelu, kLstm, kGru };

constexpr int kRegisterTiles = kVectors == 4 ? 24 : 12;  // accumulators that fit the registers
constexpr int64_t kResident = 768 << 10;  // bytes of W that stay in a core's L2 beside the rest

constexpr bool is_plain(Mode mode) { return mode == kTanh || mode == kRelu; }
constexpr int weight_gates(Mode mode) { return mode == kLstm ? 4 : mode == kGru ? 3 : 1; }
constexpr int stored_gates(Mode mode) { return is_plain(mode) ? 1 : 4; }

// Calls f with n, 1 <= n <= kMost, as a constant.
template <int kMost, class F>
[[gnu::always_inline]] inline void with_constant(int64_t n, const F& f) {
  if constexpr (kMost > 1) {
    if (n < kMost) return with_constant<kMost - 1>(n, f);
  }
  f(std::integral_constant<int, kMost>{});
}

template <class T>
inline vec<T> load_some(const T* p, int64_t n) {
  return n == lanes<T> ? load(p) : load_n(p, n);
}
template <class T>
inline void store_some(T* p, vec<T> v, int64_t n) {
  if (n == lanes<T>)
    store(p, v);
  else
    store_n(p, v, n);
}

// Within 4 ulp instead of 2, with half of the operations: the gates cost as much as the product when
// H is small. e^x = 2^k (1 + p):
template <class V>
inline ExpParts<V> gate_exp(V x) {
  using M = math<V>;
  const V shift = integer_shift(x);
  const V t = fma(x, splat(M::kLog2e), shift);
  const V n = t - shift;
  const V r = fnma(n, splat(M::kLn2Low), fnma(n, splat(M::kLn2High), x));
  return {n, fma(r * r, polynomial(r, M::kExp), r), as_int(t) - as_int(shift)};
}
template <class V>
inline V gate_sigmoid(V x) {
  const ExpParts<V> e = gate_exp(exp_clamp(-x));
  return 1 / (1 + scale(1 + e.p, e.n, e.k));
}
// p / (p + 2) with p = e^2x - 1, exact near 0.
template <class V>
inline V gate_tanh(V x) {
  const V most = splat(math<V>::kTanhOne);
  const ExpParts<V> e = gate_exp(2 * min(most, max(-most, x)));
  const V power = power_of_two<V>(e.k), p = fma(e.p, power, power - 1);
  return p / (p + 2);
}

// The steps of a batch of sequences, in the order in which the recurrence visits them.
struct Steps {
  const int64_t* offsets;
  int64_t steps;
  bool reverse;

  int64_t time(int64_t s) const { return reverse ? steps - 1 - s : s; }
  int64_t rows(int64_t t) const { return offsets[t + 1] - offsets[t]; }
  int64_t before(int64_t t) const { return reverse ? t + 1 : t - 1; }
  int64_t sequences() const { return steps ? rows(0) : 0; }
  // Sequences below this number were in the step before as well; the others begin here.
  int64_t continued(int64_t t) const {
    const int64_t p = before(t);
    return p < 0 || p >= steps ? 0 : smaller(rows(t), rows(p));
  }
  int64_t tokens_below(int64_t row) const {
    int64_t sum = 0;
    for (int64_t t = 0; t < steps; ++t) sum += smaller(row, rows(t));
    return sum;
  }
  // The first of the sequences that part `i` of `parts` takes: parts have equal numbers of tokens.
  int64_t part(int64_t i, int64_t parts) const {
    const int64_t wanted = offsets[steps] * i / parts;
    int64_t low = 0, high = sequences();
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (tokens_below(middle) < wanted)
        low = middle + 1;
      else
        high = middle;
    }
    return low;
  }
};

// What a thread does in every step: some sequences, some panels of units.
struct Share {
  int64_t row, end_row, panel, end_panel;
};

template <class T, Mode kMode>
struct Layer {
  static constexpr int kStored = stored_gates(kMode);
  Steps steps;
  int64_t size;  // H
  const T* weight;  // [gates * H, H]; nullptr: its product is in `gates` already
  const T *h0, *c0;
  int64_t inputs;  // 0: their product is in `gates` already
  T* panels;

  int64_t row_size() const { return kStored * size; }
  const T* at(const T* states, const T* initial, int64_t t, int64_t row) const {
    if (row >= steps.continued(t)) return initial + row * size;
    return states + (steps.offsets[steps.before(t)] + row) * size;
  }

  // Few threads for little work; units are split where sequences are few or W is large.
  int threads(bool* split_units, int64_t panel_count) const {
    const int64_t b = steps.sequences(), per_token = weight_gates(kMode) * size * (inputs + size);
    const int most = num_threads();
    *split_units = b < 6 * most || per_token * static_cast<int64_t>(sizeof(T)) > kResident;
    const int64_t work = *split_units ? per_token * b : per_token * steps.offsets[steps.steps];
    if (!panels || work < kParallelWork) return 1;
    return static_cast<int>(smaller(most, *split_units ? panel_count : b));
  }

  Share share(int thread, int team, bool split_units, int64_t panel_count) const {
    const int64_t b = steps.sequences();
    if (split_units) return {0, b, panel_count * thread / team, panel_count * (thread + 1) / team};
    return {steps.part(thread, team), thread + 1 == team ? b : steps.part(thread + 1, team), 0,
            panel_count};
  }

  // pack(panel) on all threads, then step(time, share) for every step, in the order of `visit`.
  template <class Visit, class Pack, class Step>
  void run(int64_t panel_count, bool wait_within, const Visit& visit, const Pack& pack,
           const Step& step) {
    bool split_units;
    const int team_size = threads(&split_units, panel_count);
    Barrier barrier;
    parallel_region(team_size, [&](int thread, int team) {
      auto wait = [&] {
        if (team > 1) barrier.wait(team);
      };
      if (panels)
        for (int64_t p = panel_count * thread / team; p < panel_count * (thread + 1) / team; ++p)
          pack(p);
      wait();
      const Share mine = share(thread, team, split_units, panel_count);
      for (int64_t s = 0; s < steps.steps; ++s) {
        const int64_t t = visit(s);
        step(t, mine, [&] {
          if (split_units && wait_within) wait();
        });
        if (split_units && !wait_within) wait();
      }
    });
  }
};

// f(row, number) for tiles of at most `most` rows, as even as can be.
template <class F>
inline void each_tile(int64_t row, int64_t end, int64_t most, const F& f) {
  if (row >= end) return;
  const int64_t count = divide_up(end - row, most), n = end - row;
  for (int64_t i = 0; i < count; ++i) f(row + n * i / count, n * (i + 1) / count - n * i / count);
}

// ---- forward ----

template <class T, Mode kMode>
struct Forward : Layer<T, kMode> {
  using Base = Layer<T, kMode>;
  using Base::c0, Base::h0, Base::inputs, Base::panels, Base::row_size, Base::size, Base::steps,
      Base::weight;
  static constexpr int64_t L = lanes<T>;
  static constexpr int V = is_plain(kMode) ? kVectors : weight_gates(kMode);
  static constexpr int kTileRows = kRegisterTiles / V;
  static constexpr int64_t kUnits = is_plain(kMode) ? kVectors * L : L;  // of a panel
  const T *x, *w_ih;  // [tokens, inputs], [gates * H, inputs]; used if inputs > 0
  const T *bias, *inner_bias;  // of x_t (used if inputs > 0), of W h' in GRU; may be nullptr
  T *gates, *h, *c;  // gates may be nullptr if inputs > 0

  int64_t panel_count() const { return divide_up(size, kUnits); }
  int64_t panel_size() const { return (inputs + size) * V * L; }

  // Vector v of a panel: its distance from the first unit in a row of gates, how many of the `n`
  // units it has.
  int64_t offset(int v) const { return v * (is_plain(kMode) ? L : size); }
  static int64_t valid(int v, int64_t n) {
    const int64_t left = is_plain(kMode) ? n - v * L : n;
    return left < 0 ? 0 : smaller(left, L);
  }

  void pack(int64_t panel) const {
    T* to = panels + panel * panel_size();
    if (inputs) pack_rows(to, panel, w_ih, inputs);
    if (weight) pack_rows(to + inputs * V * L, panel, weight, size);
  }
  void pack_rows(T* to, int64_t panel, const T* from, int64_t depth) const {
    const int64_t unit = panel * kUnits;
    for (int v = 0; v < V; ++v) {
      const int64_t cols = valid(v, size - unit);
      if (cols == 0)
        fill_column(to + v * L, depth);
      else
        transpose_columns(to + v * L, V * L, from + (offset(v) + unit) * depth, depth, cols, depth);
    }
  }
  static void fill_column(T* to, int64_t depth) {
    for (int64_t k = 0; k < depth; ++k) store(to + k * V * L, vec<T>{});
  }

  // From the sums of R rows to their gates and states. `row` is the first, `apart` GRU's product of
  // the third gate with x. In two passes: within one row the functions wait for each other.
  template <int R>
  [[gnu::always_inline]] void finish(vec<T> (&acc)[R][V], const vec<T> (&apart)[R], int64_t row,
                                     int64_t unit, int64_t n, const T* before) const {
    T* g = gates + row * row_size() + unit;
    T* to = h + row * size + unit;
    if constexpr (is_plain(kMode)) {
      for (int i = 0; i < R; ++i)
        for (int v = 0; v < V && valid(v, n); ++v)
          store_some(to + i * size + v * L,
                     kMode == kTanh ? gate_tanh(acc[i][v]) : max_nan(acc[i][v], vec<T>{}),
                     valid(v, n));
    } else if constexpr (kMode == kLstm) {
      for (int i = 0; i < R; ++i)
        for (int v = 0; v < V; ++v)
          acc[i][v] = v == 2 ? gate_tanh(acc[i][v]) : gate_sigmoid(acc[i][v]);
      for (int i = 0; i < R; ++i) {
        const vec<T> in = acc[i][0], forget = acc[i][1], a = acc[i][2], out = acc[i][3];
        const vec<T> cell = fma(forget, load_some(before + i * size + unit, n), in * a);
        store_gates(g + i * row_size(), n, in, forget, a, out);
        store_some(c + (row + i) * size + unit, cell, n);
        store_some(to + i * size, out * gate_tanh(cell), n);
      }
    } else {
      for (int i = 0; i < R; ++i) {
        acc[i][0] = gate_sigmoid(acc[i][0]);
        acc[i][1] = gate_sigmoid(acc[i][1]);
      }
      for (int i = 0; i < R; ++i) {
        const vec<T> r = acc[i][0], z = acc[i][1], inner = acc[i][2];
        const vec<T> a = gate_tanh(fma(r, inner, apart[i]));
        store_gates(g + i * row_size(), n, r, z, a, inner);
        store_some(to + i * size, fma(z, load_some(before + i * size + unit, n) - a, a), n);
      }
    }
  }
  void store_gates(T* g, int64_t n, vec<T> first, vec<T> second, vec<T> third,
                   vec<T> fourth) const {
    if (!gates) return;
    store_some(g, first, n);
    store_some(g + size, second, n);
    store_some(g + 2 * size, third, n);
    store_some(g + 3 * size, fourth, n);
  }

  // What finish will read or write, while the product is computed: rows lie pages apart.
  void fetch(int64_t row, int64_t rows, int64_t unit) const {
    if (!gates) return;
    for (int64_t i = row; i < row + rows; ++i)
      for (int v = 0; v < V; ++v) __builtin_prefetch(gates + i * row_size() + unit + offset(v), 1);
  }

  // acc[i][v] += the product with x, which starts from the bias.
  template <int R>
  [[gnu::always_inline]] void multiply_inputs(int64_t row, int64_t unit, int64_t n, const T* panel,
                                              vec<T> (&acc)[R][V]) const {
    if (bias)
      for (int v = 0; v < V; ++v) {
        const vec<T> start = load_some(bias + unit + offset(v), valid(v, n));
        for (int i = 0; i < R; ++i) acc[i][v] = start;
      }
    multiply_add<T, R, V, false>(inputs, x + row * inputs, inputs, 1, panel, V * L, 0, acc);
  }

  // Adds what `gates` hold of x (and, without weight, of h') to the sums.
  template <int R>
  [[gnu::always_inline]] void add_gates(int64_t row, int64_t unit, int64_t n, vec<T> (&acc)[R][V],
                                        vec<T> (&apart)[R]) const {
    for (int i = 0; i < R; ++i) {
      const T* g = gates + (row + i) * row_size() + unit;
      for (int v = 0; v < V; ++v) {
        const vec<T> stored = load_some(g + offset(v), valid(v, n));
        if (kMode == kGru && v == 2)
          apart[i] = stored;
        else
          acc[i][v] = acc[i][v] + stored;
      }
      if (kMode == kGru && !weight) acc[i][2] = load_some(g + 3 * size, n);
    }
  }

  template <int R>
  void tile(int64_t t, int64_t b, int64_t panel) const {
    const int64_t unit = panel * kUnits, n = smaller(kUnits, size - unit);
    const int64_t row = steps.offsets[t] + b;
    const T* before = Base::at(h, h0, t, b);
    const T* packed = panels + panel * panel_size();
    fetch(row, R, unit);
    vec<T> acc[R][V] = {}, apart[R] = {};
    if (inputs) multiply_inputs(row, unit, n, packed, acc);
    if constexpr (kMode == kGru) {
      const vec<T> start = inner_bias ? load_some(inner_bias + unit, n) : vec<T>{};
      for (int i = 0; i < R; ++i) {
        apart[i] = acc[i][2];
        acc[i][2] = start;
      }
    }
    if (weight)
      multiply_add<T, R, V, false>(size, before, size, 1, packed + inputs * V * L, V * L, 0, acc);
    if (!inputs) add_gates(row, unit, n, acc, apart);
    finish(acc, apart, row, unit, n, kMode == kLstm ? Base::at(c, c0, t, b) : before);
  }

  // Few rows at a time where W is near enough: their gates then stay in L1 from panel to panel.
  void rows(int64_t t, const Share& mine, int64_t begin, int64_t end) const {
    const bool near = row_size() * (inputs + size) * static_cast<int64_t>(sizeof(T)) <= kResident;
    const int64_t block = near ? 8 * kTileRows : end - begin;
    for (; begin < end; begin += block)
      for (int64_t p = mine.panel; p < mine.end_panel; ++p)
        each_tile(begin, smaller(begin + block, end), kTileRows, [&](int64_t row, int64_t n) {
          with_constant<kTileRows>(n, [&](auto r) { tile<r>(t, row, p); });
        });
  }

  void step(int64_t t, const Share& mine) const {
    const int64_t end = smaller(mine.end_row, steps.rows(t)), border = steps.continued(t);
    rows(t, mine, mine.row, smaller(border, end));
    rows(t, mine, mine.row < border ? border : mine.row, end);
  }

  bool run() {
    if (weight || inputs) {
      panels =
          static_cast<T*>(scratch(static_cast<size_t>(panel_count() * panel_size()) * sizeof(T)));
      if (!panels) return false;
    }
    Base::run(
        panel_count(), false, [&](int64_t s) { return steps.time(s); }, [&](int64_t p) { pack(p); },
        [&](int64_t t, const Share& mine, auto) { step(t, mine); });
    return true;
  }
};

// ---- backward ----

template <class T, Mode kMode>
struct Backward : Layer<T, kMode> {
  using Base = Layer<T, kMode>;
  using Base::c0, Base::h0, Base::panels, Base::size, Base::steps, Base::weight;
  static constexpr int64_t L = lanes<T>, C = kCols<T>;
  const T *gates, *h, *c, *grad;  // grad: of h, of every step
  T *dgates, *dh, *dc;  // dh, dc: of the state after a step, then before it

  int64_t panel_count() const { return divide_up(size, C); }
  int64_t depth() const { return weight_gates(kMode) * size; }

  void pack(int64_t panel) const {
    const int64_t cols = smaller(C, size - panel * C);
    PackRight<T>{weight, size, 1}(panels + panel * C * depth(), panel * C, cols, 0, depth());
  }

  // The gate arithmetic of one vector of units in one row; b: the sequence.
  void vector(int64_t t, int64_t b, int64_t unit, int64_t n) const {
    const int64_t row = steps.offsets[t] + b;
    const T* g = gates + row * Base::row_size() + unit;
    T* to = dgates + row * Base::row_size() + unit;
    T* state = dh + b * size + unit;
    const vec<T> one = splat(T(1));
    const vec<T> d = load_some(grad + row * size + unit, n) + load_some(state, n);
    if constexpr (is_plain(kMode)) {
      const vec<T> y = load_some(h + row * size + unit, n);
      if constexpr (kMode == kTanh)
        store_some(to, d * fnma(y, y, one), n);
      else
        store_some(to, select(y > vec<T>{}, d, vec<T>{}), n);
    } else if constexpr (kMode == kLstm) {
      const vec<T> i = load_some(g, n), f = load_some(g + size, n);
      const vec<T> a = load_some(g + 2 * size, n), o = load_some(g + 3 * size, n);
      const vec<T> y = gate_tanh(load_some(c + row * size + unit, n));
      T* cell = dc + b * size + unit;
      const vec<T> e = fma(d * o, fnma(y, y, one), load_some(cell, n));
      const vec<T> before = load_some(Base::at(c, c0, t, b) + unit, n);
      store_some(to, e * a * (i * (one - i)), n);
      store_some(to + size, e * before * (f * (one - f)), n);
      store_some(to + 2 * size, e * i * fnma(a, a, one), n);
      store_some(to + 3 * size, d * y * (o * (one - o)), n);
      store_some(cell, e * f, n);
    } else {
      const vec<T> r = load_some(g, n), z = load_some(g + size, n);
      const vec<T> a = load_some(g + 2 * size, n), inner = load_some(g + 3 * size, n);
      const vec<T> before = load_some(Base::at(h, h0, t, b) + unit, n);
      const vec<T> da = d * (one - z) * fnma(a, a, one);
      store_some(to, da * inner * (r * (one - r)), n);
      store_some(to + size, d * (before - a) * (z * (one - z)), n);
      store_some(to + 2 * size, da, n);
      store_some(to + 3 * size, da * r, n);
      store_some(state, d * z, n);
    }
  }

  // dh of R sequences = their dgates times W, for GRU added to what z lets through.
  template <int R, int V>
  void tile(int64_t t, int64_t b, int64_t panel) const {
    const int64_t col = panel * C, row = Base::row_size();
    const T* a = dgates + (steps.offsets[t] + b) * row;
    const T* w = panels + panel * C * depth();
    vec<T> acc[R][V] = {};
    if constexpr (kMode == kGru) {  // columns r, z and W h' + b of dgates
      multiply_add<T, R, V, false>(2 * size, a, row, 1, w, C, 0, acc);
      multiply_add<T, R, V, false>(size, a + 3 * size, row, 1, w + 2 * size * C, C, 0, acc);
    } else {
      multiply_add<T, R, V, false>(depth(), a, row, 1, w, C, 0, acc);
    }
    finish_tile(acc, dh + b * size + col, size, smaller(C, size - col),
                Stage<T>{T(kMode == kGru), false}, b, col, NoEpilogue{});
  }

  template <class Wait>
  void step(int64_t t, const Share& mine, const Wait& wait) const {
    const int64_t end = smaller(mine.end_row, steps.rows(t));
    const int64_t last = smaller(mine.end_panel * C, size);
    for (int64_t b = mine.row; b < end; ++b)
      for (int64_t unit = mine.panel * C; unit < last; unit += L)
        vector(t, b, unit, smaller(L, last - unit));
    wait();
    if (!weight) return;
    for (int64_t p = mine.panel; p < mine.end_panel; ++p)
      each_tile(mine.row, end, kRows, [&](int64_t b, int64_t n) {
        with_constant<kRows>(n, [&](auto r) {
          with_constant<kVectors>(divide_up(smaller(C, size - p * C), L),
                                  [&](auto v) { tile<r, v>(t, b, p); });
        });
      });
  }

  bool run() {
    if (weight) {
      panels =
          static_cast<T*>(scratch(static_cast<size_t>(panel_count() * C * depth()) * sizeof(T)));
      if (!panels) return false;
    }
    Base::run(
        panel_count(), true, [&](int64_t s) { return steps.time(steps.steps - 1 - s); },
        [&](int64_t p) { pack(p); },
        [&](int64_t t, const Share& mine, const auto& wait) { step(t, mine, wait); });
    return true;
  }
};

// ---- dispatch ----

template <class Layer, class T>
Layer layer_of(const View& weight, const View& h0, const View& c0, const View& offsets,
               bool reverse) {
  Layer layer{};
  layer.steps = {data<int64_t>(offsets), offsets.shape[0] - 1, reverse};
  layer.size = h0.shape[1];
  layer.weight = data<T>(weight);
  layer.h0 = data<T>(h0);
  layer.c0 = data<T>(c0);
  return layer;
}

// f(type, mode) with both as constants.
template <class F>
bool with_mode(DType dtype, int64_t mode, const F& f) {
  auto typed = [&](auto zero) {
    switch (mode) {
      case kTanh: return f(zero, std::integral_constant<Mode, kTanh>{});
      case kRelu: return f(zero, std::integral_constant<Mode, kRelu>{});
      case kLstm: return f(zero, std::integral_constant<Mode, kLstm>{});
      default: return f(zero, std::integral_constant<Mode, kGru>{});
    }
  };
  return dtype == DType::kFloat32 ? typed(0.0f) : typed(0.0);
}

}  // namespace

bool rnn(OptIn x, OptIn w_ih, OptIn weight, OptIn bias, OptIn inner_bias, In h0, OptIn c0,
         In offsets, OptOut gates, Out h, OptOut c, int64_t mode, bool reverse) {
  return with_mode(h.dtype, mode, [&](auto zero, auto m) {
    using T = decltype(zero);
    auto layer = layer_of<Forward<T, m()>, T>(weight, h0, c0, offsets, reverse);
    layer.inputs = x.data ? x.shape[1] : 0;
    layer.x = data<T>(x);
    layer.w_ih = data<T>(w_ih);
    layer.bias = data<T>(bias);
    layer.inner_bias = data<T>(inner_bias);
    layer.gates = data<T>(gates);
    layer.h = data<T>(h);
    layer.c = data<T>(c);
    return layer.run();
  });
}

bool rnn_backward(OptIn weight, In h0, OptIn c0, In offsets, OptIn gates, In h, OptIn c, In grad,
                  Out dgates, Out dh, OptOut dc, int64_t mode, bool reverse) {
  return with_mode(h.dtype, mode, [&](auto zero, auto m) {
    using T = decltype(zero);
    auto layer = layer_of<Backward<T, m()>, T>(weight, h0, c0, offsets, reverse);
    layer.gates = data<T>(gates);
    layer.h = data<T>(h);
    layer.c = data<T>(c);
    layer.grad = data<T>(grad);
    layer.dgates = data<T>(dgates);
    layer.dh = data<T>(dh);
    layer.dc = data<T>(dc);
    return layer.run();
  });
}

}  // namespace grebe::GREBE_ISA
