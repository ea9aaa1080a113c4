// Convolution of many channels (conv_deep.h says when): 3x3 kernels with stride 1 or 2 and 5x5 kernels
// by Winograd's algorithm (winograd.h), 1x1 kernels as products of the arrays themselves (matmul.cpp),
// everything else and float64 directly, as a matrix product
//   [pixels x (tap, in)] [(tap, in) x out]
// whose left matrix is never made: a register tile is some pixels x some output channels, and its
// pixels are read where they lie.
//
// Layout. A job is a run of output rows, of one image or of several, for some groups of output
// channels. The input rows that it touches are copied, padded, with the channels side by side; the
// input of a tap is then a constant offset from its pixel. Weights are packed once for all jobs,
// [strip][tap][in][lane], and a strip of them, at most kSteps (tap, in) at a time, stays in the L2
// cache while all pixels of the job pass by.
//
// The input gradient is the same product with channels exchanged. With strides, each input pixel
// gets only the taps of its phase: rows of a phase are a strided view, phases of columns are
// interleaved in the results. Maps of a few pixels are handled in the same way, see has_small_map.
// The weight gradient is the product over pixels: register tiles of some channels x output
// channels, per tap, for the pixels of a job whose input is no padding; jobs divide input and output
// channels, and chunks of rows whose sums are added in order, so that results do not depend on the
// number of threads.
//
// Floor: one multiply-add per lane and cycle; measured shares in docs/kernels/conv.md.
#include "conv_deep.h"

#include "winograd.h"

namespace grebe::GREBE_ISA {

bool matmul(In a, In b, OptIn bias, Out c, int64_t activation, double beta);  // matmul.cpp
bool reduce_sum(In x, Out y, double scale);  // reduce.cpp

namespace {

constexpr int64_t kDeep = 32;  // channels in and out
constexpr int64_t kSteps = 512;  // of (tap, in) between two stores of a tile
constexpr int64_t kPixels = 128;  // of a job, where rows are no longer than that

// acc[m][v] += a[m][k] * b[k * V * lanes + v], k in order.
template <class T, int M, int V>
GREBE_INLINE void pixel_rows(int64_t size, const T* const* a, const T* b, vec<T> (&acc)[M][V]) {
  for (int64_t k = 0; k < size; ++k, b += V * lanes<T>) {
    vec<T> column[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) column[v] = load(b + v * lanes<T>);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const vec<T> x = splat(a[m][k]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) acc[m][v] = fma(x, column[v], acc[m][v]);
    }
  }
}

// acc[m][v] += a[m][a_offset[k]] * b[b_offset[k] + v * lanes], k in order.
template <class T, int M, int V>
GREBE_INLINE void pixel_pairs(int64_t size, const T* a, const int64_t* a_offset, const T* b,
                              const int64_t* b_offset, vec<T> (&acc)[M][V]) {
  for (int64_t k = 0; k < size; ++k) {
    const T *from = a + a_offset[k], *row = b + b_offset[k];
    vec<T> column[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) column[v] = load(row + v * lanes<T>);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const vec<T> x = splat(from[m]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) acc[m][v] = fma(x, column[v], acc[m][v]);
    }
  }
}

// ---- packed weights ----

// Element (lane, k, tap) of a weight; the sizes of what lies in the lanes and of k.
template <class T>
struct Weight {
  T* w;
  int64_t lane_size, k_size, lane_step, k_step, taps;

  // f(w of lane and k, packed [tap][k][lane] of lane and k, valid lanes), for k in [begin, end).
  template <class F>
  void each(const Strips<T>& strips, T* packed, int64_t begin, int64_t end, const F& f) const {
    constexpr int64_t L = lanes<T>;
    for (int64_t s = 0; s < strips.strips.count; ++s) {
      const int64_t first = strips.strips.begin(s) * L, size = strips.strips.size(s) * L;
      for (int64_t lane = first; lane < first + size; lane += L)
        f(w + lane * lane_step, packed + first * k_size * taps + lane - first, size,
          clamp(lane_size - lane, 0, L), begin, end);
    }
  }

  // [strip][tap][k][lane]
  void pack(const Strips<T>& strips, T* to) const {
    parallel_for(k_size, int64_t{16}, [&](int64_t begin, int64_t end) {
      each(strips, to, begin, end,
           [&](const T* from, T* p, int64_t size, int64_t n, int64_t k0, int64_t k1) {
             if (n < lanes<T>)
               for (int64_t t = 0; t < taps; ++t)
                 for (int64_t k = k0; k < k1; ++k) store(p + (t * k_size + k) * size, vec<T>{});
             if (taps == 1)
               return copy_plane(p + k0 * size, size, int64_t{1}, from + k0 * k_step, k_step,
                                 lane_step, k1 - k0, n);
             for (int64_t k = k0; k < k1; ++k)
               copy_plane(p + k * size, k_size * size, int64_t{1}, from + k * k_step, int64_t{1},
                          lane_step, taps, n);
           });
    });
  }

