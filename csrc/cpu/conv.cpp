// Convolution in two dimensions: forward, gradient of the input, gradient of the weight and bias.
//
// One engine of register tiles, no im2col. Images are copied once into padded, phase-split planes
// (window.h), where the input of a tap is a constant offset from its output; the tiles read
// straight from there through tables of offsets, so stride, dilation, padding, groups and memory
// format cost nothing in the inner loops. What lies in the lanes is chosen by how well it fills
// them:
//   forward      pixels of a row (few output channels) or output channels (everything else)
//   grad weight  likewise; with pixels in the lanes, a product of lanes summed only at the very end
//   grad input   channels x taps of one kernel row, scattered into a padded channels-last image
// Threads share the images; weight gradients are summed in chunks of images that do not depend on
// the number of threads and are added in order, so results are the same bits for any number.
//
// Layouts: forward weights are packed [tile of channels][k][channel of the tile], k running over
// (input channel, kernel row, kernel column); gradient sums are [k][output channel] or, with pixels
// in the lanes, [output channel][k][lane]. Floor: one multiply-add per lane and cycle; reached:
// 41-51% of it on LeNet's second layer, 29-40% on its first, 63-84% on 64 to 256 channels. More in
// docs/kernels/conv.md.
#include "conv_deep.h"
#include "window.h"

namespace grebe::GREBE_ISA {
namespace {

constexpr int kVectors = kVectorBytes == 64 ? 4 : 2;  // of a tile's row: 32 or 16 registers
constexpr int kRows = 6;
constexpr int kRowsOfOne = 8;  // rows when the row is one vector: enough chains to hide latency
constexpr int64_t kDepth = 512;  // of k between two stores of a tile: keeps a strip within L2

constexpr int rows_for(int vectors) { return vectors == 1 ? kRowsOfOne : kRows; }

// acc[m][v] += a[m][a_offset[k]] * b[k * b_step + v], k in order.
template <class T, int M, int V>
GREBE_INLINE void channel_tile(int64_t size, const T* const* a, const int64_t* a_offset, const T* b,
                               int64_t b_step, vec<T> (&acc)[M][V]) {
  for (int64_t k = 0; k < size; ++k, b += b_step) {
    vec<T> column[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) column[v] = load(b + v * lanes<T>);
    const int64_t at = a_offset[k];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const vec<T> x = splat(a[m][at]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) acc[m][v] = fma(x, column[v], acc[m][v]);
    }
  }
}

// acc[m][v] += a[k * M + m] * b[v][b_offset[k]...], k in order.
template <class T, int M, int V>
GREBE_INLINE void pixel_tile(int64_t size, const T* a, const T* const* b, const int64_t* b_offset,
                             vec<T> (&acc)[M][V]) {
  for (int64_t k = 0; k < size; ++k, a += M) {
    const int64_t at = b_offset[k];
    vec<T> column[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) column[v] = load(b[v] + at);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const vec<T> x = splat(a[m]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) acc[m][v] = fma(x, column[v], acc[m][v]);
    }
  }
}

struct Problem {
  Window window;
  int64_t batch, groups, in_channels, out_channels;  // channels of one group
  int64_t depth() const { return in_channels * window.taps(); }
  int64_t pixels() const { return window.out_h * window.out_w; }
  int64_t items() const { return batch * groups; }
};

Problem problem_of(const View& x, const View& w, const View& y, int64_t stride_h, int64_t stride_w,
                   int64_t pad_h, int64_t pad_w, int64_t dilation_h, int64_t dilation_w,
                   int64_t groups) {
  Problem p;
  p.window = {x.shape[2], x.shape[3], y.shape[2], y.shape[3], w.shape[2], w.shape[3],
              stride_h,   stride_w,   pad_h,      pad_w,      dilation_h, dilation_w};
  p.batch = x.shape[0];
  p.groups = groups;
  p.in_channels = w.shape[1];
  p.out_channels = w.shape[0] / groups;
  return p;
}

template <class T>
double filling(int64_t n) {
  return static_cast<double>(n) / static_cast<double>(round_up(n, lanes<T>));
}

// Rows of few pixels leave lanes empty, and so do few channels: which is better?
template <class T>
bool pixels_in_lanes(const Problem& p) {
  return filling<T>(p.window.out_w) * 0.9 > filling<T>(p.out_channels);
}

