// Convolution in two dimensions: forward, gradient of the input, gradient of the weight and bias.
//
// Many channels without groups go to conv_deep.cpp, one channel per group to depthwise.h. Everything
// else lies here *flat*: the pixels of an output channel, of one image or of several, are one row of
// numbers, and vectors run along it whatever the width of the maps. For that the input of a job (some output rows of some images) is copied once per
// column of the kernel:
//   columns[channel, kernel column][row phase][row][image][output column]
// With the rows of all images side by side, a kernel row is one constant offset too, so that
//   forward      y[out][p] = bias + sum over k of w[out][k] * columns[p + offset(k)]
//   grad weight  gw[out][k] = sum over p of grad[out][p] * columns[p + offset(k)]
//   grad input   per input row, sum over kernel row and out of w[out][k] * grad[out][p - row], for
//                every (channel, kernel column); these are added, shifted, once per row
// and none of them multiplies padding or empty lanes. Jobs of few pixels take several images. Only
// the rows of a kernel that meet the gradient are multiplied in the third.
//
// Threads share the jobs; weight gradients are summed in chunks of images that do not depend on the
// number of threads and are added in order: the same bits for any number.
//
// Floor: one multiply-add per lane and cycle; measured shares in docs/kernels/conv.md.
#include "conv_deep.h"
#include "depthwise.h"
#include "window.h"

#include <type_traits>

namespace grebe::GREBE_ISA {
namespace {

constexpr int kVectors = kVectorBytes == 64 ? 4 : 2;  // of a tile's row: 32 or 16 registers
constexpr int kRows = 6;
constexpr int kDotRows = kVectorBytes == 64 ? 6 : 3;
constexpr int kDotTaps = 4;
constexpr int64_t kJobBytes = int64_t{256} << 10;  // of a job's copies, about: they stay in L2
constexpr int64_t kDotBytes = int64_t{128} << 10;  // the same for sums over pixels
constexpr int64_t kMostImages = 16;  // of a job
constexpr int64_t kChunks = 16;  // partial sums of a weight gradient, at most

struct Problem {
  Window window;
  int64_t batch, groups, in_channels, out_channels;  // channels of one group
  int64_t depth() const { return in_channels * window.taps(); }
  int64_t pixels() const { return window.out_h * window.out_w; }
  bool is_depthwise() const { return in_channels == 1 && groups > 1; }
};

Problem problem_of(const View& x, const View& w, const View& y, const Steps& s, int64_t groups) {
  Problem p;
  p.window = {x.shape[2], x.shape[3], y.shape[2], y.shape[3], w.shape[2],   w.shape[3],
              s.stride_h, s.stride_w, s.pad_h,    s.pad_w,    s.dilation_h, s.dilation_w};
  p.batch = x.shape[0];
  p.groups = groups;
  p.in_channels = w.shape[1];
  p.out_channels = w.shape[0] / groups;
  return p;
}

// The fewest images whose `pixels` each fill the lanes well, leaving enough jobs to share.
template <class T>
int64_t images_per_job(int64_t pixels, int64_t batch) {
  const int64_t most = larger(smaller(kMostImages, batch / 8), 1);
  int64_t best = 1;
  double best_filling = 0;
  for (int64_t n = 1; n <= most; ++n) {
    const double filling =
        static_cast<double>(n * pixels) / static_cast<double>(round_up(n * pixels, lanes<T>));
    if (filling > best_filling + 0.02) best = n, best_filling = filling;
  }
  return best;
}

// ---- jobs ----

// Output (or input) rows [row, row + rows) of images [image, image + images).
struct Job {
  int64_t image, images, row, rows, group;
};

struct Jobs {
  Tiling images, rows;
  int64_t groups;
  Job largest() const { return {0, images.largest(), 0, rows.largest(), 0}; }
  int64_t count() const { return images.count * rows.count * groups; }
  Job operator[](int64_t i) const {
    const int64_t g = i % groups, r = i / groups % rows.count, n = i / groups / rows.count;
    return {images.begin(n), images.size(n), rows.begin(r), rows.size(r), g};
  }
};

// Rows x images runs of n elements, one after the other, written as whole vectors: what is too much
// is overwritten by the next run, and up to a vector after the last. Returns the end of the last.
template <class T>
inline T* copy_runs(T* to, int64_t n, const T* from, int64_t rows, int64_t row, int64_t images,
                    int64_t image) {
  const int64_t full = (n - 1) / lanes<T> * lanes<T>, tail = n - full;
  for (int64_t h = 0; h < rows; ++h)
    for (int64_t i = 0; i < images; ++i, to += n) {
      const T* at = from + h * row + i * image;
      for (int64_t w = 0; w < full; w += lanes<T>) store(to + w, load(at + w));
      store(to + full, load_n(at + full, tail));
    }
  return to;
}

// ---- columns: the input of a job ----

template <class T>
struct Columns {
  Window g;  // of a whole image
  int64_t channels;
  const T* x;
  Strides s;