  // The other direction; what lies `chunk` apart in `from` is summed.
  void unpack(const Strips<T>& strips, T* from, int64_t chunks, int64_t chunk) const {
    parallel_for(k_size, int64_t{16}, [&](int64_t begin, int64_t end) {
      each(strips, from, begin, end,
           [&](T* to, T* p, int64_t size, int64_t n, int64_t k0, int64_t k1) {
             for (int64_t t = 0; t < taps; ++t)
               for (int64_t k = k0; k < k1; ++k) {
                 T* sum = p + (t * k_size + k) * size;
                 vec<T> total = load(sum);
                 for (int64_t c = 1; c < chunks; ++c) total += load(sum + c * chunk);
                 store(sum, total);
               }
             if (taps == 1)
               return copy_plane(to + k0 * k_step, lane_step, k_step, p + k0 * size, int64_t{1},
                                 size, n, k1 - k0);
             for (int64_t k = k0; k < k1; ++k)
               copy_plane(to + k * k_step, lane_step, int64_t{1}, p + k * size, int64_t{1},
                          k_size * size, n, taps);
           });
    });
  }
};

// ---- which inputs an output takes ----

// One dimension of a convolution, from its outputs or (transposed) from its inputs.
struct Axis {
  int64_t kernel, stride, pad, dilation;
  bool transposed;

  // Which input does output `out` take with `tap`?
  bool reach(int64_t out, int64_t tap, int64_t* in) const {
    *in = transposed ? out + pad - tap * dilation : out * stride - pad + tap * dilation;
    if (!transposed) return true;
    const bool hit = *in % stride == 0;
    *in /= stride;
    return hit;
  }
  int64_t phases() const { return transposed ? stride : 1; }
  int64_t step() const { return transposed ? 1 : stride; }
  // From the first input to the last, at most.
  int64_t span() const { return (kernel - 1) * dilation / phases() + 1; }
};

struct Tap {
  int64_t row, col;  // of the input, for row and column 0 of the phase
  int64_t index;  // in the kernel
};

// Outputs w, w + phases, ... of a row take taps[first[w]] to taps[first[w + 1]], at an input
// step_w columns further each.
struct TapList {
  Tap* taps;
  int64_t* first;
  int64_t phases, step_h, step_w, count;

  void begin_phase(int64_t p) { first[p] = first[p + 1] = count; }
  void add(int64_t p, const Tap& tap) {
    taps[count++] = tap;
    first[p + 1] = count;
  }
  Rectangle extent() const {  // of all offsets
    if (count == 0) return {0, 0, 0, 0};
    int64_t top = taps[0].row, bottom = top, left = taps[0].col, right = left;
    for (int64_t i = 1; i < count; ++i) {
      top = smaller(top, taps[i].row);
      bottom = -smaller(-bottom, -taps[i].row);
      left = smaller(left, taps[i].col);
      right = -smaller(-right, -taps[i].col);
    }
    return {top, bottom - top + 1, left, right - left + 1};
  }
};

// Padded input rows of a run of output rows, which may belong to several images.
template <class T>
struct Bands {
  int64_t out_h, step_h, cols, ld;
  Rectangle extent;  // of the taps; cols of it are not used

  // Copies the inputs of output rows [begin, end), counted over all images; starts: where each
  // output row's inputs begin.
  void copy(const Image<T>& x, int64_t begin, int64_t end, int64_t channel, int64_t channels,
            T* band, int64_t* starts) const {
    int64_t used = 0;
    for (int64_t r = begin, count; r < end; r += count) {
      const int64_t row = r % out_h;
      count = smaller(end - r, out_h - row);
      const int64_t rows = extent.rows ? (count - 1) * step_h + extent.rows : 0;
      copy_padded(band + used, ld, x, r / out_h, channel, channels,
                  {row * step_h + extent.row, rows, extent.col, cols});
      for (int64_t i = 0; i < count; ++i) *starts++ = used + i * step_h * cols * ld;
      used += rows * cols * ld;
    }
  }
};

// ---- forward and input gradient ----

template <class T>
struct Correlation {
  Image<T> x, y;
  const T *packed, *bias;
  int64_t taps;  // of the kernel
  TapList list;
  Bands<T> bands;
  int64_t rows_of_job, band_size;

  static constexpr int64_t G = Strips<T>::kGroup;

  struct Memory {
    T *band, *results;
    int64_t *starts, *source, *place;
  };
  Memory lay_out(Arena* arena) const {
    return {arena->take<T>(band_size), arena->take<T>(rows_of_job * y.w * G),
            arena->take<int64_t>(rows_of_job), arena->take<int64_t>(rows_of_job * y.w),
            arena->take<int64_t>(rows_of_job * y.w)};
  }