int team_size(int64_t items) {
  const int64_t most = num_threads();
  return static_cast<int>(items < most ? (items > 0 ? items : 1) : most);
}

void fill_taps(int64_t* table, const Problem& p) {
  const Window& g = p.window;
  for (int64_t c = 0; c < p.in_channels; ++c)
    for (int64_t kh = 0; kh < g.kernel_h; ++kh)
      for (int64_t kw = 0; kw < g.kernel_w; ++kw) *table++ = c * g.plane() + g.tap(kh, kw);
}

void fill_pixels(int64_t* table, const Window& g) {
  for (int64_t oh = 0; oh < g.out_h; ++oh)
    for (int64_t ow = 0; ow < g.out_w; ++ow) *table++ = oh * g.stride_h * g.row() + ow;
}

// ---- forward ----

template <class T>
struct Forward {
  Problem p;
  bool by_pixel, relu, direct;  // direct: rows of y are contiguous, pixel tiles store into it
  Strides xs, ys;
  const T *x, *bias;
  T *y, *weight, *padded_bias;
  int64_t *taps, *pixels;
  int64_t width, image_size, result_size;  // width: channels, rounded up to whole vectors

  Tiling strips() const { return {width / lanes<T>, kVectors}; }
  Tiling row_tiles() const { return {p.out_channels, kRows}; }
  int64_t weight_size() const { return p.depth() * (by_pixel ? p.out_channels : width); }

  void lay_out(Arena* arena) {
    taps = arena->take<int64_t>(p.depth());
    pixels = arena->take<int64_t>(p.pixels());
    weight = arena->take<T>(p.groups * weight_size());
    padded_bias = arena->take<T>(p.groups * width);
  }

  void pack(const T* w) {
    fill_taps(taps, p);
    fill_pixels(pixels, p.window);
    fill(padded_bias, p.groups * width, T(0));
    const int64_t depth = p.depth();
    for (int64_t g = 0; g < p.groups; ++g, w += p.out_channels * depth) {
      T* to = weight + g * weight_size();
      if (bias) copy_run(padded_bias + g * width, bias + g * p.out_channels, p.out_channels);
      if (!by_pixel) fill(to, weight_size(), T(0));
      const Tiling tiles = by_pixel ? row_tiles() : strips();
      const int64_t unit = by_pixel ? 1 : lanes<T>;
      for (int64_t t = 0; t < tiles.count; ++t) {
        const int64_t begin = tiles.begin(t) * unit, size = tiles.size(t) * unit;
        const int64_t left = p.out_channels - begin;
        copy_plane(to + begin * depth, size, int64_t{1}, w + begin * depth, int64_t{1}, depth,
                   depth, size < left ? size : left);
      }
    }
  }

  // One strip of channels over k in [begin, end) for all pixels of an image.
  template <int V>
  void channel_strip(const T* image, const T* w, const T* b, T* out, int64_t begin, int64_t end) {
    const Tiling tiles(p.pixels(), rows_for(V));
    const bool first = begin == 0, last = end == p.depth();
    for (int64_t t = 0; t < tiles.count; ++t) {
      const int64_t* at = pixels + tiles.begin(t);
      T* to = out + tiles.begin(t) * width;
      with_count<rows_for(V)>(tiles.size(t), [&](auto rows) {
        constexpr int M = decltype(rows)::value;
        const T* a[M];
        vec<T> acc[M][V];
        for (int m = 0; m < M; ++m) {
          a[m] = image + at[m];
          for (int v = 0; v < V; ++v)
            acc[m][v] = load(first ? b + v * lanes<T> : to + m * width + v * lanes<T>);
        }
        channel_tile<T, M, V>(end - begin, a, taps + begin, w + begin * V * lanes<T>, V * lanes<T>,
                              acc);
        for (int m = 0; m < M; ++m)
          for (int v = 0; v < V; ++v)
            store(to + m * width + v * lanes<T>,
                  relu && last ? max_nan(acc[m][v], vec<T>{}) : acc[m][v]);
      });
    }
  }