  int64_t phases() const { return smaller(g.stride_h, (g.kernel_h - 1) * g.dilation_h + 1); }
  int64_t reach() const { return (g.kernel_h - 1) * g.dilation_h / g.stride_h; }
  int64_t rows(int64_t out_rows) const { return out_rows + reach(); }  // of a phase
  int64_t channel_size(int64_t images, int64_t out_rows) const {  // of one kernel column
    return phases() * rows(out_rows) * images * g.out_w;
  }
  int64_t row_bytes(int64_t images) const {
    return channels * g.kernel_w * phases() * images * g.out_w * static_cast<int64_t>(sizeof(T));
  }
  int64_t size(int64_t images, int64_t out_rows) const {
    return channels * g.kernel_w * channel_size(images, out_rows) + lanes<T>;
  }
  int64_t plane_size(int64_t images, int64_t out_rows) const {
    return rows(out_rows) * g.stride_h * images * g.row() + lanes<T>;
  }

  // Where the input of tap k lies, from the output's pixel on.
  void fill_taps(int64_t* table, const Job& job) const {
    const int64_t row = job.images * g.out_w, size = channel_size(job.images, job.rows);
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t kh = 0; kh < g.kernel_h; ++kh) {
        const int64_t h = kh * g.dilation_h;
        const int64_t at = (h % g.stride_h * rows(job.rows) + h / g.stride_h) * row;
        for (int64_t kw = 0; kw < g.kernel_w; ++kw) *table++ = (c * g.kernel_w + kw) * size + at;
      }
  }

  // The rows of one channel that the job needs, padded and split by phase: [row][image][column].
  void split(T* plane, const Job& job, int64_t channel) const {
    const int64_t first = job.row * g.stride_h - g.pad_h, row = g.row();
    const int64_t top = first < 0 ? -first : 0;
    const int64_t count =
        smaller(g.in_h - first, (job.rows - 1) * g.stride_h + (g.kernel_h - 1) * g.dilation_h + 1);
    fill(plane, plane_size(job.images, job.rows), T(0));
    if (count <= top) return;
    for (int64_t n = 0; n < job.images; ++n) {
      const T* from = x + (job.image + n) * s.n + channel * s.c + (first + top) * s.h;
      T* to = plane + (top * job.images + n) * row;
      for_phases(g, [&](int64_t at, int64_t column, int64_t size) {
        copy_plane(to + at, job.images * row, int64_t{1}, from + column * s.w, s.h,
                   g.stride_w * s.w, count - top, size);
      });
    }
  }

  // Nothing to pad and no phases of columns: runs can be copied straight from the input.
  bool plain() const {
    return g.pad_h == 0 && g.pad_w == 0 && g.stride_h == 1 && g.stride_w == 1 && s.w == 1;
  }

  void pack(T* to, T* plane, const Job& job) const {
    const int64_t row = g.row(), wide = job.images * row;
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t channel = job.group * channels + c;
      const T* source = x + job.image * s.n + channel * s.c + job.row * s.h;
      if (!plain()) split(plane, job, channel);
      for (int64_t kw = 0; kw < g.kernel_w; ++kw)
        for (int64_t phase = 0; phase < phases(); ++phase) {
          if (plain())
            to = copy_runs(to, g.out_w, source + kw * g.dilation_w, rows(job.rows), s.h, job.images,
                           s.n);
          else
            to = copy_runs(to, g.out_w, plane + g.tap(0, kw) + phase * wide, rows(job.rows),
                           g.stride_h * wide, job.images, row);
        }
    }
  }
};