  // Where the pixels of a phase are in the band and in the results; returns how many.
  int64_t find_pixels(int64_t phase, int64_t rows, const Memory& m) const {
    const int64_t step = list.step_w * bands.ld;
    int64_t i = 0;
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t w = phase, at = m.starts[r]; w < y.w; w += list.phases, at += step) {
        m.source[i] = at;
        m.place[i++] = (r * y.w + w) * G;
      }
    return i;
  }

  // Some channels of some taps.
  struct Piece {
    int64_t tap, taps, channel, channels;
    bool first;
  };

  template <int V>
  void strip(const Piece& piece, const T* weights, const T* start, int64_t count, T* results,
             const Memory& m) const {
    constexpr int64_t L = lanes<T>;
    const Rectangle& e = bands.extent;
    const Tiling tiles(count, kRows);
    for (int64_t t = 0; t < tiles.count; ++t)
      with_count<kRows>(tiles.size(t), [&](auto n) {
        constexpr int M = decltype(n)::value;
        const int64_t* from = m.source + tiles.begin(t);
        const int64_t* to = m.place + tiles.begin(t);
        vec<T> acc[M][V] = {};
        for (int64_t k = piece.tap; k < piece.tap + piece.taps; ++k) {
          const Tap& tap = list.taps[k];
          const T* origin = m.band + ((tap.row - e.row) * bands.cols + tap.col - e.col) * bands.ld +
                            piece.channel;
          const T* a[M];
          for (int i = 0; i < M; ++i) a[i] = origin + from[i];
          const T* w = weights + (tap.index * x.channels + piece.channel) * V * L;
          pixel_rows<T, M, V>(piece.channels, a, w, acc);
        }
        for (int i = 0; i < M; ++i)
          for (int v = 0; v < V; ++v) {
            acc[i][v] += load((piece.first ? start : results + to[i]) + v * L);
            store(results + to[i] + v * L, acc[i][v]);
          }
      });
  }

  void multiply(const Strips<T>& strips, int64_t group, const Piece& piece, const T* start,
                int64_t count, const Memory& m) const {
    strips.each(group, [&](int64_t channel, auto vectors) {
      const int64_t lane = channel - strips.begin(group);
      strip<decltype(vectors)::value>(piece, packed + channel * x.channels * taps, start + lane,
                                      count, m.results + lane, m);
    });
  }

  // As many whole taps at a time as fit, or as many channels of one.
  void phase(const Strips<T>& strips, int64_t group, int64_t p, const T* start, int64_t count,
             const Memory& m) const {
    const int64_t begin = list.first[p], size = list.first[p + 1] - begin;
    if (size == 0) return multiply(strips, group, {begin, 0, 0, 0, true}, start, count, m);
    const Tiling blocks(size, clamp(kSteps / x.channels, 1, size));
    const Tiling parts(x.channels, kSteps > x.channels ? x.channels : kSteps);
    for (int64_t b = 0; b < blocks.count; ++b)
      for (int64_t c = 0; c < parts.count; ++c)
        multiply(
            strips, group,
            {begin + blocks.begin(b), blocks.size(b), parts.begin(c), parts.size(c), b + c == 0},
            start, count, m);
  }

  void job(const Strips<T>& strips, int64_t group, int64_t begin, int64_t end,
           const Memory& m) const {
    const int64_t channel = strips.begin(group);
    const int64_t valid = smaller(strips.size(group), y.channels - channel);
    T start[G] = {};
    if (bias) copy_run(start, bias + channel, valid);
    for (int64_t p = 0; p < smaller(list.phases, y.w); ++p)
      phase(strips, group, p, start, find_pixels(p, end - begin, m), m);
    for (int64_t r = begin; r < end; ++r)
      copy_rows_out(y, r / y.h, channel, valid, r % y.h, 1, m.results + (r - begin) * y.w * G, G,
                    y.w * G);
  }

  void run(const Strips<T>& strips, char* memory, int64_t own) const {
    const Tiling blocks(y.batch * y.h, rows_of_job);
    const int64_t parts = jobs_per_block(blocks.count, strips.count());
    take_jobs(blocks.count * parts, num_threads(), [&](int64_t j, int thread) {
      Arena arena{memory + thread * own};
      const Memory m = lay_out(&arena);
      const int64_t block = j / parts, part = j % parts;
      const int64_t begin = blocks.begin(block), end = blocks.begin(block + 1);
      bands.copy(x, begin, end, 0, x.channels, m.band, m.starts);
      for (int64_t g = strips.count() * part / parts; g < strips.count() * (part + 1) / parts; ++g)
        job(strips, g, begin, end, m);
    });
  }
};

// Maps of a few pixels are mostly border: there every output pixel is a phase of its own, with the
// taps that fall into the image, and the pixels of a tile are those of neighbouring images.
constexpr int64_t kSmallMap = 16;
constexpr int64_t kSmallBatch = 8;

template <class T>
bool has_small_map(const Image<T>& x, const Image<T>& y) {
  return y.h * y.w <= kSmallMap && x.h * x.w <= 4 * kSmallMap && y.batch >= kSmallBatch &&
         (x.h == 1 || x.s.h == x.w * x.s.w) && (y.h == 1 || y.s.h == y.w * y.s.w);
}