  void channels(const T* image, const T* w, const T* b, T* out) {
    const Tiling tiles = strips(), blocks(p.depth(), kDepth);
    for (int64_t k = 0; k < blocks.count; ++k)
      for (int64_t t = 0; t < tiles.count; ++t)
        with_count<kVectors>(tiles.size(t), [&](auto vectors) {
          const int64_t at = tiles.begin(t) * lanes<T>;
          channel_strip<decltype(vectors)::value>(image, w + at * p.depth(), b + at, out + at,
                                                  blocks.begin(k), blocks.begin(k + 1));
        });
  }

  template <int M, int V>
  void pixel_block(const T* image, const T* w, const T* b, T* out, int64_t plane, int64_t row,
                   int64_t first) {
    const int64_t per_row = (p.window.out_w + lanes<T> - 1) / lanes<T>;
    const int64_t step = p.window.stride_h * p.window.row();
    const T* from[V];
    T* to[V];
    int64_t size[V];
    int64_t oh = first / per_row, ow = first % per_row * lanes<T>;
    for (int v = 0; v < V; ++v) {
      from[v] = image + oh * step + ow;
      to[v] = out + oh * row + ow;
      size[v] = p.window.out_w - ow;
      ow += lanes<T>;
      if (ow >= p.window.out_w) ow = 0, ++oh;
    }
    vec<T> acc[M][V];
    for (int m = 0; m < M; ++m)
      for (int v = 0; v < V; ++v) acc[m][v] = splat(b[m]);
    pixel_tile<T, M, V>(p.depth(), w, from, taps, acc);
    for (int v = 0; v < V; ++v)
      for (int m = 0; m < M; ++m) {
        const vec<T> r = relu ? max_nan(acc[m][v], vec<T>{}) : acc[m][v];
        if (size[v] >= lanes<T>)
          store(to[v] + m * plane, r);
        else
          store_n(to[v] + m * plane, r, size[v]);
      }
  }

  void pixel_rows(const T* image, const T* w, const T* b, T* out, int64_t plane, int64_t row) {
    const Tiling tiles = row_tiles();
    const Tiling blocks(p.window.out_h * (round_up(p.window.out_w, lanes<T>) / lanes<T>), kVectors);
    for (int64_t t = 0; t < tiles.count; ++t) {
      const int64_t at = tiles.begin(t);
      with_count<kRows>(tiles.size(t), [&](auto rows) {
        for (int64_t v = 0; v < blocks.count; ++v)
          with_count<kVectors>(blocks.size(v), [&](auto vectors) {
            pixel_block<decltype(rows)::value, decltype(vectors)::value>(
                image, w + at * p.depth(), b + at, out + at * plane, plane, row, blocks.begin(v));
          });
      });
    }
  }

  void item(int64_t index, T* image, T* result) {
    const int64_t n = index / p.groups, g = index % p.groups, oc = p.out_channels;
    const Window& win = p.window;
    split_planes(image, x + n * xs.n + g * p.in_channels * xs.c, xs, p.in_channels, win);
    const T *w = weight + g * weight_size(), *b = padded_bias + g * width;
    T* to = y + n * ys.n + g * oc * ys.c;
    if (!by_pixel) {
      channels(image, w, b, result);
      if (ys.h == win.out_w * ys.w)
        return copy_plane(to, ys.c, ys.w, result, int64_t{1}, width, oc, p.pixels());
      for (int64_t oh = 0; oh < win.out_h; ++oh)
        copy_plane(to + oh * ys.h, ys.c, ys.w, result + oh * win.out_w * width, int64_t{1}, width,
                   oc, win.out_w);
    } else if (direct) {
      pixel_rows(image, w, b, to, ys.c, ys.h);
    } else {
      pixel_rows(image, w, b, result, p.pixels(), win.out_w);
      for (int64_t oh = 0; oh < win.out_h; ++oh)
        copy_plane(to + oh * ys.h, ys.c, ys.w, result + oh * win.out_w, p.pixels(), int64_t{1}, oc,
                   win.out_w);
    }
  }

