// Convolution with one input channel per group, plane by plane: a padded copy of a plane, split by
// phases of the stride (window.h), then per tap one load and one multiply-add for each vector of a
// row.
//   forward      the input plane is copied, outputs go along its rows
//   grad input   the gradient plane is copied; the input consists of phases (row and column modulo
//                stride), each a sum over its own taps without a stride; columns are interleaved
//   grad weight  the input plane is copied; a sum per tap, its lanes kept apart until all images of
//                the channel have been added: threads share channels
// Channels-last arrays are copied as many channels at a time as there are lanes, results likewise.
//
// Floor: bytes, input and output once (there are only as many multiply-adds per output as taps); in
// the caches one load per multiply-add. Measured: docs/kernels/conv.md.
#pragma once
#include "window.h"

namespace grebe::GREBE_ISA {
namespace {

// At most `most`, but two jobs for every thread.
inline int64_t channels_of_job(int64_t channels, int64_t most) {
  const int64_t share = channels / (2 * num_threads());
  return share < 1 ? 1 : (share < most ? share : most);
}

// An array as planes, one for each example and channel.
template <class T>
struct Planes {
  T* data;
  Strides s;
  int64_t rows, width;

  bool flat() const { return s.w == 1; }
  T* first(int64_t n, int64_t c) const { return data + n * s.n + c * s.c; }
  int64_t size() const { return rows * width; }

  // How many channels to copy together.
  int64_t together(int64_t channels) const {
    return flat() ? 1 : channels_of_job(channels, lanes<T>);
  }
  // To and from [channel][row][column].
  void read(T* to, int64_t n, int64_t c, int64_t count) const {
    for (int64_t h = 0; h < rows; ++h)
      copy_plane(to + h * width, size(), int64_t{1}, first(n, c) + h * s.h, s.c, s.w, count, width);
  }
  void write(const T* from, int64_t n, int64_t c, int64_t count) const {
    for (int64_t h = 0; h < rows; ++h)
      copy_plane(first(n, c) + h * s.h, s.c, s.w, from + h * width, size(), int64_t{1}, count,
                 width);
  }
};
template <class T>
Planes<T> planes_of(const View& v) {
  return {data<T>(v), strides_of(v), v.shape[2], v.shape[3]};
}

// A thread's padded copies of some planes.
template <class T>
struct PaddedPlanes {
  T* data;
  bool padded;  // are the zeros around the planes there?

  static PaddedPlanes take(Arena* arena, const Window& g, int64_t most) {
    return {arena->take<T>(most * g.plane() + lanes<T>), false};
  }
  void read(const Planes<T>& from, int64_t n, int64_t c, int64_t count, int64_t most,
            const Window& g) {
    if (!padded) fill(data, most * g.plane() + lanes<T>, T(0));
    padded = true;
    if (!from.flat()) return split_planes(data, from.first(n, c), from.s, count, g);
    for (int64_t i = 0; i < count; ++i)
      split_planes(data + i * g.plane(), from.first(n, c + i), from.s, int64_t{1}, g);
  }
};

struct PlaneTap {
  int64_t offset, index;  // in the padded plane; in the kernel
};

// to[row][column] = start + the sum over taps of scales[index] * from[row][column + offset].
template <class T>
struct PlaneSum {
  const PlaneTap *begin, *end;
  int64_t rows, width, from_row, to_row;

  // Where the next vector of a row begins.
  struct Cursor {
    const T* from;
    T* to;
    int64_t column;
  };

  // The next V vectors.
  template <int V>
  void block(Cursor& at, const T* scales, T start) const {
    const T* from[V];
    T* out[V];
    int64_t size[V];
    for (int v = 0; v < V; ++v) {
      from[v] = at.from + at.column;
      out[v] = at.to + at.column;
      size[v] = width - at.column;
      at.column += lanes<T>;
      if (at.column < width) continue;
      at.column = 0;
      at.from += from_row;
      at.to += to_row;
    }
    vec<T> acc[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) acc[v] = splat(start);
    for (const PlaneTap* t = begin; t < end; ++t) {
      const vec<T> scale = splat(scales[t->index]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) acc[v] = fma(scale, load(from[v] + t->offset), acc[v]);
    }
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v)
      size[v] >= lanes<T> ? store(out[v], acc[v]) : store_n(out[v], acc[v], size[v]);
  }