// Jobs of about kJobBytes: some rows of some images.
template <class T>
Jobs jobs_of(const Problem& p, int64_t images, int64_t rows, int64_t row_bytes, int64_t reach) {
  constexpr int64_t kJobs = 8;  // so that few images are shared, too
  const Tiling n(p.batch, images);
  int64_t most = larger(kJobBytes / row_bytes - reach, larger(2 * reach, 4));
  const int64_t parts = smaller(rows, kJobs / larger(n.count * p.groups, 1));
  if (parts > 1) most = smaller(most, (rows + parts - 1) / parts);
  return {n, {rows, most}, p.groups};
}

template <class T>
Columns<T> columns_of(const Problem& p, const View& x) {
  return {p.window, p.in_channels, data<T>(x), strides_of(x)};
}

// ---- gradients or outputs of a job, [channel][row][image][column] ----

template <class T>
struct Maps {
  T* data;
  Strides s;
  int64_t channels, width;
  // Rows of numbers in memory already?
  bool flat() const { return s.w == 1 && s.h == width; }

  const T* first(const Job& job) const {
    return data + job.image * s.n + job.group * channels * s.c + job.row * s.h;
  }

  // Rows of `step` elements each, images * width or more; up to a vector after the last is written.
  void read(T* to, const Job& job, int64_t step) const {
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t h = 0; h < job.rows; ++h, to += step) {
        const T* from = first(job) + c * s.c + h * s.h;
        if (s.w == 1) {
          copy_runs(to, width, from, int64_t{1}, int64_t{0}, job.images, s.n);
          continue;
        }
        for (int64_t n = 0; n < job.images; ++n)
          for (int64_t w = 0; w < width; ++w) to[n * width + w] = from[n * s.n + w * s.w];
      }
  }

  // Whole vectors where they stay within the rows.
  void write_flat(T* to, const T* from, int64_t rows, int64_t row) const {
    const int64_t spare = rows * width - round_up(width, lanes<T>);
    const int64_t whole = spare < 0 ? 0 : spare / width + 1;
    to = copy_runs(to, width, from, whole, row, int64_t{1}, int64_t{0});
    for (int64_t h = whole; h < rows; ++h, to += width) copy_run(to, from + h * row, width);
  }

  void write(const T* from, const Job& job) const {
    const int64_t row = job.images * width, plane = job.rows * row;
    for (int64_t n = 0; n < job.images; ++n, from += width) {
      T* to = const_cast<T*>(first(job)) + n * s.n;
      if (flat()) {
        for (int64_t c = 0; c < channels; ++c)
          write_flat(to + c * s.c, from + c * plane, job.rows, row);
        continue;
      }
      for (int64_t h = 0; h < job.rows; ++h)
        copy_plane(to + h * s.h, s.c, s.w, from + h * row, plane, int64_t{1}, channels, width);
    }
  }
};

template <class T>
Maps<T> maps_of(const View& v, int64_t groups) {
  return {data<T>(v), strides_of(v), v.shape[1] / groups, v.shape[3]};
}

// w[rows][depth] of one group in tiles of rows: [tile][k][row of the tile].
template <class T>
void pack_tiles(T* to, const T* w, const Tiling& tiles, int64_t depth, int64_t row_step,
                int64_t k_step) {
  for (int64_t t = 0; t < tiles.count; ++t) {
    const int64_t begin = tiles.begin(t), size = tiles.size(t);
    copy_plane(to + begin * depth, size, int64_t{1}, w + begin * row_step, k_step, row_step, depth,
               size);
  }
}

// ---- forward ----

template <class T>
struct Forward {
  struct Own {
    T *columns, *plane, *result;
    int64_t* taps;
  };
  Problem p;
  Columns<T> x;
  Maps<T> y;
  const T *w, *bias;
  Jobs jobs;
  T* weight;

  Tiling tiles() const { return {p.out_channels, kRows}; }

  void lay_out(Arena* arena) { weight = arena->take<T>(p.groups * p.out_channels * p.depth()); }
  Own own(Arena* arena) const {
    const Job most = jobs.largest();
    return {arena->take<T>(x.size(most.images, most.rows)),
            arena->take<T>(x.plane_size(most.images, most.rows)),
            arena->take<T>(p.out_channels * most.images * most.rows * p.window.out_w),
            arena->take<int64_t>(p.depth())};
  }
  void prepare() {
    const int64_t size = p.out_channels * p.depth();
    for (int64_t g = 0; g < p.groups; ++g)
      pack_tiles(weight + g * size, w + g * size, tiles(), p.depth(), p.depth(), int64_t{1});
  }