  bool run(const T* w) {
    const int threads = team_size(p.items());
    width = round_up(p.out_channels, lanes<T>);
    image_size = p.in_channels * p.window.plane() + lanes<T>;
    result_size = by_pixel ? (direct ? 0 : p.out_channels * p.pixels()) : width * p.pixels();
    Arena measure{nullptr};
    lay_out(&measure);
    const int64_t shared = measure.used;
    measure.take<T>(image_size);
    measure.take<T>(result_size);
    const int64_t own = measure.used - shared;
    char* memory = static_cast<char*>(scratch(static_cast<size_t>(shared + own * threads)));
    if (!memory) return false;
    Arena arena{memory};
    lay_out(&arena);
    pack(w);
    parallel_region(threads, [&](int64_t t, int64_t team) {
      Arena mine{memory + shared + t * own};
      T* image = mine.take<T>(image_size);
      T* result = mine.take<T>(result_size);
      fill(image, image_size, T(0));
      for (int64_t i = p.items() * t / team; i < p.items() * (t + 1) / team; ++i)
        item(i, image, result);
    });
    return true;
  }
};

template <class T>
bool forward(const Problem& p, In x, In w, OptIn bias, Out y, bool relu) {
  Forward<T> f{};
  f.p = p;
  f.by_pixel = pixels_in_lanes<T>(p);
  f.relu = relu;
  f.xs = strides_of(x);
  f.ys = strides_of(y);
  f.direct = f.ys.w == 1;
  f.x = data<T>(x);
  f.y = data<T>(y);
  f.bias = data<T>(bias);
  return f.run(data<T>(w));
}

// ---- gradient of the input ----
//
// For each tap row (all columns of the kernel at once if they are not dilated, so that columns x
// channels is a run in the channels-last image), pixel tile and strip of the run:
// image[target of pixel][run] += sum over output channels of grad[pixel][oc] * weight[oc][run].

template <class T>
struct GradInput {
  Problem p;
  Strides gs, xs;
  const T* grad;
  T *gx, *weight;
  int64_t *source, *target, *channel;  // per pixel, per pixel, per output channel
  int64_t image_h, image_w, image_size, grad_size;

  bool fused() const { return p.window.dilation_w == 1; }
  int64_t run_size() const { return p.in_channels * (fused() ? p.window.kernel_w : 1); }
  int64_t runs() const { return p.window.taps() / (fused() ? p.window.kernel_w : 1); }
  int64_t width() const { return round_up(run_size(), lanes<T>); }
  int64_t weight_size() const { return runs() * p.out_channels * width(); }
  int64_t run_offset(int64_t r) const {
    const Window& g = p.window;
    if (fused()) return r * g.dilation_h * image_w * p.in_channels;
    return (r / g.kernel_w * g.dilation_h * image_w + r % g.kernel_w * g.dilation_w) *
           p.in_channels;
  }

  void lay_out(Arena* arena) {
    source = arena->take<int64_t>(p.pixels());
    target = arena->take<int64_t>(p.pixels());
    channel = arena->take<int64_t>(p.out_channels);
    weight = arena->take<T>(p.groups * weight_size());
  }

  // Neighbours in the list are a kernel row apart where possible: a tile's sums do not overlap.
  void fill_tables() {
    const Window& g = p.window;
    int64_t i = 0;
    for (int64_t ow = 0; ow < g.out_w; ++ow)
      for (int64_t oh = 0; oh < g.out_h; ++oh, ++i) {
        source[i] = (oh * g.out_w + ow) * p.out_channels;
        target[i] = (oh * g.stride_h * image_w + ow * g.stride_w) * p.in_channels;
      }
    for (int64_t c = 0; c < p.out_channels; ++c) channel[c] = c;
  }

