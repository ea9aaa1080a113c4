// Recurrent layers: Elman RNN (tanh, relu), LSTM and GRU over whole sequences, forward and backward.
//
//   RNN    h = act(x_t + W h')
//   LSTM   i, f, o = sigmoid(...), g = tanh(...) of x_t + W h';  c = f c' + i g;  h = o tanh(c)
//   GRU    r, z = sigmoid(x_t + W h');  n = tanh(x_t + r (W h' + b));  h = (1 - z) n + z h'
//   with a projection R: h = R (o tanh(c))
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
// bfloat16 (level avx512bf16): weights, inputs, h and dgates are pairs along k, the rest is float.
//
// Threads split either the sequences (no thread ever waits for another), or, where there are few of
// them (more, if W would not stay in a core's L2), the units (one barrier per step; two with a
// projection). Each element is one chain of multiply-adds over k in both ways: the same bits for any
// number of threads.
// Floor: 2 G H (I + H) operations per token and direction of the pass (G = 1, 4, 3 gates); for one
// sequence the bytes of W per step. Measured on Zen 4: 82-92% of the multiply-adds' peak from H = 256
// on, 54% at H = 32, where the gates count (docs/kernels/rnn.md).
#include "bf16.h"
#include "gemm.h"

namespace grebe::GREBE_ISA {
namespace {

enum Mode : int64_t { kTanh, kRelu, kLstm, kGru };

constexpr int kRegisterTiles = kVectors == 4 ? 24 : 12;  // accumulators that fit the registers
constexpr int64_t kManyRows = 64;  // use what they read of W often enough, wherever it comes from
constexpr int64_t kResident = 768 << 10;  // bytes of W that stay in a core's L2 beside the rest

constexpr bool is_plain(Mode mode) { return mode == kTanh || mode == kRelu; }
constexpr int weight_gates(Mode mode) { return mode == kLstm ? 4 : mode == kGru ? 3 : 1; }
constexpr int stored_gates(Mode mode) { return is_plain(mode) ? 1 : 4; }

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

// What a thread does in every step: some sequences; some panels of units, some of columns of h.
struct Share {
  int64_t row, end_row, panel, end_panel, column, end_column;
};

template <class T>
inline vec<T> load_state(const T* p, int64_t n) {
  return load_upto(p, n);
}
inline f32v load_state(const bf16* p, int64_t n) { return load_widened(p, n); }
template <class T>
inline void store_state(T* p, vec<T> v, int64_t n) {
  store_upto(p, v, n);
}
inline void store_state(bf16* p, f32v v, int64_t n) { store_narrowed(p, v, n); }

template <class T, Mode kMode, class E>
struct Layer {
  using Operand = operand_of<E>;  // pairs of bf16: all dimensions are even
  static constexpr int kStored = stored_gates(kMode);
  static constexpr int64_t kPair = sizeof(Operand) / sizeof(E);
  static constexpr int64_t L = lanes<T>, C = kCols<T>;
  Steps steps;
  int64_t size, width;  // H; of h: H, or P with a projection
  const E* weight;  // [gates * H, width]; nullptr: its product is in `gates` already
  const E* projection;  // [P, H] or nullptr
  const E* h0;
  const T* c0;
  int64_t inputs;  // 0: their product is in `gates` already
  Operand *panels, *projection_panels;

  int64_t row_size() const { return kStored * size; }
  template <class S>
  const S* at(const S* states, const S* initial, int64_t columns, int64_t t, int64_t row) const {
    if (row >= steps.continued(t)) return initial + row * columns;
    return states + (steps.offsets[steps.before(t)] + row) * columns;
  }
  int64_t columns() const { return divide_up(width, C); }  // panels of h

  static const Operand* operand(const E* p) { return reinterpret_cast<const Operand*>(p); }

  // acc += the product of R rows of `depth` elements with a panel of V vectors, `row` apart each.
  template <int R, int V>
  [[gnu::always_inline]] static void multiply(int64_t depth, const E* a, int64_t a_row,
                                              const Operand* panel, int64_t row,
                                              vec<T> (&acc)[R][V]) {
    multiply_add<Operand, R, V, false>(depth / kPair, operand(a), a_row / kPair, 1, panel, row, 0,
                                       acc);
  }