  // acc[m][v] += w[k][m] * columns[offset of k][v], k in order.
  template <int M, int V>
  void tile(const Own& own, int64_t pixel, const T* a, const T* b, T* to, int64_t plane,
            int64_t left) const {
    const T* from = own.columns + pixel;
    vec<T> acc[M][V];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const vec<T> start = b ? splat(b[m]) : vec<T>{};
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        acc[m][v] = start;
        __builtin_prefetch(to + m * plane + v * lanes<T>, 1);
      }
    }
    for (int64_t k = 0; k < p.depth(); ++k, a += M) {
      const T* at = from + own.taps[k];
      vec<T> column[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) column[v] = load(at + v * lanes<T>);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        const vec<T> scale = splat(a[m]);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) acc[m][v] = fma(scale, column[v], acc[m][v]);
      }
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        T* at = to + m * plane + v * lanes<T>;
        if (v + 1 < V || left >= V * lanes<T>)
          store(at, acc[m][v]);
        else
          store_n(at, acc[m][v], left - v * lanes<T>);
      }
  }

  void item(int64_t index, const Own& own) const {
    const Job job = jobs[index];
    const bool direct = job.images == 1 && y.flat();
    const int64_t pixels = job.images * job.rows * p.window.out_w;
    const int64_t plane = direct ? y.s.c : pixels;
    T* to = direct ? const_cast<T*>(y.first(job)) : own.result;
    x.fill_taps(own.taps, job);
    x.pack(own.columns, own.plane, job);
    const T* a = weight + job.group * p.out_channels * p.depth();
    const T* b = bias ? bias + job.group * p.out_channels : nullptr;
    const Tiling blocks(round_up(pixels, lanes<T>) / lanes<T>, kVectors), rows = tiles();
    for (int64_t i = 0; i < blocks.count; ++i)
      with_count<kVectors>(blocks.size(i), [&](auto vectors) {
        const int64_t pixel = blocks.begin(i) * lanes<T>;
        for (int64_t t = 0; t < rows.count; ++t)
          with_count<kRows>(rows.size(t), [&](auto m) {
            const int64_t c = rows.begin(t);
            tile<decltype(m)::value, decltype(vectors)::value>(
                own, pixel, a + c * p.depth(), b ? b + c : nullptr, to + c * plane + pixel, plane,
                pixels - pixel);
          });
      });
    if (!direct) y.write(own.result, job);
  }
};

template <class T>
bool forward(const Problem& p, In x, In w, OptIn bias, Out y) {
  if (p.is_depthwise()) {
    const Planes<T> planes = planes_of<T>(x);
    return Depthwise<T>{p.window,       p.batch,       p.groups,
                        p.out_channels, planes,        planes_of<T>(y),
                        data<T>(w),     data<T>(bias), {p.groups, planes.together(p.groups)},
                        nullptr}
        .run();
  }
  const Columns<T> columns = columns_of<T>(p, x);
  const int64_t images = images_per_job<T>(p.pixels(), p.batch);
  const int64_t bytes = columns.row_bytes(images);
  Forward<T> f{
      p,          columns,       maps_of<T>(y, p.groups),
      data<T>(w), data<T>(bias), jobs_of<T>(p, images, p.window.out_h, bytes, columns.reach()),
      nullptr};
  return run_jobs(f, f.jobs.count());
}

// ---- gradient of the input ----

template <class T>
struct GradInput {
  struct Met {  // a kernel row meets a row of the gradient
    int64_t kernel_row, grad_row;
  };
  struct Own {
    T *grad, *sums;
    Met* met;
  };
  Problem p;
  Maps<T> grad;
  T* gx;
  Strides xs;
  const T* w;
  Jobs jobs;  // rows of the input
  T* weight;
  int64_t* shift;  // [phase of the input column][kernel column]: gradient column of the first

  int64_t rows() const { return p.in_channels * p.window.kernel_w; }  // of sums
  int64_t steps() const { return p.window.kernel_h * p.out_channels; }
  Tiling tiles() const { return {rows(), kRows}; }
  int64_t step(int64_t images) const { return round_up(images * p.window.out_w, lanes<T>); }