// Images become rows and pixels columns.
template <class T>
Image<T> as_rows(const Image<T>& a) {
  return {a.data, 1, a.channels, a.batch, a.h * a.w, {0, a.s.c, a.s.n, a.w == 1 ? a.s.h : a.s.w}};
}

template <class T>
struct Pass {
  Image<T> x, y;
  Axis h, w;
  Weight<T> weight;
  const T* bias;

  void add_taps(Correlation<T>& c, int64_t phase, int64_t out_h, int64_t out_w, bool inside) const {
    c.list.begin_phase(phase);
    for (int64_t i = 0; i < h.kernel; ++i)
      for (int64_t j = 0; j < w.kernel; ++j) {
        int64_t row, col;
        if (!h.reach(out_h, i, &row) || !w.reach(out_w, j, &col)) continue;
        const int64_t index = i * w.kernel + j;
        if (!inside)
          c.list.add(phase, {row, col, index});
        else if (row >= 0 && row < x.h && col >= 0 && col < x.w)
          c.list.add(phase, {0, row * x.w + col, index});
      }
  }

  void run_phase(Correlation<T>& c, const Strips<T>& strips, char* memory, int64_t own) const {
    c.bands.extent = c.list.extent();
    c.bands.out_h = c.y.h;
    c.bands.step_h = c.list.step_h;
    c.bands.cols = (divide_up(c.y.w, c.list.phases) - 1) * c.list.step_w + c.bands.extent.cols;
    c.run(strips, memory, own);
  }

  void run_map(Correlation<T>& c, const Strips<T>& strips, char* memory, int64_t own) const {
    c.list.count = 0;
    for (int64_t p = 0; p < y.h * y.w; ++p) add_taps(c, p, p / y.w, p % y.w, true);
    run_phase(c, strips, memory, own);
  }

  void run_bands(Correlation<T>& c, const Strips<T>& strips, char* memory, int64_t own) const {
    for (int64_t r = 0; r < smaller(h.phases(), y.h); ++r) {
      c.y.data = y.data + r * y.s.h;
      c.y.h = (y.h - r - 1) / h.phases() + 1;
      c.y.s.h = y.s.h * h.phases();
      c.list.count = 0;
      for (int64_t p = 0; p < w.phases(); ++p) add_taps(c, p, r, p, false);
      run_phase(c, strips, memory, own);
    }
  }

  // Sizes for the largest of the row phases.
  void plan(Correlation<T>& c, bool map) const {
    const int64_t h_most = map ? c.y.h : divide_up(y.h, h.phases());
    const int64_t h_least = map ? c.y.h : y.h / h.phases();
    c.rows_of_job = clamp((map ? 2 : 1) * kPixels / c.y.w, 1, c.y.batch * h_most);
    const int64_t images =
        h_least > 0 ? smaller(c.rows_of_job / h_least + 2, c.rows_of_job) : c.rows_of_job;
    const int64_t cols = map ? c.x.w : (divide_up(y.w, w.phases()) - 1) * w.step() + w.span() + 1;
    c.bands.ld = padded_channels<T>(x.channels);
    c.band_size = (c.rows_of_job * c.list.step_h + images * (h.span() + 1)) * cols * c.bands.ld;
  }

  bool run() const {
    const bool map = has_small_map(x, y);
    const Strips<T> strips(y.channels);
    const int64_t taps = weight.taps, phases = map ? y.h * y.w : w.phases();
    Correlation<T> c{};
    c.x = map ? as_rows(x) : x;
    c.y = map ? as_rows(y) : y;
    c.bias = bias;
    c.taps = taps;
    c.list = {nullptr, nullptr, phases, map ? 1 : h.step(), map ? 0 : w.step(), 0};
    plan(c, map);

    auto lay_out = [&](Arena* arena) {
      c.list.taps = arena->take<Tap>(taps * (map ? phases : 1));
      c.list.first = arena->take<int64_t>(phases + 1);
      return arena->take<T>(taps * x.channels * strips.width());
    };
    Arena measure{nullptr};
    lay_out(&measure);
    const int64_t shared = measure.used;
    c.lay_out(&measure);
    const int64_t own = measure.used - shared;
    char* memory = static_cast<char*>(scratch(static_cast<size_t>(shared + own * num_threads())));
    if (!memory) return false;
    Arena arena{memory};
    T* packed = lay_out(&arena);
    weight.pack(strips, packed);
    c.packed = packed;
    if (map)
      run_map(c, strips, memory + shared, own);
    else
      run_bands(c, strips, memory + shared, own);
    return true;
  }
};

// ---- weight gradient ----

template <class T>
struct WeightSums {
  Image<T> x, grad;
  Axis h, w;
  Weight<T> weight;
  T* bias;

  static constexpr int64_t G = Strips<T>::kGroup;
  Bands<T> bands;
  int64_t rows_of_block, band_size;