  // Columns of a panel = rows of `from`, `depth` elements each.
  static void pack_transposed(Operand* to, int64_t to_row, const E* from, int64_t cols,
                              int64_t depth) {
    transpose_columns(reinterpret_cast<T*>(to), to_row, reinterpret_cast<const T*>(from),
                      depth / kPair, cols, depth / kPair);
  }

  // Room for both kinds of panels.
  bool reserve(int64_t panel_elements, int64_t projection_elements) {
    const int64_t total = panel_elements + projection_elements;
    if (total == 0) return true;
    panels = static_cast<Operand*>(scratch(static_cast<size_t>(total) * sizeof(Operand)));
    projection_panels = panels + panel_elements;
    return panels != nullptr;
  }

  // Few threads for little work; units are split where sequences are few or W is large.
  int threads(bool* split_units, int64_t panel_count) const {
    const int64_t b = steps.sequences();
    const int64_t per_token =
        weight_gates(kMode) * size * (inputs + width) + (projection ? size * width : 0);
    const int most = num_threads();
    const bool large = per_token * static_cast<int64_t>(sizeof(E)) > kResident;
    *split_units = b < (large ? kManyRows : kRows) * most;
    const int64_t work = *split_units ? per_token * b : per_token * steps.offsets[steps.steps];
    if (!panels || work < kParallelWork) return 1;
    return static_cast<int>(smaller(most, *split_units ? panel_count : b));
  }

  Share share(int64_t thread, int64_t team, bool split_units, int64_t panel_count) const {
    const int64_t b = steps.sequences(), n = columns();
    if (split_units)
      return {0,
              b,
              panel_count * thread / team,
              panel_count * (thread + 1) / team,
              n * thread / team,
              n * (thread + 1) / team};
    return {steps.part(thread, team),
            thread + 1 == team ? b : steps.part(thread + 1, team),
            0,
            panel_count,
            0,
            n};
  }