  // The rows of the gradient that meet input rows [row, row + rows).
  Job source(const Job& job) const {
    const Window& g = p.window;
    const int64_t low = job.row + g.pad_h - (g.kernel_h - 1) * g.dilation_h;
    const int64_t begin = low <= 0 ? 0 : (low + g.stride_h - 1) / g.stride_h;
    const int64_t end = smaller((job.row + job.rows - 1 + g.pad_h) / g.stride_h + 1, g.out_h);
    return {job.image, job.images, begin, larger(end - begin, 0), job.group};
  }

  int64_t phases() const { return smaller(p.window.stride_w, p.window.in_w); }

  void lay_out(Arena* arena) {
    weight = arena->take<T>(p.groups * rows() * steps());
    shift = arena->take<int64_t>(phases() * p.window.kernel_w);
  }
  Own own(Arena* arena) const {
    const Job most = jobs.largest();
    const Window& g = p.window;
    const int64_t count = (most.rows - 1 + (g.kernel_h - 1) * g.dilation_h) / g.stride_h + 1;
    return {arena->take<T>(p.out_channels * smaller(count, g.out_h) * step(most.images) + lanes<T>),
            arena->take<T>(rows() * step(most.images) + 2 * lanes<T>),
            arena->take<Met>(g.kernel_h)};
  }

  // [tile of (channel, kernel column)][kernel row][out][row of the tile]
  void prepare() {
    fill_shifts();
    const int64_t kernel_w = p.window.kernel_w, taps = p.window.taps();
    const Tiling t = tiles();
    parallel_for(p.groups * t.count, int64_t{1}, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t group = i / t.count, first = t.begin(i % t.count), size = t.size(i % t.count);
        T* to = weight + (group * rows() + first) * steps();
        for (int64_t kh = 0; kh < p.window.kernel_h; ++kh)
          for (int64_t oc = 0; oc < p.out_channels; ++oc)
            for (int64_t r = first; r < first + size; ++r)
              *to++ = w[(group * p.out_channels + oc) * p.depth() + r / kernel_w * taps +
                        kh * kernel_w + r % kernel_w];
      }
    });
  }

  // Input column phase + j * stride_w takes gradient column shift + j with a kernel column.
  void fill_shifts() {
    const Window& g = p.window;
    for (int64_t r = 0; r < phases(); ++r)
      for (int64_t kw = 0; kw < g.kernel_w; ++kw) {
        const int64_t w = r + g.pad_w - kw * g.dilation_w;
        shift[r * g.kernel_w + kw] = w % g.stride_w ? g.out_w : w / g.stride_w;  // out_w: none
      }
  }

  // M rows of sums for one input row: to[m][v] = sum over kernel row and out.
  template <int M, int V>
  void tile(const Met* rows_met, int64_t meeting, const T* go, int64_t plane, const T* a, T* to,
            int64_t row_step) const {
    vec<T> acc[M][V] = {};
    for (int64_t i = 0; i < meeting; ++i) {
      const T* b = go + rows_met[i].grad_row * row_step;
      const T* scales = a + rows_met[i].kernel_row * p.out_channels * M;
      for (int64_t oc = 0; oc < p.out_channels; ++oc, b += plane, scales += M) {
        vec<T> column[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) column[v] = load(b + v * lanes<T>);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
          const vec<T> scale = splat(scales[m]);
#pragma GCC unroll 4
          for (int v = 0; v < V; ++v) acc[m][v] = fma(scale, column[v], acc[m][v]);
        }
      }
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) store(to + m * row_step + v * lanes<T>, acc[m][v]);
  }

  // Sums of all (channel, kernel column) for one input row of all images.
  void sum_row(const Job& from, const Own& own, const T* a, T* sums, int64_t padded_row) const {
    const Window& g = p.window;
    const int64_t row_step = step(from.images);
    int64_t meeting = 0;
    for (int64_t kh = 0; kh < g.kernel_h; ++kh) {
      const int64_t h = padded_row - kh * g.dilation_h;
      if (h >= 0 && h % g.stride_h == 0 && h / g.stride_h < g.out_h)
        own.met[meeting++] = {kh, h / g.stride_h - from.row};
    }
    const Tiling t = tiles(), blocks(row_step / lanes<T>, kVectors);
    for (int64_t i = 0; i < t.count; ++i)
      with_count<kRows>(t.size(i), [&](auto m) {
        for (int64_t b = 0; b < blocks.count; ++b)
          with_count<kVectors>(blocks.size(b), [&](auto v) {
            const int64_t at = blocks.begin(b) * lanes<T>, first = t.begin(i);
            tile<decltype(m)::value, decltype(v)::value>(own.met, meeting, own.grad + at,
                                                         from.rows * row_step, a + first * steps(),
                                                         sums + first * row_step + at, row_step);
          });
      });
  }

  // Adds the kernel's columns of one row of one channel, shifted.
  void shift_row(const T* sums, T* to, int64_t row_step) const {
    const Window& g = p.window;
    const mask_of<T> first_lanes = __builtin_convertvector(iota<T>(), mask_of<T>);
    for (int64_t r = 0; r < phases(); ++r) {
      const int64_t* first = shift + r * g.kernel_w;
      const int64_t count = (g.in_w - r + g.stride_w - 1) / g.stride_w;
      for (int64_t j = 0; j < count; j += lanes<T>) {
        vec<T> total{};
        for (int64_t kw = 0; kw < g.kernel_w; ++kw) {
          const int64_t at = first[kw] + j;
          if (at <= -lanes<T> || at >= g.out_w) continue;
          const mask_of<T> column = first_lanes + static_cast<scalar_of_mask>(at);
          const mask_of<T> inside = (column >= 0) & (column < static_cast<scalar_of_mask>(g.out_w));
          total += select(inside, load(sums + kw * row_step + at), vec<T>{});
        }
        T* p0 = to + (r + j * g.stride_w) * xs.w;
        const int64_t step_w = g.stride_w * xs.w, left = count - j;
        if (step_w == 1)
          left >= lanes<T> ? store(p0, total) : store_n(p0, total, left);
        else
          left >= lanes<T> ? store_strided(p0, step_w, total)
                           : store_strided_n(p0, step_w, total, left);
      }
    }
  }
  using scalar_of_mask = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

  void item(int64_t index, const Own& own) const {
    const Job job = jobs[index], from = source(job);
    const int64_t row_step = step(job.images);
    grad.read(own.grad, from, row_step);
    const T* a = weight + job.group * rows() * steps();
    T* sums = own.sums + lanes<T>;
    for (int64_t h = job.row; h < job.row + job.rows; ++h) {
      sum_row(from, own, a, sums, h + p.window.pad_h);
      for (int64_t n = 0; n < job.images; ++n)
        for (int64_t c = 0; c < p.in_channels; ++c)
          shift_row(sums + c * p.window.kernel_w * row_step + n * p.window.out_w,
                    gx + (job.image + n) * xs.n + (job.group * p.in_channels + c) * xs.c + h * xs.h,
                    row_step);
    }
  }
};