  struct Memory {
    T *band, *grads;
    int64_t *starts, *source, *place;
  };
  Memory lay_out(Arena* arena) const {
    return {arena->take<T>(band_size), arena->take<T>(rows_of_block * grad.w * G),
            arena->take<int64_t>(rows_of_block), arena->take<int64_t>(rows_of_block * grad.w),
            arena->take<int64_t>(rows_of_block * grad.w)};
  }

  // Inputs and gradients of output rows [begin, end).
  void copy_block(int64_t begin, int64_t end, int64_t channel, int64_t channels, int64_t o,
                  int64_t outputs, const Memory& m) const {
    bands.copy(x, begin, end, channel, channels, m.band, m.starts);
    const int64_t valid = smaller(outputs, grad.channels - o);
    if (valid < outputs) fill(m.grads, (end - begin) * grad.w * G, T(0));
    for (int64_t r = begin; r < end; ++r)
      copy_padded(m.grads + (r - begin) * grad.w * G, G, grad, r / grad.h, o, valid,
                  {r % grad.h, 1, 0, grad.w});
  }

  // Pixels of output rows [begin, end) whose input for this tap is not padding: where input and
  // gradient are. Returns how many.
  int64_t find_pairs(int64_t begin, int64_t end, int64_t tap, const Memory& m) const {
    const int64_t down = tap / w.kernel * h.dilation, right = tap % w.kernel * w.dilation;
    const int64_t first = w.pad > right ? divide_up(w.pad - right, w.stride) : 0;
    const int64_t left = x.w + w.pad - right;  // columns from the tap's first input on
    const int64_t last = left > 0 ? smaller(grad.w, divide_up(left, w.stride)) : 0;
    int64_t i = 0;
    for (int64_t r = begin; r < end; ++r) {
      const int64_t row = r % grad.h * h.stride + down - h.pad;
      if (row < 0 || row >= x.h) continue;
      const int64_t start = m.starts[r - begin] + (down * bands.cols + right) * bands.ld;
      for (int64_t c = first; c < last; ++c) {
        m.source[i] = start + c * w.stride * bands.ld;
        m.place[i++] = ((r - begin) * grad.w + c) * G;
      }
    }
    return i;
  }

  // sums[channel][lane] += inputs^T grads for one tap.
  template <int V>
  void multiply(int64_t pairs, int64_t channels, int64_t lane, T* sums, bool first,
                const Memory& m) const {
    constexpr int64_t L = lanes<T>;
    const Tiling rows(channels, kRows);
    for (int64_t t = 0; t < rows.count; ++t)
      with_count<kRows>(rows.size(t), [&](auto n) {
        constexpr int M = decltype(n)::value;
        vec<T> acc[M][V] = {};
        pixel_pairs<T, M, V>(pairs, m.band + rows.begin(t), m.source, m.grads + lane, m.place, acc);
        add_or_store<T, M, V>(sums + rows.begin(t) * V * L, V * L, acc, first);
      });
  }

  // Output rows [begin, end) for one group of output and some input channels.
  void job(const Strips<T>& strips, int64_t group, int64_t channel, int64_t channels, int64_t begin,
           int64_t end, T* sums, const Memory& m) const {
    const int64_t o = strips.begin(group), width = strips.size(group), taps = weight.taps;
    T* bias_sum = sums + taps * x.channels * strips.width() + o;
    if (channel == 0) fill(bias_sum, width, T(0));
    const Tiling blocks(end - begin, rows_of_block);
    for (int64_t b = 0; b < blocks.count; ++b) {
      const int64_t from = begin + blocks.begin(b), to = begin + blocks.begin(b + 1);
      copy_block(from, to, channel, channels, o, width, m);
      if (bias && channel == 0) add_rows(bias_sum, m.grads, width, (to - from) * grad.w);
      for (int64_t t = 0; t < taps; ++t) {
        const int64_t pairs = find_pairs(from, to, t, m);
        strips.each(group, [&](int64_t lane, auto vectors) {
          constexpr int V = decltype(vectors)::value;
          T* sum = sums + lane * x.channels * taps + (t * x.channels + channel) * V * lanes<T>;
          multiply<V>(pairs, channels, lane - o, sum, b == 0, m);
        });
      }
    }
  }

  static void add_rows(T* sum, const T* rows, int64_t width, int64_t count) {
    for (int64_t c = 0; c < width; c += lanes<T>) {
      vec<T> total = load(sum + c);
      for (int64_t i = 0; i < count; ++i) total += load(rows + i * G + c);
      store(sum + c, total);
    }
  }

  void plan(int64_t channels) {
    const int64_t all = grad.batch * grad.h;
    rows_of_block = clamp(kPixels / grad.w, 1, all);
    bands.out_h = grad.h;
    bands.step_h = h.stride;
    bands.extent = {-h.pad, h.span(), -w.pad, w.span()};
    bands.cols = (grad.w - 1) * w.stride + w.span();
    bands.ld = padded_channels<T>(channels);
    const int64_t images = smaller(rows_of_block / grad.h + 2, rows_of_block);
    band_size = (rows_of_block * h.stride + images * h.span()) * bands.cols * bands.ld;
  }