  // [group][run][strip][output channel][lane]
  void pack(const T* w) {
    const Tiling strips(width() / lanes<T>, kVectors);
    const int64_t taps = p.window.taps(), per_run = taps / runs(), rows = p.groups * runs();
    fill(weight, p.groups * weight_size(), T(0));
    parallel_for(rows, int64_t{1}, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const int64_t g = row / runs(), r = row % runs();
        const T* from = w + g * p.out_channels * p.depth() + r * per_run;
        T* to = weight + row * p.out_channels * width();
        for (int64_t s = 0; s < strips.count; ++s) {
          const int64_t lane0 = strips.begin(s) * lanes<T>, size = strips.size(s) * lanes<T>;
          for (int64_t j = 0; j < size && lane0 + j < run_size(); ++j) {
            const int64_t kw = (lane0 + j) / p.in_channels, ci = (lane0 + j) % p.in_channels;
            for (int64_t oc = 0; oc < p.out_channels; ++oc)
              to[lane0 * p.out_channels + oc * size + j] = from[oc * p.depth() + ci * taps + kw];
          }
        }
      }
    });
  }

  template <int V>
  void strip(const T* go, const T* w, T* image, int64_t left) {
    const Tiling tiles(p.pixels(), rows_for(V));
    const mask_of<T> tail = lane_mask<T>(left - (V - 1) * lanes<T>);
    for (int64_t t = 0; t < tiles.count; ++t) {
      const int64_t at = tiles.begin(t);
      with_count<rows_for(V)>(tiles.size(t), [&](auto rows) {
        constexpr int M = decltype(rows)::value;
        const T* a[M];
        vec<T> acc[M][V];
        for (int m = 0; m < M; ++m) {
          a[m] = go + source[at + m];
          for (int v = 0; v < V; ++v) acc[m][v] = vec<T>{};
        }
        channel_tile<T, M, V>(p.out_channels, a, channel, w, V * lanes<T>, acc);
        for (int m = 0; m < M; ++m) {
          T* to = image + target[at + m];
          // Lanes past the run are inf * 0 where the gradient is infinite: they must not be added.
          acc[m][V - 1] = select(tail, acc[m][V - 1], vec<T>{});
          for (int v = 0; v < V; ++v) store(to + v * lanes<T>, load(to + v * lanes<T>) + acc[m][v]);
        }
      });
    }
  }

  void scatter(const T* go, const T* w, T* image) {
    const Tiling strips(width() / lanes<T>, kVectors);
    for (int64_t r = 0; r < runs(); ++r, w += p.out_channels * width())
      for (int64_t s = 0; s < strips.count; ++s)
        with_count<kVectors>(strips.size(s), [&](auto vectors) {
          const int64_t at = strips.begin(s) * lanes<T>;
          strip<decltype(vectors)::value>(go, w + at * p.out_channels, image + run_offset(r) + at,
                                          run_size() - at);
        });
  }

  // Cuts the padding off; what no window touched gets zero.
  void crop(const T* image, T* to) {
    const Window& g = p.window;
    const int64_t c = p.in_channels;
    int64_t columns = image_w - g.pad_w;
    columns = columns < 0 ? 0 : (columns < g.in_w ? columns : g.in_w);
    const T zero = T(0);
    for (int64_t h = 0; h < g.in_h; ++h, to += xs.h) {
      const int64_t inside = h + g.pad_h < image_h ? columns : 0;
      if (inside > 0)
        copy_plane(to, xs.c, xs.w, image + ((h + g.pad_h) * image_w + g.pad_w) * c, int64_t{1}, c,
                   c, inside);
      copy_plane(to + inside * xs.w, xs.c, xs.w, &zero, int64_t{0}, int64_t{0}, c, g.in_w - inside);
    }
  }

  void item(int64_t index, T* go, T* image) {
    const int64_t n = index / p.groups, g = index % p.groups;
    const Window& win = p.window;
    const T* from = grad + n * gs.n + g * p.out_channels * gs.c;
    for (int64_t oh = 0; oh < win.out_h; ++oh)
      copy_plane(go + oh * win.out_w * p.out_channels, int64_t{1}, p.out_channels, from + oh * gs.h,
                 gs.c, gs.w, p.out_channels, win.out_w);
    fill(image, image_size, T(0));
    scatter(go, weight + g * weight_size(), image);
    crop(image, gx + n * xs.n + g * p.in_channels * xs.c);
  }

  bool run(const T* w) {
    const int threads = team_size(p.items());
    image_h = p.window.padded_h();
    image_w = p.window.padded_w();
    image_size = image_h * image_w * p.in_channels + lanes<T>;
    grad_size = p.pixels() * p.out_channels;
    Arena measure{nullptr};
    lay_out(&measure);
    const int64_t shared = measure.used;
    measure.take<T>(grad_size);
    measure.take<T>(image_size);
    const int64_t own = measure.used - shared;
    char* memory = static_cast<char*>(scratch(static_cast<size_t>(shared + own * threads)));
    if (!memory) return false;
    Arena arena{memory};
    lay_out(&arena);
    fill_tables();
    pack(w);
    parallel_region(threads, [&](int64_t t, int64_t team) {
      Arena mine{memory + shared + t * own};
      T* go = mine.take<T>(grad_size);
      T* image = mine.take<T>(image_size);
      for (int64_t i = p.items() * t / team; i < p.items() * (t + 1) / team; ++i)
        item(i, go, image);
    });
    return true;
  }
};