  void run(const T* from, const T* scales, T start, T* to) const {
    int64_t vectors = rows * ((width + lanes<T> - 1) / lanes<T>);
    Cursor at{from, to, 0};
    for (; vectors >= 4; vectors -= 4) block<4>(at, scales, start);
    if (vectors)
      with_count<3>(vectors, [&](auto v) { block<decltype(v)::value>(at, scales, start); });
  }
};

// ---- forward ----

template <class T>
struct Depthwise {
  struct Own {
    PaddedPlanes<T> planes;
    T* results;
  };
  Window window;
  int64_t batch, channels, multiplier;  // input channels; output channels for each of them
  Planes<T> x, y;
  const T *w, *bias;
  Tiling groups;
  PlaneTap* taps;

  void lay_out(Arena* arena) { taps = arena->take<PlaneTap>(window.taps()); }
  Own own(Arena* arena) const {
    const int64_t most = groups.largest();
    return {PaddedPlanes<T>::take(arena, window, most),
            arena->take<T>(y.flat() ? 0 : most * multiplier * y.size())};
  }
  void prepare() {
    for (int64_t k = 0; k < window.taps(); ++k)
      taps[k] = {window.tap(k / window.kernel_w, k % window.kernel_w), k};
  }

  void item(int64_t index, Own& own) const {
    const int64_t n = index / groups.count, first = groups.begin(index % groups.count);
    const int64_t count = groups.size(index % groups.count), o = first * multiplier;
    own.planes.read(x, n, first, count, groups.largest(), window);
    const PlaneSum<T> sum{
        taps,         taps + window.taps(),           window.out_h,
        window.out_w, window.stride_h * window.row(), y.flat() ? y.s.h : window.out_w};
    for (int64_t i = 0; i < count * multiplier; ++i)
      sum.run(own.planes.data + i / multiplier * window.plane(), w + (o + i) * window.taps(),
              bias ? bias[o + i] : T(0), y.flat() ? y.first(n, o + i) : own.results + i * y.size());
    if (!y.flat()) y.write(own.results, n, o, count * multiplier);
  }

  bool run() { return run_jobs(*this, batch * groups.count); }  // false: out of memory
};

// ---- gradient of the input ----

// One dimension of an input gradient: input position phase + i * stride takes, from the padded
// gradient, position i + first(phase, tap) where the tap meets the phase.
struct GradAxis {
  int64_t in, out, kernel, stride, pad, dilation;

  bool meets(int64_t phase, int64_t tap) const {
    return (phase + pad - tap * dilation) % stride == 0;
  }
  int64_t first(int64_t phase, int64_t tap) const {
    return before() + (phase + pad - tap * dilation) / stride;
  }
  int64_t phases() const { return stride < in ? stride : in; }
  int64_t count(int64_t phase) const { return (in - phase + stride - 1) / stride; }
  // Zeros around the gradient.
  int64_t before() const {
    const int64_t reach = (kernel - 1) * dilation - pad;
    return reach > 0 ? reach / stride : 0;
  }
  int64_t after() const {
    const int64_t last = (in - 1 + pad) / stride;
    return last >= out ? last - out + 1 : 0;
  }
};

template <class T>
struct DepthwiseGradInput {
  struct Own {
    PaddedPlanes<T> planes;
    T *phases, *results;
  };
  GradAxis h, w;
  int64_t batch, channels, multiplier;
  Planes<T> grad, gx;
  const T* weight;
  Tiling groups;
  PlaneTap* taps;  // of each row phase and column phase, from first[] on
  int64_t* first;
  int64_t row, plane_size;  // of the padded copy

  Window window() const {  // that makes the padded copy
    const int64_t rows = h.before() + h.after() + 1, columns = w.before() + w.after() + 1;
    return {h.out, w.out, h.out, w.out, rows, columns, 1, 1, h.before(), w.before(), 1, 1};
  }
  bool direct() const { return w.stride == 1; }  // columns need no joining
  // Rows of a phase that are summed before they are joined: few, so that the input is written in
  // order, and enough for a block.
  int64_t band() const {
    const int64_t most = 4 * lanes<T> / phase_row();
    return direct() ? h.count(0) : (most > 1 ? most : 1);
  }
  int64_t phase_row() const { return round_up(w.count(0), lanes<T>); }
  int64_t phase_size() const { return band() * phase_row(); }