template <class T>
bool grad_input(const Problem& p, In grad, In w, Out gx) {
  const Window& g = p.window;
  if (p.is_depthwise()) {
    const Planes<T> planes = planes_of<T>(grad);
    return DepthwiseGradInput<T>{{g.in_h, g.out_h, g.kernel_h, g.stride_h, g.pad_h, g.dilation_h},
                                 {g.in_w, g.out_w, g.kernel_w, g.stride_w, g.pad_w, g.dilation_w},
                                 p.batch,
                                 p.groups,
                                 p.out_channels,
                                 planes,
                                 planes_of<T>(gx),
                                 data<T>(w),
                                 {p.groups, planes.together(p.groups)},
                                 nullptr,
                                 nullptr,
                                 0,
                                 0}
        .run();
  }
  const int64_t images = images_per_job<T>(g.out_w, p.batch);
  const int64_t bytes = p.out_channels * images * g.out_w * static_cast<int64_t>(sizeof(T));
  GradInput<T> f{
      p,
      maps_of<T>(grad, p.groups),
      data<T>(gx),
      strides_of(gx),
      data<T>(w),
      jobs_of<T>(p, images, g.in_h, bytes / g.stride_h + 1, (g.kernel_h - 1) * g.dilation_h),
      nullptr,
      nullptr};
  return run_jobs(f, f.jobs.count());
}

// ---- gradient of weight and bias ----

template <class T>
struct GradWeight {
  struct Own {
    T *columns, *plane, *grad;
    int64_t* taps;
  };
  Problem p;
  Columns<T> x;
  Maps<T> grad;
  T *gw, *gb;
  Jobs jobs;  // of all groups
  Tiling chunks;  // of jobs
  T* sums;