template <class T>
bool grad_input(const Problem& p, In grad, In w, Out gx) {
  GradInput<T> f{};
  f.p = p;
  f.gs = strides_of(grad);
  f.xs = strides_of(gx);
  f.grad = data<T>(grad);
  f.gx = data<T>(gx);
  return f.run(data<T>(w));
}

// ---- gradient of weight and bias ----

constexpr int64_t kChunks = 16;  // partial sums, at most
constexpr int64_t kChunkBytes = int64_t{64} << 20;  // of all partial sums together, about
constexpr int kDotRows = kVectorBytes == 64 ? 6 : 3;
constexpr int kDotTaps = 4;

template <class T>
struct GradWeight {
  Problem p;
  bool by_pixel;
  Strides gs, xs;
  const T *grad, *x;
  T *gw, *gb, *sums;
  int64_t *taps, *pixels;
  int64_t width, row, image_size, grad_size, chunks;  // row: of a gradient plane, in elements

  int64_t weight_sums() const {  // of one group
    return p.depth() * (by_pixel ? p.out_channels * lanes<T> : width);
  }
  int64_t bias_sums() const { return by_pixel ? p.out_channels * lanes<T> : width; }
  int64_t chunk_size() const { return p.groups * (weight_sums() + bias_sums()); }

  void lay_out(Arena* arena) {
    taps = arena->take<int64_t>(p.depth());
    pixels = arena->take<int64_t>(p.pixels());
    sums = arena->take<T>(chunks * chunk_size());
  }

  // Output channels in the lanes, taps in the rows, summing over pixels [begin, end).
  template <int V>
  void channel_strip(const T* image, const T* go, T* sum, int64_t begin, int64_t end) {
    const Tiling tiles(p.depth(), rows_for(V));
    for (int64_t t = 0; t < tiles.count; ++t) {
      const int64_t* at = taps + tiles.begin(t);
      T* to = sum + tiles.begin(t) * width;
      with_count<rows_for(V)>(tiles.size(t), [&](auto rows) {
        constexpr int M = decltype(rows)::value;
        const T* a[M];
        vec<T> acc[M][V];
        for (int m = 0; m < M; ++m) {
          a[m] = image + at[m];
          for (int v = 0; v < V; ++v) acc[m][v] = load(to + m * width + v * lanes<T>);
        }
        channel_tile<T, M, V>(end - begin, a, pixels + begin, go + begin * width, width, acc);
        for (int m = 0; m < M; ++m)
          for (int v = 0; v < V; ++v) store(to + m * width + v * lanes<T>, acc[m][v]);
      });
    }
  }

  void channels(const T* image, const T* go, T* sum, T* bias_sum) {
    const Tiling strips(width / lanes<T>, kVectors), blocks(p.pixels(), kDepth);
    for (int64_t b = 0; b < blocks.count; ++b)
      for (int64_t s = 0; s < strips.count; ++s)
        with_count<kVectors>(strips.size(s), [&](auto vectors) {
          const int64_t at = strips.begin(s) * lanes<T>;
          channel_strip<decltype(vectors)::value>(image, go + at, sum + at, blocks.begin(b),
                                                  blocks.begin(b + 1));
        });
    for (int64_t c = 0; c < width; c += lanes<T>) {
      vec<T> total = load(bias_sum + c);
      for (int64_t i = 0; i < p.pixels(); ++i) total += load(go + i * width + c);
      store(bias_sum + c, total);
    }
  }