  bool run() {
    const Strips<T> strips(grad.channels);
    const Tiling inputs(x.channels, kGradChannels);
    plan(divide_up(x.channels, inputs.count));
    const int64_t tasks = strips.count() * inputs.count;
    const Tiling chunks = grad_chunks(grad.batch * grad.h, tasks);
    const int64_t sums_size = (weight.taps * x.channels + 1) * strips.width();

    Arena measure{nullptr};
    measure.take<T>(chunks.count * sums_size);
    const int64_t shared = measure.used;
    lay_out(&measure);
    const int64_t own = measure.used - shared;
    char* memory = static_cast<char*>(scratch(static_cast<size_t>(shared + own * num_threads())));
    if (!memory) return false;
    T* const sums = reinterpret_cast<T*>(memory);
    take_jobs(chunks.count * tasks, num_threads(), [&](int64_t j, int thread) {
      Arena arena{memory + shared + thread * own};
      const int64_t chunk = j / tasks, group = j % tasks / inputs.count, part = j % inputs.count;
      job(strips, group, inputs.begin(part), inputs.size(part), chunks.begin(chunk),
          chunks.begin(chunk + 1), sums + chunk * sums_size, lay_out(&arena));
    });
    weight.unpack(strips, sums, chunks.count, sums_size);
    if (bias)
      add_chunks(bias, sums + weight.taps * x.channels * strips.width(), grad.channels,
                 chunks.count, sums_size);
    return true;
  }
};

// ---- 1x1 kernels, stride 1: matrix products ----

// Where an image's pixels are one dimension, for kernels that see one pixel at a time.
struct Pixels {
  const View& image;
  int64_t count, stride;  // of one image's pixels

  explicit Pixels(const View& v)
      : image(v),
        count(v.shape[2] * v.shape[3]),
        stride(v.shape[3] > 1 ? v.strides[3] : v.strides[2]) {}

  bool in_one_dimension() const {
    return image.shape[2] == 1 || image.shape[3] == 1 ||
           image.strides[2] == image.shape[3] * stride;
  }
  // The pixels of each channel side by side?
  bool are_planes() const { return in_one_dimension() && stride == 1; }
  // The channels of each pixel side by side, and one stride from pixel to pixel over all images?
  bool are_rows() const {
    return in_one_dimension() && image.strides[1] == 1 &&
           (count == 1 || image.shape[0] == 1 || image.strides[0] == count * stride);
  }
  View planes() const {  // [N, C, pixels]
    return {image.data,
            3,
            image.dtype,
            {image.shape[0], image.shape[1], count},
            {image.strides[0], image.strides[1], 1}};
  }
  View plane(int64_t n, int64_t size) const {  // [C, pixels] of image n
    return {static_cast<char*>(image.data) + n * image.strides[0] * size,
            2,
            image.dtype,
            {image.shape[1], count},
            {image.strides[1], 1}};
  }
  View rows() const {  // [N pixels, C]
    return {image.data,
            2,
            image.dtype,
            {image.shape[0] * count, image.shape[1]},
            {count == 1 ? image.strides[0] : stride, 1}};
  }
};

inline View transposed(const View& m) {
  return {m.data, 2, m.dtype, {m.shape[1], m.shape[0]}, {m.strides[1], m.strides[0]}};
}
// [out, in] of a 1x1 weight.
inline View matrix_of(const View& w) {
  return {w.data, 2, w.dtype, {w.shape[0], w.shape[1]}, {w.strides[0], w.strides[1]}};
}
inline bool multiply(const View& a, const View& b, const View& bias, const View& c, bool add) {
  return matmul(In{a}, In{b}, OptIn{bias}, Out{c}, 0, add);
}

bool pointwise_forward(const View& x, const View& w, const View& bias, const View& y) {
  const Pixels from(x), to(y);
  if (from.are_rows())
    return multiply(from.rows(), transposed(matrix_of(w)), bias, to.rows(), false);
  View column = bias;
  column.ndim = 2;
  return multiply(matrix_of(w), from.planes(), column, to.planes(), false);
}

bool pointwise_grad_input(const View& grad, const View& w, const View& gx) {
  const Pixels from(grad), to(gx);
  if (from.are_rows()) return multiply(from.rows(), matrix_of(w), View{}, to.rows(), false);
  return multiply(transposed(matrix_of(w)), from.planes(), View{}, to.planes(), false);
}

bool pointwise_grad_weight(const View& grad, const View& x, const View& gw, const View& gb) {
  const Pixels out(grad), in(x);
  if (gb.data) {
    const View sums{gb.data, 4, gb.dtype, {1, gb.shape[0], 1, 1}, {0, 1, 0, 0}};
    if (!reduce_sum(In{grad}, Out{sums}, 1.0)) return false;
  }
  const View sum = matrix_of(gw);
  if (in.are_rows()) return multiply(transposed(out.rows()), in.rows(), View{}, sum, false);
  const int64_t size = x.dtype == DType::kFloat32 ? 4 : 8;
  for (int64_t n = 0; n < x.shape[0]; ++n)
    if (!multiply(out.plane(n, size), transposed(in.plane(n, size)), View{}, sum, n > 0))
      return false;
  return true;
}