  int64_t weights() const { return p.groups * p.out_channels * p.depth(); }
  int64_t chunk_size() const { return weights() + p.groups * p.out_channels; }

  void lay_out(Arena* arena) { sums = arena->take<T>(chunks.count * chunk_size()); }
  Own own(Arena* arena) const {
    const Job most = jobs.largest();
    return {arena->take<T>(x.size(most.images, most.rows)),
            arena->take<T>(x.plane_size(most.images, most.rows)),
            arena->take<T>(p.out_channels * most.images * most.rows * p.window.out_w + lanes<T>),
            arena->take<int64_t>(p.depth())};
  }
  void prepare() {}

  // sum[m][j] += sum over pixels of go[m] * columns[tap j], lanes kept apart until the end.
  template <int M, int J>
  void tile(const T* columns, const int64_t* tap, const T* go, int64_t plane, int64_t pixels,
            T* sum) const {
    constexpr int kSums = static_cast<int>((M * J + lanes<T> - 1) / lanes<T> * lanes<T>);
    vec<T> acc[M][J] = {};
    const T* from[J];
    for (int j = 0; j < J; ++j) from[j] = columns + tap[j];
    int64_t i = 0;
    for (; i + lanes<T> <= pixels; i += lanes<T>) {
      vec<T> a[M];
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        a[m] = load(go + m * plane + i);
        pin(a[m]);
      }
#pragma GCC unroll 4
      for (int j = 0; j < J; ++j) {
        const vec<T> b = load(from[j] + i);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) acc[m][j] = fma(a[m], b, acc[m][j]);
      }
    }
    if (i < pixels)
#pragma GCC unroll 4
      for (int j = 0; j < J; ++j) {
        const vec<T> b = load_n(from[j] + i, pixels - i);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m)
          acc[m][j] = fma(load_n(go + m * plane + i, pixels - i), b, acc[m][j]);
      }
    vec<T> all[kSums];
#pragma GCC unroll 32
    for (int s = 0; s < kSums; ++s) all[s] = s < M * J ? acc[s / J][s % J] : vec<T>{};
    T total[kSums];
#pragma GCC unroll 8
    for (int s = 0; s < kSums; s += static_cast<int>(lanes<T>))
      store(total + s, combine_each<T>(all + s, [](auto a, auto b) { return a + b; }));
    for (int m = 0; m < M; ++m)
      for (int j = 0; j < J; ++j) sum[m * p.depth() + j] += total[m * J + j];
  }

  void dots(const Own& own, const T* go, int64_t plane, int64_t pixels, T* sum) const {
    const Tiling rows(p.out_channels, kDotRows), taps(p.depth(), kDotTaps);
    for (int64_t r = 0; r < rows.count; ++r)
      with_count<kDotRows>(rows.size(r), [&](auto m) {
        for (int64_t k = 0; k < taps.count; ++k)
          with_count<kDotTaps>(taps.size(k), [&](auto j) {
            const int64_t c = rows.begin(r), at = taps.begin(k);
            tile<decltype(m)::value, decltype(j)::value>(own.columns, own.taps + at, go + c * plane,
                                                         plane, pixels, sum + c * p.depth() + at);
          });
      });
  }

  void add_bias(const T* go, int64_t plane, int64_t pixels, T* sum) const {
    for (int64_t c = 0; c < p.out_channels; ++c, go += plane) {
      vec<T> part[4] = {};
      int64_t i = 0;
      for (; i + 4 * lanes<T> <= pixels; i += 4 * lanes<T>)
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) part[j] += load(go + i + j * lanes<T>);
      for (; i + lanes<T> <= pixels; i += lanes<T>) part[0] += load(go + i);
      if (i < pixels) part[1] += load_n(go + i, pixels - i);
      sum[c] += hsum((part[0] + part[1]) + (part[2] + part[3]));
    }
  }

  void add_job(const Job& job, const Own& own, T* chunk) const {
    const bool direct = job.images == 1 && grad.flat();
    const int64_t pixels = job.images * job.rows * p.window.out_w;
    const int64_t plane = direct ? grad.s.c : pixels;
    if (!direct) grad.read(own.grad, job, job.images * p.window.out_w);
    const T* go = direct ? grad.first(job) : own.grad;
    x.fill_taps(own.taps, job);
    x.pack(own.columns, own.plane, job);
    const int64_t channel = job.group * p.out_channels;
    dots(own, go, plane, pixels, chunk + channel * p.depth());
    if (gb) add_bias(go, plane, pixels, chunk + weights() + channel);
  }

  void item(int64_t index, const Own& own) const {
    T* chunk = sums + index * chunk_size();
    fill(chunk, chunk_size(), T(0));
    for (int64_t i = chunks.begin(index); i < chunks.begin(index + 1); ++i) {
      Job job = jobs[i];
      for (job.group = 0; job.group < p.groups; ++job.group) add_job(job, own, chunk);
    }
  }

  void finish() const {
    const int64_t size = chunk_size(), n = weights();
    for (int64_t i = 0; i < size; ++i) {
      T total = T(0);
      for (int64_t c = 0; c < chunks.count; ++c) total += sums[c * size + i];
      if (i < n)
        gw[i] = total;
      else if (gb)
        gb[i - n] = total;
    }
  }
};