  // Pixels in the lanes: sums of M channels x J taps, lanes kept apart.
  template <int M, int J>
  void dot_tile(const T* image, const T* go, const int64_t* tap, T* sum) {
    const Window& g = p.window;
    const int64_t plane = g.out_h * row, full = g.out_w / lanes<T> * lanes<T>;
    const mask_of<T> tail = lane_mask<T>(g.out_w - full);
    vec<T> acc[M][J];
    for (int m = 0; m < M; ++m)
      for (int j = 0; j < J; ++j) acc[m][j] = load(sum + (m * p.depth() + j) * lanes<T>);
    const T* from[J];
    for (int j = 0; j < J; ++j) from[j] = image + tap[j];
    auto step = [&](int64_t at, int64_t pixel, bool masked) {
      vec<T> a[M];
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) a[m] = load(go + at + m * plane);
#pragma GCC unroll 8
      for (int j = 0; j < J; ++j) {
        vec<T> b = load(from[j] + pixel);
        if (masked) b = select(tail, b, vec<T>{});
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) acc[m][j] = fma(a[m], b, acc[m][j]);
      }
    };
    for (int64_t oh = 0; oh < g.out_h; ++oh) {
      const int64_t start = oh * g.stride_h * g.row();
      for (int64_t ow = 0; ow < full; ow += lanes<T>) step(oh * row + ow, start + ow, false);
      if (full < g.out_w) step(oh * row + full, start + full, true);
    }
    for (int m = 0; m < M; ++m)
      for (int j = 0; j < J; ++j) store(sum + (m * p.depth() + j) * lanes<T>, acc[m][j]);
  }

  void dots(const T* image, const T* go, T* sum, T* bias_sum) {
    const Tiling tiles(p.out_channels, kDotRows), columns(p.depth(), kDotTaps);
    const int64_t plane = p.window.out_h * row;
    for (int64_t t = 0; t < tiles.count; ++t)
      with_count<kDotRows>(tiles.size(t), [&](auto rows) {
        for (int64_t k = 0; k < columns.count; ++k)
          with_count<kDotTaps>(columns.size(k), [&](auto count) {
            const int64_t oc = tiles.begin(t), at = columns.begin(k);
            dot_tile<decltype(rows)::value, decltype(count)::value>(
                image, go + oc * plane, taps + at, sum + (oc * p.depth() + at) * lanes<T>);
          });
      });
    for (int64_t c = 0; c < p.out_channels; ++c) {
      vec<T> total = load(bias_sum + c * lanes<T>);
      for (int64_t i = 0; i < plane; i += lanes<T>) total += load(go + c * plane + i);
      store(bias_sum + c * lanes<T>, total);
    }
  }

  void item(int64_t n, int64_t g, T* image, T* go, T* chunk) {
    const Window& win = p.window;
    split_planes(image, x + n * xs.n + g * p.in_channels * xs.c, xs, p.in_channels, win);
    const T* from = grad + n * gs.n + g * p.out_channels * gs.c;
    T* sum = chunk + g * (weight_sums() + bias_sums());
    for (int64_t oh = 0; oh < win.out_h; ++oh) {
      if (by_pixel)
        copy_plane(go + oh * row, win.out_h * row, int64_t{1}, from + oh * gs.h, gs.c, gs.w,
                   p.out_channels, win.out_w);
      else
        copy_plane(go + oh * win.out_w * width, int64_t{1}, width, from + oh * gs.h, gs.c, gs.w,
                   p.out_channels, win.out_w);
    }
    if (by_pixel)
      dots(image, go, sum, sum + weight_sums());
    else
      channels(image, go, sum, sum + weight_sums());
  }

  void add_chunks() {
    const int64_t size = chunk_size();
    parallel_for(size / lanes<T>, int64_t{4096}, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin * lanes<T>; i < end * lanes<T>; i += lanes<T>) {
        vec<T> total = load(sums + i);
        for (int64_t c = 1; c < chunks; ++c) total += load(sums + c * size + i);
        store(sums + i, total);
      }
    });
  }

  void finish() {
    const int64_t oc = p.out_channels, depth = p.depth();
    for (int64_t g = 0; g < p.groups; ++g) {
      const T* sum = sums + g * (weight_sums() + bias_sums());
      T* to = gw + g * oc * depth;
      if (by_pixel)
        for (int64_t i = 0; i < oc * depth; ++i) to[i] = hsum(load(sum + i * lanes<T>));
      else
        copy_plane(to, depth, int64_t{1}, sum, int64_t{1}, width, oc, depth);
      if (!gb) continue;
      const T* b = sum + weight_sums();
      for (int64_t c = 0; c < oc; ++c)
        gb[g * oc + c] = by_pixel ? hsum(load(b + c * lanes<T>)) : b[c];
    }
  }

  bool run() {
    width = round_up(p.out_channels, lanes<T>);
    row = round_up(p.window.out_w, lanes<T>);
    image_size = p.in_channels * p.window.plane() + lanes<T>;
    grad_size = by_pixel ? p.out_channels * p.window.out_h * row : p.pixels() * width;
    chunks = kChunkBytes / (chunk_size() * static_cast<int64_t>(sizeof(T)));
    chunks = chunks < 4 ? 4 : (chunks < kChunks ? chunks : kChunks);
    if (chunks > p.batch) chunks = p.batch > 0 ? p.batch : 1;
    const int threads = team_size(chunks);
    Arena measure{nullptr};
    lay_out(&measure);
    const int64_t shared = measure.used;
    measure.take<T>(image_size);
    measure.take<T>(grad_size);
    const int64_t own = measure.used - shared;
    char* memory = static_cast<char*>(scratch(static_cast<size_t>(shared + own * threads)));
    if (!memory) return false;
    Arena arena{memory};
    lay_out(&arena);
    fill_taps(taps, p);
    fill_pixels(pixels, p.window);
    parallel_region(threads, [&](int64_t t, int64_t team) {
      Arena mine{memory + shared + t * own};
      T* image = mine.take<T>(image_size);
      T* go = mine.take<T>(grad_size);
      fill(image, image_size, T(0));
      fill(go, grad_size, T(0));
      for (int64_t c = chunks * t / team; c < chunks * (t + 1) / team; ++c) {
        T* chunk = sums + c * chunk_size();
        fill(chunk, chunk_size(), T(0));
        for (int64_t n = p.batch * c / chunks; n < p.batch * (c + 1) / chunks; ++n)
          for (int64_t g = 0; g < p.groups; ++g) item(n, g, image, go, chunk);
      }
    });
    add_chunks();
    finish();
    return true;
  }
};