  void lay_out(Arena* arena) {
    taps = arena->take<PlaneTap>(multiplier * h.kernel * w.kernel);
    first = arena->take<int64_t>(h.phases() * w.phases() + 1);
  }
  Own own(Arena* arena) const {
    const int64_t most = groups.largest();
    return {PaddedPlanes<T>::take(arena, window(), most * multiplier),
            arena->take<T>(direct() ? 0 : w.phases() * phase_size()),
            arena->take<T>(gx.flat() ? 0 : most * gx.size())};
  }
  void prepare() {
    row = window().row();
    plane_size = window().plane();
    int64_t count = 0;
    for (int64_t p = 0; p < h.phases() * w.phases(); ++p) {
      const int64_t r = p / w.phases(), c = p % w.phases();
      first[p] = count;
      for (int64_t k = 0; k < multiplier * h.kernel * w.kernel; ++k) {
        const int64_t m = k / (h.kernel * w.kernel), i = k / w.kernel % h.kernel, j = k % w.kernel;
        if (h.meets(r, i) && w.meets(c, j))
          taps[count++] = {m * plane_size + h.first(r, i) * row + w.first(c, j), k};
      }
    }
    first[h.phases() * w.phases()] = count;
  }

  // Interleaves the column phases of a row.
  void join(const T* from, T* to) const {
    if (w.phases() == 2) return join_two(from, from + phase_size(), to);
    for (int64_t p = 0; p < w.phases(); ++p, from += phase_size())
      for (int64_t j = 0; j < w.count(p); ++j) to[p + j * w.stride] = from[j];
  }
  void join_two(const T* even, const T* odd, T* to) const {
    for (int64_t n = w.in; n > 0; n -= 2 * lanes<T>, even += lanes<T>, odd += lanes<T>) {
      const vec<T> a = load(even), b = load(odd);
      const vec<T> low = zip<T, false>(a, b), high = zip<T, true>(a, b);
      n >= lanes<T> ? store(to, low) : store_n(to, low, n);
      to += lanes<T>;
      if (n > lanes<T>) n >= 2 * lanes<T> ? store(to, high) : store_n(to, high, n - lanes<T>);
      to += lanes<T>;
    }
  }

  // Rows of row phase r, from input row `to` on.
  void rows_of_phase(int64_t r, int64_t rows, const T* from, const T* scales, T* phases, T* to,
                     int64_t to_row) const {
    const int64_t count = w.phases(), size = phase_size(), step = direct() ? to_row : phase_row();
    for (int64_t p = 0; p < count; ++p) {
      const int64_t* f = first + r * count + p;
      const PlaneSum<T> sum{taps + f[0], taps + f[1], rows, w.count(p), row, step};
      sum.run(from, scales, T(0), direct() ? to : phases + p * size);
    }
    for (int64_t i = 0; !direct() && i < rows; ++i) join(phases + i * step, to + i * to_row);
  }

  // One input plane, rows `to_row` apart.
  void plane(const T* from, const T* scales, T* phases, T* to, int64_t to_row) const {
    const int64_t most = h.count(0), some = band();
    for (int64_t i = 0; i < most; i += some)
      for (int64_t r = 0; r < h.phases(); ++r) {
        const int64_t left = h.count(r) - i;
        if (left > 0)
          rows_of_phase(r, left < some ? left : some, from + i * row, scales, phases,
                        to + (r + i * h.stride) * to_row, h.stride * to_row);
      }
  }

  void item(int64_t index, Own& own) const {
    const int64_t n = index / groups.count, begin = groups.begin(index % groups.count);
    const int64_t count = groups.size(index % groups.count);
    own.planes.read(grad, n, begin * multiplier, count * multiplier, groups.largest() * multiplier,
                    window());
    for (int64_t i = 0; i < count; ++i)
      plane(own.planes.data + i * multiplier * plane_size,
            weight + (begin + i) * multiplier * h.kernel * w.kernel, own.phases,
            gx.flat() ? gx.first(n, begin + i) : own.results + i * gx.size(),
            gx.flat() ? gx.s.h : gx.width);
    if (!gx.flat()) gx.write(own.results, n, begin, count);
  }

  bool run() { return run_jobs(*this, batch * groups.count); }  // false: out of memory
};

// ---- gradient of weight and bias ----

template <class T>
struct DepthwiseGradWeight {
  static constexpr int kTaps = 9;  // sums in registers
  struct Own {
    PaddedPlanes<T> planes;
    T *grad, *sums;
  };
  Window window;
  int64_t batch, channels, multiplier;
  Planes<T> x, grad;
  T *gw, *gb;
  int64_t together;  // channels that are copied
  Tiling groups;  // of a job: their planes are neighbours in memory
  int64_t* taps;