template <class T>
bool grad_weight(const Problem& p, In grad, In x, Out gw, OptOut gb) {
  if (p.is_depthwise()) {
    const Planes<T> planes = planes_of<T>(x);
    return DepthwiseGradWeight<T>{p.window,
                                  p.batch,
                                  p.groups,
                                  p.out_channels,
                                  planes,
                                  planes_of<T>(grad),
                                  data<T>(gw),
                                  data<T>(gb),
                                  planes.together(p.groups),
                                  {p.groups, channels_of_job(p.groups, 32)},
                                  nullptr}
        .run();
  }
  const Columns<T> columns = columns_of<T>(p, x);
  const int64_t row = columns.row_bytes(1);
  int64_t images = images_per_job<T>(p.pixels(), p.batch);
  if (images > 1)
    images = larger(smaller(kDotBytes / (row * p.window.out_h), (p.batch + kChunks - 1) / kChunks),
                    images);
  Jobs jobs = jobs_of<T>(p, images, p.window.out_h, columns.row_bytes(images), columns.reach());
  jobs.groups = 1;
  const int64_t count = jobs.count();
  GradWeight<T> f{p,
                  columns,
                  maps_of<T>(grad, p.groups),
                  data<T>(gw),
                  data<T>(gb),
                  jobs,
                  {count, larger((count + kChunks - 1) / kChunks, 1)},
                  nullptr};
  if (!run_jobs(f, f.chunks.count)) return false;
  f.finish();
  return true;
}

}  // namespace

bool conv2d(In x, In w, OptIn bias, Out y, int64_t stride_h, int64_t stride_w, int64_t pad_h,
            int64_t pad_w, int64_t dilation_h, int64_t dilation_w, int64_t groups) {
  const Steps steps{stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w};
  if (is_deep(x, w, groups)) return deep_conv2d(x, w, bias, y, steps);
  const Problem p = problem_of(x, w, y, steps, groups);
  return x.dtype == DType::kFloat32 ? forward<float>(p, x, w, bias, y)
                                    : forward<double>(p, x, w, bias, y);
}

bool conv2d_grad_input(In grad, In w, Out gx, int64_t stride_h, int64_t stride_w, int64_t pad_h,
                       int64_t pad_w, int64_t dilation_h, int64_t dilation_w, int64_t groups) {
  const Steps steps{stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w};
  if (is_deep(gx, w, groups)) return deep_grad_input(grad, w, gx, steps);
  const Problem p = problem_of(gx, w, grad, steps, groups);
  return grad.dtype == DType::kFloat32 ? grad_input<float>(p, grad, w, gx)
                                       : grad_input<double>(p, grad, w, gx);
}

bool conv2d_grad_weight(In grad, In x, Out gw, OptOut gb, int64_t stride_h, int64_t stride_w,
                        int64_t pad_h, int64_t pad_w, int64_t dilation_h, int64_t dilation_w,
                        int64_t groups) {
  const Steps steps{stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w};
  if (is_deep(x, gw, groups)) return deep_grad_weight(grad, x, gw, gb, steps);
  const Problem p = problem_of(x, gw, grad, steps, groups);
  return grad.dtype == DType::kFloat32 ? grad_weight<float>(p, grad, x, gw, gb)
                                       : grad_weight<double>(p, grad, x, gw, gb);
}

}  // namespace grebe::GREBE_ISA