template <class T>
bool grad_weight(const Problem& p, In grad, In x, Out gw, OptOut gb) {
  GradWeight<T> f{};
  f.p = p;
  f.by_pixel = pixels_in_lanes<T>(p);
  f.gs = strides_of(grad);
  f.xs = strides_of(x);
  f.grad = data<T>(grad);
  f.x = data<T>(x);
  f.gw = data<T>(gw);
  f.gb = data<T>(gb);
  return f.run();
}

}  // namespace

bool conv2d(In x, In w, OptIn bias, Out y, int64_t stride_h, int64_t stride_w, int64_t pad_h,
            int64_t pad_w, int64_t dilation_h, int64_t dilation_w, int64_t groups, bool relu) {
  const Steps steps{stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w};
  if (is_deep(x, w, groups)) return deep_conv2d(x, w, bias, y, steps, relu);
  const Problem p =
      problem_of(x, w, y, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups);
  return x.dtype == DType::kFloat32 ? forward<float>(p, x, w, bias, y, relu)
                                    : forward<double>(p, x, w, bias, y, relu);
}

bool conv2d_grad_input(In grad, In w, Out gx, int64_t stride_h, int64_t stride_w, int64_t pad_h,
                       int64_t pad_w, int64_t dilation_h, int64_t dilation_w, int64_t groups) {
  const Steps steps{stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w};
  if (is_deep(gx, w, groups)) return deep_grad_input(grad, w, gx, steps);
  const Problem p =
      problem_of(gx, w, grad, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups);
  return grad.dtype == DType::kFloat32 ? grad_input<float>(p, grad, w, gx)
                                       : grad_input<double>(p, grad, w, gx);
}

bool conv2d_grad_weight(In grad, In x, Out gw, OptOut gb, int64_t stride_h, int64_t stride_w,
                        int64_t pad_h, int64_t pad_w, int64_t dilation_h, int64_t dilation_w,
                        int64_t groups) {
  const Steps steps{stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w};
  if (is_deep(x, gw, groups)) return deep_grad_weight(grad, x, gw, gb, steps);
  const Problem p =
      problem_of(x, gw, grad, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups);
  return grad.dtype == DType::kFloat32 ? grad_weight<float>(p, grad, x, gw, gb)
                                       : grad_weight<double>(p, grad, x, gw, gb);
}

}  // namespace grebe::GREBE_ISA