  int64_t sums_size() const { return (window.taps() + 1) * lanes<T>; }  // taps and bias

  void lay_out(Arena* arena) { taps = arena->take<int64_t>(window.taps()); }
  Own own(Arena* arena) const {
    return {PaddedPlanes<T>::take(arena, window, together),
            arena->take<T>(grad.flat() ? 0 : together * multiplier * grad.size()),
            arena->take<T>(groups.largest() * multiplier * sums_size())};
  }
  void prepare() {
    for (int64_t k = 0; k < window.taps(); ++k)
      taps[k] = window.tap(k / window.kernel_w, k % window.kernel_w);
  }

  // sums[j] += gradient times what tap j meets, lane by lane.
  template <int J>
  void add_taps(const T* plane, const int64_t* tap, const T* go, int64_t go_row, T* sums) const {
    const int64_t row = window.stride_h * window.row();
    const int64_t full = window.out_w / lanes<T> * lanes<T>, tail = window.out_w - full;
    vec<T> acc[J] = {};
    for (int64_t i = 0; i < window.out_h; ++i, go += go_row, plane += row) {
      for (int64_t at = 0; at < full; at += lanes<T>) {
        const vec<T> a = load(go + at);
#pragma GCC unroll 9
        for (int j = 0; j < J; ++j) acc[j] = fma(a, load(plane + at + tap[j]), acc[j]);
      }
      if (tail == 0) continue;
      const vec<T> a = load_n(go + full, tail);
#pragma GCC unroll 9
      for (int j = 0; j < J; ++j) acc[j] = fma(a, load_n(plane + full + tap[j], tail), acc[j]);
    }
#pragma GCC unroll 9
    for (int j = 0; j < J; ++j) store(sums + j * lanes<T>, load(sums + j * lanes<T>) + acc[j]);
  }

  void add_rows(const T* go, int64_t go_row, T* sum) const {
    const int64_t full = window.out_w / lanes<T> * lanes<T>, tail = window.out_w - full;
    vec<T> acc{}, rest{};
    for (int64_t i = 0; i < window.out_h; ++i, go += go_row) {
      for (int64_t at = 0; at < full; at += lanes<T>) acc += load(go + at);
      if (tail) rest += load_n(go + full, tail);
    }
    store(sum, load(sum) + (acc + rest));
  }

  void add_plane(const T* plane, const T* go, int64_t go_row, T* sums) const {
    const Tiling parts(window.taps(), kTaps);
    for (int64_t p = 0; p < parts.count; ++p)
      with_count<kTaps>(parts.size(p), [&](auto j) {
        const int64_t tap = parts.begin(p);
        add_taps<decltype(j)::value>(plane, taps + tap, go, go_row, sums + tap * lanes<T>);
      });
    if (gb) add_rows(go, go_row, sums + window.taps() * lanes<T>);
  }

  // Example n, `count` channels from `c` on; sums of these.
  void add_example(int64_t n, int64_t c, int64_t count, Own& own, T* sums) const {
    const int64_t o = c * multiplier;
    own.planes.read(x, n, c, count, together, window);
    if (!grad.flat()) grad.read(own.grad, n, o, count * multiplier);
    for (int64_t i = 0; i < count * multiplier; ++i)
      add_plane(own.planes.data + i / multiplier * window.plane(),
                grad.flat() ? grad.first(n, o + i) : own.grad + i * grad.size(),
                grad.flat() ? grad.s.h : grad.width, sums + i * sums_size());
  }

  void item(int64_t index, Own& own) const {
    const int64_t begin = groups.begin(index), count = groups.size(index);
    fill(own.sums, count * multiplier * sums_size(), T(0));
    for (int64_t n = 0; n < batch; ++n)
      for (int64_t c = 0; c < count; c += together)
        add_example(n, begin + c, count - c < together ? count - c : together, own,
                    own.sums + c * multiplier * sums_size());
    const int64_t o = begin * multiplier, kernel = window.taps();
    for (int64_t i = 0; i < count * multiplier; ++i) {
      const T* sums = own.sums + i * sums_size();
      for (int64_t k = 0; k < kernel; ++k)
        gw[(o + i) * kernel + k] = hsum(load(sums + k * lanes<T>));
      if (gb) gb[o + i] = hsum(load(sums + kernel * lanes<T>));
    }
  }

  bool run() { return run_jobs(*this, groups.count); }  // false: out of memory
};

}  // namespace
}  // namespace grebe::GREBE_ISA