// ---- which way ----

constexpr int64_t kPlanePixels = 32;  // a plane is a row of the right matrix

bool by_matmul(const View& w, const View& x, const View& y, const Steps& s) {
  const bool one_pixel =
      w.shape[2] * w.shape[3] == 1 && s.stride_h * s.stride_w == 1 && s.pad_h == 0 && s.pad_w == 0;
  const Pixels from(x), to(y);
  if (!one_pixel || from.count == 0) return false;
  return (from.are_rows() && to.are_rows()) ||
         (from.are_planes() && to.are_planes() && from.count >= kPlanePixels);
}

// Pixels of a map: on less, the direct way skips the border.
constexpr int64_t kWinogradMap = 10;
constexpr int64_t kStridedWinogradMap = 17;  // of the output

bool by_winograd(const View& w, const Steps& s, int64_t stride, int64_t taps = 3) {
  return w.dtype == DType::kFloat32 && w.shape[2] == taps && w.shape[3] == taps &&
         s.stride_h == stride && s.stride_w == stride && s.dilation_h == 1 && s.dilation_w == 1;
}
bool by_plain_winograd(const View& w, const View& to, const Steps& s) {
  return by_winograd(w, s, 1) && to.shape[2] * to.shape[3] >= kWinogradMap;
}

int64_t tiles_of(const View& images, int64_t side) {
  return images.shape[0] * divide_up(images.shape[2], side) * divide_up(images.shape[3], side);
}

// Tiles of six inputs, to results `to`. Their 49 kernels per pair of channels cost about as much as
// that many tiles.
constexpr int64_t kKernelTiles = 48;
int64_t cost_of_six(const View& to, int64_t side) {
  return 49 * (tiles_of(to, side) + kKernelTiles);
}

bool by_six_for_3x3(const View& w, const View& to, const Steps& s) {
  return by_plain_winograd(w, to, s) && cost_of_six(to, 4) < 16 * tiles_of(to, 2);
}
bool by_six_for_5x5(const View& w, const View& to, const Steps& s) {
  constexpr int64_t kProducts = 20;  // of 25 per pixel: transforms are not free either
  return by_winograd(w, s, 1, 5) && cost_of_six(to, 2) < kProducts * tiles_of(to, 1);
}
bool by_strided_winograd(const View& w, const View& y, const Steps& s) {
  return by_winograd(w, s, 2) && y.shape[2] * y.shape[3] >= kStridedWinogradMap;
}

Axis rows_axis(const View& w, const Steps& s, bool transposed) {
  return {w.shape[2], s.stride_h, s.pad_h, s.dilation_h, transposed};
}
Axis columns_axis(const View& w, const Steps& s, bool transposed) {
  return {w.shape[3], s.stride_w, s.pad_w, s.dilation_w, transposed};
}

// Of input channels (transposed: in the lanes) and output channels.
template <class T>
Weight<T> weight_of(const View& w, bool transposed) {
  const int64_t out = w.shape[0], in = w.shape[1], taps = w.shape[2] * w.shape[3];
  if (transposed) return {data<T>(w), in, out, taps, in * taps, taps};
  return {data<T>(w), out, in, in * taps, taps, taps};
}

// A kernel of one row or column takes every stride-th row or column: the others do not exist.
template <class T>
void skip_unused(Image<T>& x, Axis& h, Axis& w) {
  if (h.kernel == 1 && h.pad == 0) {
    x.h = (x.h - 1) / h.stride + 1;
    x.s.h *= h.stride;
    h.stride = 1;
  }
  if (w.kernel == 1 && w.pad == 0) {
    x.w = (x.w - 1) / w.stride + 1;
    x.s.w *= w.stride;
    w.stride = 1;
  }
}

template <class T>
bool direct_forward(const View& x, const View& w, const View& bias, const View& y, const Steps& s) {
  Pass<T> f{image_of<T>(x),         image_of<T>(y),
            rows_axis(w, s, false), columns_axis(w, s, false),
            weight_of<T>(w, false), data<T>(bias)};
  skip_unused(f.x, f.h, f.w);
  return f.run();
}

template <class T>
bool direct_grad_input(const View& grad, const View& w, const View& gx, const Steps& s) {
  return Pass<T>{image_of<T>(grad),        image_of<T>(gx),       rows_axis(w, s, true),
                 columns_axis(w, s, true), weight_of<T>(w, true), nullptr}
      .run();
}

template <class T>
bool direct_grad_weight(const View& grad, const View& x, const View& gw, const View& gb,
                        const Steps& s) {
  WeightSums<T> f{};
  f.x = image_of<T>(x);
  f.grad = image_of<T>(grad);
  f.h = rows_axis(gw, s, false);
  f.w = columns_axis(gw, s, false);
  f.weight = weight_of<T>(gw, false);
  f.bias = data<T>(gb);
  skip_unused(f.x, f.h, f.w);
  return f.run();
}