  // pack(thread, team), then step(time, share, wait) for every step, in the order of `visit`; `wait`
  // is for the threads that share sequences.
  template <class Visit, class Pack, class Step>
  void run(int64_t panel_count, const Visit& visit, const Pack& pack, const Step& step) {
    bool split_units;
    const int team_size = threads(&split_units, panel_count);
    Barrier barrier;
    parallel_region(team_size, [&](int thread, int team) {
      auto wait = [&] {
        if (team > 1) barrier.wait(team);
      };
      if (panels) pack(thread, team);
      wait();
      const Share mine = share(thread, team, split_units, panel_count);
      for (int64_t s = 0; s < steps.steps; ++s)
        step(visit(s), mine, [&] {
          if (split_units) wait();
        });
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

// f(i) for this thread's part of n items.
template <class F>
inline void each_of(int64_t n, int64_t thread, int64_t team, const F& f) {
  for (int64_t i = n * thread / team; i < n * (thread + 1) / team; ++i) f(i);
}

// f(row, rows, panel, vectors), the last two as constants: the tiles of a product with `cols` columns.
template <class T, class F>
inline void each_product_tile(int64_t row, int64_t end, int64_t panel, int64_t end_panel,
                              int64_t cols, const F& f) {
  for (; panel < end_panel; ++panel)
    each_tile(row, end, kRows, [&](int64_t b, int64_t n) {
      with_count<kRows>(n, [&](auto r) {
        with_count<kVectors>(divide_up(smaller(kCols<T>, cols - panel * kCols<T>), lanes<T>),
                             [&](auto v) { f(b, r, panel, v); });
      });
    });
}

// ---- forward ----

template <class T, Mode kMode, class E>
struct Forward : Layer<T, kMode, E> {
  using Base = Layer<T, kMode, E>;
  using Base::c0, Base::h0, Base::inputs, Base::panels, Base::projection, Base::row_size,
      Base::size, Base::steps, Base::weight, Base::width, Base::L, Base::C, Base::kPair;
  using typename Base::Operand;
  static constexpr int V = is_plain(kMode) ? kVectors : weight_gates(kMode);
  static constexpr int kTileRows = kRegisterTiles / V;
  static constexpr int64_t kUnits = is_plain(kMode) ? kVectors * L : L;  // of a panel
  const E *x, *w_ih;  // [tokens, inputs], [gates * H, inputs]; used if inputs > 0
  const T *bias, *inner_bias;  // of x_t (used if inputs > 0), of W h' in GRU; may be nullptr
  T* gates;  // may be nullptr if inputs > 0
  E *h, *full;  // full: [tokens, H], h before the projection; nullptr without
  T* c;

  int64_t panel_count() const { return divide_up(size, kUnits); }
  int64_t panel_size() const { return (inputs + width) / kPair * V * L; }
  int64_t projection_size() const { return size / kPair * C; }

  // Vector v of a panel: its distance from the first unit in a row of gates, how many of the `n`
  // units it has.
  int64_t offset(int v) const { return v * (is_plain(kMode) ? L : size); }
  static int64_t valid(int v, int64_t n) {
    const int64_t left = is_plain(kMode) ? n - v * L : n;
    return left < 0 ? 0 : smaller(left, L);
  }

  void pack(int64_t thread, int64_t team) const {
    each_of(panel_count(), thread, team, [&](int64_t panel) {
      Operand* to = panels + panel * panel_size();
      if (inputs) pack_rows(to, panel, w_ih, inputs);
      if (weight) pack_rows(to + inputs / kPair * V * L, panel, weight, width);
    });
    if (!projection) return;
    each_of(Base::columns(), thread, team, [&](int64_t panel) {
      Base::pack_transposed(Base::projection_panels + panel * projection_size(), C,
                            projection + panel * C * size, smaller(C, width - panel * C), size);
    });
  }
  void pack_rows(Operand* to, int64_t panel, const E* from, int64_t depth) const {
    const int64_t unit = panel * kUnits;
    for (int v = 0; v < V; ++v) {
      const int64_t cols = valid(v, size - unit);
      if (cols == 0)
        fill_column(reinterpret_cast<T*>(to) + v * L, depth / kPair);
      else
        Base::pack_transposed(to + v * L, V * L, from + (offset(v) + unit) * depth, cols, depth);
    }
  }
  static void fill_column(T* to, int64_t depth) {
    for (int64_t k = 0; k < depth; ++k) store(to + k * V * L, vec<T>{});
  }

  // From the sums of R rows to their gates and states. `row` is the first, `apart` GRU's product of
  // the third gate with x, `before` the states h (GRU) or c (LSTM) before the step. In several
  // passes: within one row the functions wait for each other.
  template <int R, class S>
  [[gnu::always_inline]] void finish(vec<T> (&acc)[R][V], const vec<T> (&apart)[R], int64_t row,
                                     int64_t unit, int64_t n, const S* before) const {
    T* g = gates + row * row_size() + unit;
    E* to = (full ? full : h) + row * size + unit;
    if constexpr (is_plain(kMode)) {
      for (int i = 0; i < R; ++i)
        for (int v = 0; v < V && valid(v, n); ++v)
          store_state(to + i * size + v * L,
                      kMode == kTanh ? gate_tanh(acc[i][v]) : max_nan(acc[i][v], vec<T>{}),
                      valid(v, n));
    } else if constexpr (kMode == kLstm) {
      for (int i = 0; i < R; ++i)
        for (int v = 0; v < V; ++v)
          acc[i][v] = v == 2 ? gate_tanh(acc[i][v]) : gate_sigmoid(acc[i][v]);
      for (int i = 0; i < R; ++i) {
        const vec<T> in = acc[i][0], forget = acc[i][1], a = acc[i][2], out = acc[i][3];
        const vec<T> cell = fma(forget, load_upto(before + i * size + unit, n), in * a);
        store_gates(g + i * row_size(), n, in, forget, a, out);
        store_upto(c + (row + i) * size + unit, cell, n);
        store_state(to + i * size, out * gate_tanh(cell), n);
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
        store_state(to + i * size, fma(z, load_state(before + i * size + unit, n) - a, a), n);
      }
    }
  }
  void store_gates(T* g, int64_t n, vec<T> first, vec<T> second, vec<T> third,
                   vec<T> fourth) const {
    if (!gates) return;
    store_upto(g, first, n);
    store_upto(g + size, second, n);
    store_upto(g + 2 * size, third, n);
    store_upto(g + 3 * size, fourth, n);
  }

  // What finish will read or write, while the product is computed: rows lie pages apart.
  void fetch(int64_t row, int64_t rows, int64_t unit) const {
    if (!gates) return;
    for (int64_t i = row; i < row + rows; ++i)
      for (int v = 0; v < V; ++v) __builtin_prefetch(gates + i * row_size() + unit + offset(v), 1);
  }

  // acc[i][v] += the product with x, which starts from the bias.
  template <int R>
  [[gnu::always_inline]] void multiply_inputs(int64_t row, int64_t unit, int64_t n,
                                              const Operand* panel, vec<T> (&acc)[R][V]) const {
    if (bias)
      for (int v = 0; v < V; ++v) {
        const vec<T> start = load_upto(bias + unit + offset(v), valid(v, n));
        for (int i = 0; i < R; ++i) acc[i][v] = start;
      }
    Base::multiply(inputs, x + row * inputs, inputs, panel, V * L, acc);
  }

  // Adds what `gates` hold of x (and, without weight, of h') to the sums.
  template <int R>
  [[gnu::always_inline]] void add_gates(int64_t row, int64_t unit, int64_t n, vec<T> (&acc)[R][V],
                                        vec<T> (&apart)[R]) const {
    for (int i = 0; i < R; ++i) {
      const T* g = gates + (row + i) * row_size() + unit;
      for (int v = 0; v < V; ++v) {
        const vec<T> stored = load_upto(g + offset(v), valid(v, n));
        if (kMode == kGru && v == 2)
          apart[i] = stored;
        else
          acc[i][v] = acc[i][v] + stored;
      }
      if (kMode == kGru && !weight) acc[i][2] = load_upto(g + 3 * size, n);
    }
  }

  template <int R>
  void tile(int64_t t, int64_t b, int64_t panel) const {
    const int64_t unit = panel * kUnits, n = smaller(kUnits, size - unit);
    const int64_t row = steps.offsets[t] + b;
    const E* before = Base::at(h, h0, width, t, b);
    const Operand* packed = panels + panel * panel_size();
    fetch(row, R, unit);
    vec<T> acc[R][V] = {}, apart[R] = {};
    if (inputs) multiply_inputs(row, unit, n, packed, acc);
    if constexpr (kMode == kGru) {
      const vec<T> start = inner_bias ? load_upto(inner_bias + unit, n) : vec<T>{};
      for (int i = 0; i < R; ++i) {
        apart[i] = acc[i][2];
        acc[i][2] = start;
      }
    }
    if (weight) Base::multiply(width, before, width, packed + inputs / kPair * V * L, V * L, acc);
    if (!inputs) add_gates(row, unit, n, acc, apart);
    if constexpr (kMode == kLstm)
      finish(acc, apart, row, unit, n, Base::at(c, c0, size, t, b));
    else
      finish(acc, apart, row, unit, n, before);
  }

  // Few rows at a time where sequences are split: their gates then stay in L1 from panel to panel.
  void rows(int64_t t, const Share& mine, int64_t begin, int64_t end) const {
    const bool all_panels = mine.end_panel - mine.panel == panel_count();
    const int64_t block = all_panels ? 8 * kTileRows : end - begin;
    for (; begin < end; begin += block)
      for (int64_t p = mine.panel; p < mine.end_panel; ++p)
        each_tile(begin, smaller(begin + block, end), kTileRows, [&](int64_t row, int64_t n) {
          with_count<kTileRows>(n, [&](auto r) { tile<r>(t, row, p); });
        });
  }

  // h of R sequences = their o tanh(c) times the projection.
  template <int R, int N>
  void project(int64_t t, int64_t b, int64_t panel) const {
    const int64_t row = steps.offsets[t] + b, col = panel * C, n = smaller(C, width - col);
    vec<T> acc[R][N] = {};
    Base::multiply(size, full + row * size, size,
                   Base::projection_panels + panel * projection_size(), C, acc);
    for (int i = 0; i < R; ++i)
      for (int v = 0; v < N; ++v)
        store_state(h + (row + i) * width + col + v * L, acc[i][v], smaller(L, n - v * L));
  }

  template <class Wait>
  void step(int64_t t, const Share& mine, const Wait& wait) const {
    const int64_t end = smaller(mine.end_row, steps.rows(t)), border = steps.continued(t);
    rows(t, mine, mine.row, smaller(border, end));
    rows(t, mine, mine.row < border ? border : mine.row, end);
    wait();
    if constexpr (kMode == kLstm) {
      if (!projection) return;
      each_product_tile<T>(mine.row, end, mine.column, mine.end_column, width,
                           [&](int64_t b, auto r, int64_t p, auto v) { project<r, v>(t, b, p); });
      wait();
    }
  }

  bool run() {
    if (!Base::reserve(weight || inputs ? panel_count() * panel_size() : 0,
                       projection ? Base::columns() * projection_size() : 0))
      return false;
    Base::run(
        panel_count(), [&](int64_t s) { return steps.time(s); },
        [&](int64_t thread, int64_t team) { pack(thread, team); },
        [&](int64_t t, const Share& mine, const auto& wait) { step(t, mine, wait); });
    return true;
  }
};

// ---- backward ----

template <class T, Mode kMode, class E>
struct Backward : Layer<T, kMode, E> {
  using Base = Layer<T, kMode, E>;
  using Base::c0, Base::h0, Base::panels, Base::projection, Base::row_size, Base::size, Base::steps,
      Base::weight, Base::width, Base::L, Base::C, Base::kPair;
  using typename Base::Operand;
  const T *gates, *c;
  const E *h, *grad;  // grad: of h, of every step
  E* dgates;
  T *dh, *dc;  // of the state after a step, then before it
  E* dprojected;  // [tokens, P]: all of the gradient of h; nullptr without projection
  T* dfull;  // [sequences, H]: of o tanh(c), of the step; nullptr without projection

  int64_t panel_count() const { return divide_up(size, C); }
  int64_t depth() const { return weight_gates(kMode) * size; }
  int64_t panel_size() const { return depth() / kPair * C; }
  int64_t projection_size() const { return width / kPair * C; }

  void pack(int64_t thread, int64_t team) const {
    each_of(Base::columns(), thread, team, [&](int64_t panel) {
      pack_rows(panels + panel * panel_size(), weight, width, panel * C, depth());
    });
    if (!projection) return;
    each_of(panel_count(), thread, team, [&](int64_t panel) {
      pack_rows(Base::projection_panels + panel * projection_size(), projection, size, panel * C,
                width);
    });
  }
  // C of the `cols` columns of a matrix.
  static void pack_rows(Operand* to, const E* from, int64_t cols, int64_t col, int64_t depth) {
    const int64_t n = smaller(C, cols - col);
    if constexpr (kPair == 1) {
      PackRight<T>{from, cols, 1}(to, col, n, 0, depth);
    } else {
      for (int64_t k = 0; k < depth; k += 2, to += C)
        for (int64_t j = 0; j < n; ++j) {
          const E* low = from + k * cols + col + j;
          to[j].bits = low->bits | static_cast<uint32_t>(low[cols].bits) << 16;
        }
    }
  }

  // The gate arithmetic of one vector of units in one row; b: the sequence.
  void vector(int64_t t, int64_t b, int64_t unit, int64_t n) const {
    const int64_t row = steps.offsets[t] + b;
    const T* g = gates + row * row_size() + unit;
    E* to = dgates + row * row_size() + unit;
    T* state = dh + b * width + unit;
    const vec<T> one = splat(T(1));
    const vec<T> d = dfull ? load_upto(dfull + b * size + unit, n)
                           : load_state(grad + row * size + unit, n) + load_upto(state, n);
    if constexpr (is_plain(kMode)) {
      const vec<T> y = load_state(h + row * size + unit, n);
      if constexpr (kMode == kTanh)
        store_state(to, d * fnma(y, y, one), n);
      else
        store_state(to, select(y > vec<T>{}, d, vec<T>{}), n);
    } else if constexpr (kMode == kLstm) {
      const vec<T> i = load_upto(g, n), f = load_upto(g + size, n);
      const vec<T> a = load_upto(g + 2 * size, n), o = load_upto(g + 3 * size, n);
      const vec<T> y = gate_tanh(load_upto(c + row * size + unit, n));
      T* cell = dc + b * size + unit;
      const vec<T> e = fma(d * o, fnma(y, y, one), load_upto(cell, n));
      const vec<T> before = load_upto(Base::at(c, c0, size, t, b) + unit, n);
      store_state(to, e * a * (i * (one - i)), n);
      store_state(to + size, e * before * (f * (one - f)), n);
      store_state(to + 2 * size, e * i * fnma(a, a, one), n);
      store_state(to + 3 * size, d * y * (o * (one - o)), n);
      store_upto(cell, e * f, n);
    } else {
      const vec<T> r = load_upto(g, n), z = load_upto(g + size, n);
      const vec<T> a = load_upto(g + 2 * size, n), inner = load_upto(g + 3 * size, n);
      const vec<T> before = load_state(Base::at(h, h0, size, t, b) + unit, n);
      const vec<T> da = d * (one - z) * fnma(a, a, one);
      store_state(to, da * inner * (r * (one - r)), n);
      store_state(to + size, d * (before - a) * (z * (one - z)), n);
      store_state(to + 2 * size, da, n);
      store_state(to + 3 * size, da * r, n);
      store_upto(state, d * z, n);
    }
  }

  // dh of R sequences = their dgates times W, for GRU added to what z lets through.
  template <int R, int V>
  void tile(int64_t t, int64_t b, int64_t panel) const {
    const int64_t col = panel * C, row = row_size();
    const E* a = dgates + (steps.offsets[t] + b) * row;
    const Operand* w = panels + panel * panel_size();
    vec<T> acc[R][V] = {};
    if constexpr (kMode == kGru) {  // columns r, z and W h' + b of dgates
      Base::multiply(2 * size, a, row, w, C, acc);
      Base::multiply(size, a + 3 * size, row, w + 2 * size / kPair * C, C, acc);
    } else {
      Base::multiply(depth(), a, row, w, C, acc);
    }
    finish_tile(acc, dh + b * width + col, width, smaller(C, width - col),
                Stage<T>{T(kMode == kGru), false}, b, col, NoEpilogue{});
  }

  // The gradient of o tanh(c) of R sequences: of their h, times the projection.
  template <int R, int V>
  void project(int64_t t, int64_t b, int64_t panel) const {
    const int64_t col = panel * C;
    vec<T> acc[R][V] = {};
    Base::multiply(width, dprojected + (steps.offsets[t] + b) * width, width,
                   Base::projection_panels + panel * projection_size(), C, acc);
    finish_tile(acc, dfull + b * size + col, size, smaller(C, size - col), Stage<T>{T(0), false}, b,
                col, NoEpilogue{});
  }

  // Through the projection: from the gradients of h to those of o tanh(c).
  template <class Wait>
  void step_projected(int64_t t, const Share& mine, int64_t end, const Wait& wait) const {
    const int64_t last = smaller(mine.end_column * C, width);
    for (int64_t b = mine.row; b < end; ++b)
      for (int64_t col = mine.column * C; col < last; col += L) {
        const int64_t at = (steps.offsets[t] + b) * width + col, n = smaller(L, last - col);
        store_state(dprojected + at, load_state(grad + at, n) + load_upto(dh + b * width + col, n),
                    n);
      }
    wait();
    each_product_tile<T>(mine.row, end, mine.panel, mine.end_panel, size,
                         [&](int64_t b, auto r, int64_t p, auto v) { project<r, v>(t, b, p); });
  }

  template <class Wait>
  void step(int64_t t, const Share& mine, const Wait& wait) const {
    const int64_t end = smaller(mine.end_row, steps.rows(t));
    const int64_t last = smaller(mine.end_panel * C, size);
    if constexpr (kMode == kLstm)
      if (projection) step_projected(t, mine, end, wait);
    for (int64_t b = mine.row; b < end; ++b)
      for (int64_t unit = mine.panel * C; unit < last; unit += L)
        vector(t, b, unit, smaller(L, last - unit));
    wait();
    if (!weight) return;
    each_product_tile<T>(mine.row, end, mine.column, mine.end_column, width,
                         [&](int64_t b, auto r, int64_t p, auto v) { tile<r, v>(t, b, p); });
  }

  bool run() {
    // Also dfull, behind the panels.
    const int64_t more = projection ? panel_count() * projection_size() : 0;
    const int64_t own = projection ? steps.sequences() * size : 0;
    if (!Base::reserve(weight ? Base::columns() * panel_size() : 0, more + own)) return false;
    dfull = projection ? reinterpret_cast<T*>(Base::projection_panels + more) : nullptr;
    Base::run(
        panel_count(), [&](int64_t s) { return steps.time(steps.steps - 1 - s); },
        [&](int64_t thread, int64_t team) { pack(thread, team); },
        [&](int64_t t, const Share& mine, const auto& wait) { step(t, mine, wait); });
    return true;
  }
};

// ---- dispatch ----

template <class Layer, class T, class E>
Layer layer_of(const View& weight, const View& projection, const View& h0, const View& c0,
               const View& offsets, int64_t size, bool reverse) {
  Layer layer{};
  layer.steps = {data<int64_t>(offsets), offsets.shape[0] - 1, reverse};
  layer.size = size;
  layer.width = h0.shape[1];
  layer.weight = data<E>(weight);
  layer.projection = data<E>(projection);
  layer.h0 = data<E>(h0);
  layer.c0 = data<T>(c0);
  return layer;
}

// f(type, stored type, mode) with all as constants.
template <class F>
bool with_mode(DType dtype, int64_t mode, const F& f) {
  auto typed = [&](auto zero, auto stored) {
    switch (mode) {
      case kTanh: return f(zero, stored, std::integral_constant<Mode, kTanh>{});
      case kRelu: return f(zero, stored, std::integral_constant<Mode, kRelu>{});
      case kLstm: return f(zero, stored, std::integral_constant<Mode, kLstm>{});
      default: return f(zero, stored, std::integral_constant<Mode, kGru>{});
    }
  };
  if (dtype == DType::kFloat64) return typed(0.0, 0.0);
#if defined(__AVX512BF16__)
  if (dtype == DType::kBFloat16) return typed(0.0f, bf16{});
#endif
  return typed(0.0f, 0.0f);
}

}  // namespace

bool rnn(OptIn x, OptIn w_ih, OptIn weight, OptIn projection, OptIn bias, OptIn inner_bias, In h0,
         OptIn c0, HostIn offsets, OptOut gates, Out h, OptOut c, OptOut full, int64_t size,
         int64_t mode, bool reverse) {
  return with_mode(h.dtype, mode, [&](auto zero, auto stored, auto m) {
    using T = decltype(zero);
    using E = decltype(stored);
    auto layer =
        layer_of<Forward<T, m(), E>, T, E>(weight, projection, h0, c0, offsets, size, reverse);
    layer.inputs = x.data ? x.shape[1] : 0;
    layer.x = data<E>(x);
    layer.w_ih = data<E>(w_ih);
    layer.bias = data<T>(bias);
    layer.inner_bias = data<T>(inner_bias);
    layer.gates = data<T>(gates);
    layer.h = data<E>(h);
    layer.full = data<E>(full);
    layer.c = data<T>(c);
    return layer.run();
  });
}

bool rnn_backward(OptIn weight, OptIn projection, In h0, OptIn c0, HostIn offsets, OptIn gates,
                  In h, OptIn c, In grad, Out dgates, Out dh, OptOut dc, OptOut dprojected,
                  int64_t size, int64_t mode, bool reverse) {
  return with_mode(h.dtype, mode, [&](auto zero, auto stored, auto m) {
    using T = decltype(zero);
    using E = decltype(stored);
    auto layer =
        layer_of<Backward<T, m(), E>, T, E>(weight, projection, h0, c0, offsets, size, reverse);
    layer.gates = data<T>(gates);
    layer.h = data<E>(h);
    layer.c = data<T>(c);
    layer.grad = data<E>(grad);
    layer.dgates = data<E>(dgates);
    layer.dh = data<T>(dh);
    layer.dc = data<T>(dc);
    layer.dprojected = data<E>(dprojected);
    return layer.run();
  });
}

}  // namespace grebe::GREBE_ISA