template <class S>
bool winograd_forward(const View& x, const View& w, const View& bias, const View& y,
                      const Steps& s) {
  Winograd<S> f{};
  f.x = image_of<float>(x);
  f.y = image_of<float>(y);
  f.pad_h = s.pad_h;
  f.pad_w = s.pad_w;
  f.kernels = {data<float>(w),      f.y.channels, f.x.channels, S::kTaps * S::kTaps * f.x.channels,
               S::kTaps * S::kTaps, false};
  f.bias = data<float>(bias);
  return f.run();
}

// Tiles begin with the gradient pad_h, pad_w before the first.
template <class S>
bool winograd_grad_input(const View& grad, const View& w, const View& gx, int64_t pad_h,
                         int64_t pad_w) {
  Winograd<S> f{};
  f.x = image_of<float>(grad);
  f.y = image_of<float>(gx);
  f.pad_h = pad_h;
  f.pad_w = pad_w;
  f.kernels = {data<float>(w),
               f.y.channels,
               f.x.channels,
               S::kTaps * S::kTaps,
               S::kTaps * S::kTaps * f.y.channels,
               true};
  return f.run();
}

bool winograd_grad_strided_input(const View& grad, const View& w, const View& gx, const Steps& s) {
  const int64_t rows = s.pad_h / 2, columns = s.pad_w / 2;
  return s.pad_h % 2 ? winograd_grad_input<Upsampling<true>>(grad, w, gx, -rows, -columns)
                     : winograd_grad_input<Upsampling<false>>(grad, w, gx, 1 - rows, 1 - columns);
}

template <class S>
bool winograd_grad_weight(const View& grad, const View& x, const View& gw, const View& gb,
                          const Steps& s) {
  WinogradWeight<S> f{};
  f.x = image_of<float>(x);
  f.grad = image_of<float>(grad);
  f.pad_h = s.pad_h;
  f.pad_w = s.pad_w;
  f.gw = data<float>(gw);
  f.gb = data<float>(gb);
  return f.run();
}

}  // namespace

bool is_deep(const View& x, const View& w, int64_t groups) {
  return groups == 1 && x.shape[0] > 0 && w.shape[0] >= kDeep && w.shape[1] >= kDeep;
}

bool deep_conv2d(const View& x, const View& w, const View& bias, const View& y, const Steps& s) {
  if (by_matmul(w, x, y, s)) return pointwise_forward(x, w, bias, y);
  if (by_six_for_5x5(w, y, s)) return winograd_forward<Six<5>>(x, w, bias, y, s);
  if (by_six_for_3x3(w, y, s)) return winograd_forward<Six<3>>(x, w, bias, y, s);
  if (by_plain_winograd(w, y, s)) return winograd_forward<Plain>(x, w, bias, y, s);
  if (by_strided_winograd(w, y, s)) return winograd_forward<Strided>(x, w, bias, y, s);
  return x.dtype == DType::kFloat32 ? direct_forward<float>(x, w, bias, y, s)
                                    : direct_forward<double>(x, w, bias, y, s);
}

bool deep_grad_input(const View& grad, const View& w, const View& gx, const Steps& s) {
  if (by_matmul(w, grad, gx, s)) return pointwise_grad_input(grad, w, gx);
  if (by_six_for_5x5(w, gx, s))
    return winograd_grad_input<Six<5>>(grad, w, gx, 4 - s.pad_h, 4 - s.pad_w);
  if (by_six_for_3x3(w, gx, s))
    return winograd_grad_input<Six<3>>(grad, w, gx, 2 - s.pad_h, 2 - s.pad_w);
  if (by_plain_winograd(w, gx, s))
    return winograd_grad_input<Plain>(grad, w, gx, 2 - s.pad_h, 2 - s.pad_w);
  if (by_strided_winograd(w, grad, s) && s.pad_h % 2 == s.pad_w % 2)
    return winograd_grad_strided_input(grad, w, gx, s);
  return grad.dtype == DType::kFloat32 ? direct_grad_input<float>(grad, w, gx, s)
                                       : direct_grad_input<double>(grad, w, gx, s);
}

bool deep_grad_weight(const View& grad, const View& x, const View& gw, const View& gb,
                      const Steps& s) {
  if (by_matmul(gw, x, grad, s)) return pointwise_grad_weight(grad, x, gw, gb);
  if (by_six_for_5x5(gw, grad, s)) return winograd_grad_weight<Six<5>>(grad, x, gw, gb, s);
  if (by_plain_winograd(gw, grad, s)) return winograd_grad_weight<Plain>(grad, x, gw, gb, s);
  if (by_strided_winograd(gw, grad, s)) return winograd_grad_weight<Strided>(grad, x, gw, gb, s);
  return grad.dtype == DType::kFloat32 ? direct_grad_weight<float>(grad, x, gw, gb, s)
                                       : direct_grad_weight<double>(grad, x, gw, gb, s);
}

}  // namespace grebe::GREBE_ISA
