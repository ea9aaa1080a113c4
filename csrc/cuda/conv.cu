// Convolution of images: forward, gradient of the input, gradient of the weight.
//
// Idea: three products of matrices that never exist (implicit GEMM, gemm.cuh's tiles): with K = channels
// * kernel, forward is [outputs, K] x [K, pixels], the input's gradient [channels, outputs * kernel] x
// [.., input pixels], the weight's [outputs, pixels] x [pixels, K]. A thread fetches elements of one
// column only, so it finds that pixel once; what belongs to an element of K stands in a table that a
// small kernel makes first. The weight's gradient is cut into parts of the pixels, added in order.
// Groups of few channels (depthwise ones, the first layers of small nets) go without tiles: a thread
// per output, a block per weight.
// On tensor cores (sm_80; float16 also sm_75) images are channels-last, in a copy if they are not, and
// channels fill chunks of 16 bytes: then K = (tap, channel), and a chunk of channels at a pixel and a
// tap is one asynchronous copy, or zeros. Results are written to any strides. On sm_90a 16-bit images
// of many channels go to warpgroups (conv_sm90.cuh).
//
// Arrays have any strides: planes, channels-last. The weight is contiguous. Floor: 2 * outputs * K *
// pixels operations. Not measured on a device yet.
#include "conv_sm90.cuh"
#include "gemm.cuh"

namespace grebe::cuda {

bool reduce_sum(In x, Out y, double scale);  // reduce.cu

namespace {

constexpr int64_t kFewChannels = 8;  // outputs (forward) or inputs (backward) of a group
constexpr int64_t kFewWeights = 4096;
constexpr int64_t kEnoughTiles = 256, kLeastPart = 512, kMostParts = 64;

struct Image {
  int64_t n, c, h, w;  // strides
};
Image image_of(const View& v) { return {v.strides[0], v.strides[1], v.strides[2], v.strides[3]}; }

struct Problem {
  int64_t batch, channels, outputs, groups;  // channels and outputs of one group
  int64_t in_h, in_w, out_h, out_w, kernel_h, kernel_w;
  int64_t stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  Image x, y;
  GREBE_EVERYWHERE int64_t taps() const { return kernel_h * kernel_w; }
  GREBE_EVERYWHERE int64_t out_pixels() const { return batch * out_h * out_w; }
  GREBE_EVERYWHERE int64_t in_pixels() const { return batch * in_h * in_w; }
};

struct Pixel {
  int64_t n, h, w;
};
// Divisions of 64 bits cost several times those of 32.
DEVICE Pixel pixel_of(int64_t i, int64_t height, int64_t width) {
  if (i < int64_t{1} << 31) {
    const uint32_t at = static_cast<uint32_t>(i), w = static_cast<uint32_t>(width);
    const uint32_t row = at / w, h = static_cast<uint32_t>(height);
    return {row / h, row % h, at % w};
  }
  return {i / width / height, i / width % height, i % width};
}

// What belongs to element k = (channel, kh, kw) of K: the channel's place, and the tap's.
struct Tap {
  int64_t image, weight;  // offsets in the image (of the channel alone) and in the weight
  int32_t h, w;  // dilated
};

// backward: k runs over outputs instead of channels, with the gradient for an image.
__global__ void __launch_bounds__(kThreads)
    make_taps(Problem p, int64_t count, bool backward, Tap* taps) {
  const int64_t k = thread_number();
  if (k >= count) return;
  const int64_t c = k / p.taps(), kh = k / p.kernel_w % p.kernel_h, kw = k % p.kernel_w;
  const int64_t tap = kh * p.kernel_w + kw;
  taps[k].image = c * (backward ? p.y.c : p.x.c);
  taps[k].weight = backward ? c * p.channels * p.taps() + tap : k;
  taps[k].h = static_cast<int32_t>(kh * p.dilation_h);
  taps[k].w = static_cast<int32_t>(kw * p.dilation_w);
}

// ---- operands (see gemm.cuh) ----

// x at (output pixel i, k).
template <class T>
struct Windows {
  const Problem& p;
  const Tap* taps;
  const T* x;  // of the group
  int64_t base = 0, h = 0, w = 0;

  DEVICE bool along_i() const { return true; }
  DEVICE void settle(int64_t i) {
    const Pixel o = pixel_of(i, p.out_h, p.out_w);
    base = o.n * p.x.n;
    h = o.h * p.stride_h - p.pad_h;
    w = o.w * p.stride_w - p.pad_w;
  }
  DEVICE Wide<T> at(int64_t, int64_t k) const {
    const Tap t = taps[k];
    const int64_t ih = h + t.h, iw = w + t.w;
    if (ih < 0 || ih >= p.in_h || iw < 0 || iw >= p.in_w) return 0;
    return widen(x[base + t.image + ih * p.x.h + iw * p.x.w]);
  }
};

// The gradient that reaches input pixel i by k = (output, kh, kw).
template <class T>
struct Gradients {
  const Problem& p;
  const Tap* taps;
  const T* grad;
  int64_t base = 0, h = 0, w = 0;

  DEVICE bool along_i() const { return true; }
  DEVICE void settle(int64_t i) {
    const Pixel at = pixel_of(i, p.in_h, p.in_w);
    base = at.n * p.y.n;
    h = at.h + p.pad_h;
    w = at.w + p.pad_w;
  }
  DEVICE Wide<T> at(int64_t, int64_t k) const {
    const Tap t = taps[k];
    int64_t oh = h - t.h, ow = w - t.w;
    if (oh < 0 || ow < 0) return 0;
    if (p.stride_h > 1 || p.stride_w > 1) {
      if (oh % p.stride_h != 0 || ow % p.stride_w != 0) return 0;
      oh /= p.stride_h;
      ow /= p.stride_w;
    }
    if (oh >= p.out_h || ow >= p.out_w) return 0;
    return widen(grad[base + t.image + oh * p.y.h + ow * p.y.w]);
  }
};

// The weight at (channel i, k = (output, kh, kw)).
template <class T>
struct TurnedWeight {
  const Tap* taps;
  const T* weight;
  int64_t stride;  // from channel to channel

  DEVICE bool along_i() const { return false; }
  DEVICE void settle(int64_t) {}
  DEVICE Wide<T> at(int64_t i, int64_t k) const {
    return widen(weight[i * stride + taps[k].weight]);
  }
};

// The gradient at (output i, output pixel k).
template <class T>
struct PixelGradients {
  const Problem& p;
  const T* grad;

  DEVICE bool along_i() const { return false; }
  DEVICE void settle(int64_t) {}
  DEVICE Wide<T> at(int64_t i, int64_t k) const {
    const Pixel o = pixel_of(k, p.out_h, p.out_w);
    return widen(grad[i * p.y.c + o.n * p.y.n + o.h * p.y.h + o.w * p.y.w]);
  }
};

// x at (element i of K, output pixel k).
template <class T>
struct TurnedWindows {
  const Problem& p;
  const Tap* taps;
  int64_t count;
  const T* x;

  DEVICE bool along_i() const { return false; }
  DEVICE void settle(int64_t) {}
  DEVICE Wide<T> at(int64_t i, int64_t k) const {
    const Tap t = taps[i];
    const Pixel o = pixel_of(k, p.out_h, p.out_w);
    const int64_t ih = o.h * p.stride_h - p.pad_h + t.h, iw = o.w * p.stride_w - p.pad_w + t.w;
    if (ih < 0 || ih >= p.in_h || iw < 0 || iw >= p.in_w) return 0;
    return widen(x[o.n * p.x.n + t.image + ih * p.x.h + iw * p.x.w]);
  }
};

// ---- kernels by tiles: blocks along x are tiles of pixels, along y of channels, along z groups ----

template <class T>
using Tile = FmaTile<T, 64, 64>;

template <class T>
__global__ void __launch_bounds__(kThreads)
    forward_tiles(Problem p, const Tap* taps, const T* x, const T* weight, const T* bias, T* y) {
  const int64_t j0 = static_cast<int64_t>(blockIdx.x) * 64,
                i0 = static_cast<int64_t>(blockIdx.y) * 64;
  const int64_t group = blockIdx.z, depth = p.channels * p.taps(), first = group * p.outputs;
  Shared shared;
  Tile<T> tile(shared);
  tile.multiply(Operand<T>{weight + first * depth, depth, 1}, i0, p.outputs,
                Windows<T>{p, taps, x + group * p.channels * p.x.c}, j0, p.out_pixels(), 0, depth);
  tile.for_each([&](int i, int j, Wide<T> sum) {
    if (i0 + i >= p.outputs || j0 + j >= p.out_pixels()) return;
    const Pixel o = pixel_of(j0 + j, p.out_h, p.out_w);
    const int64_t c = first + i0 + i;
    if (bias) sum += widen(bias[c]);
    y[o.n * p.y.n + c * p.y.c + o.h * p.y.h + o.w * p.y.w] = narrow<T>(sum);
  });
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    grad_input_tiles(Problem p, const Tap* taps, const T* grad, const T* weight, T* gx) {
  const int64_t j0 = static_cast<int64_t>(blockIdx.x) * 64,
                i0 = static_cast<int64_t>(blockIdx.y) * 64;
  const int64_t group = blockIdx.z, depth = p.outputs * p.taps();
  Shared shared;
  Tile<T> tile(shared);
  tile.multiply(TurnedWeight<T>{taps, weight + group * p.outputs * p.channels * p.taps(), p.taps()},
                i0, p.channels, Gradients<T>{p, taps, grad + group * p.outputs * p.y.c}, j0,
                p.in_pixels(), 0, depth);
  tile.for_each([&](int i, int j, Wide<T> sum) {
    if (i0 + i >= p.channels || j0 + j >= p.in_pixels()) return;
    const Pixel at = pixel_of(j0 + j, p.in_h, p.in_w);
    const int64_t c = group * p.channels + i0 + i;
    gx[at.n * p.x.n + c * p.x.c + at.h * p.x.h + at.w * p.x.w] = narrow<T>(sum);
  });
}

// Blocks along z: groups times parts of the pixels. partials: [parts, groups, outputs, K].
template <class T>
__global__ void __launch_bounds__(kThreads)
    grad_weight_tiles(Problem p, const Tap* taps, int64_t part, const T* grad, const T* x,
                      Wide<T>* partials) {
  const int64_t j0 = static_cast<int64_t>(blockIdx.x) * 64,
                i0 = static_cast<int64_t>(blockIdx.y) * 64;
  const int64_t group = blockIdx.z % p.groups, begin = blockIdx.z / p.groups * part;
  const int64_t depth = p.channels * p.taps();
  const int64_t end = begin + part < p.out_pixels() ? begin + part : p.out_pixels();
  Shared shared;
  Tile<T> tile(shared);
  tile.multiply(PixelGradients<T>{p, grad + group * p.outputs * p.y.c}, i0, p.outputs,
                TurnedWindows<T>{p, taps, depth, x + group * p.channels * p.x.c}, j0, depth, begin,
                end);
  Wide<T>* to = partials + static_cast<int64_t>(blockIdx.z) * p.outputs * depth;
  tile.for_each([&](int i, int j, Wide<T> sum) {
    if (i0 + i < p.outputs && j0 + j < depth) to[(i0 + i) * depth + j0 + j] = sum;
  });
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    add_parts(int64_t size, int64_t parts, const Wide<T>* partials, T* gw) {
  for (int64_t at = thread_number(); at < size; at += thread_count()) {
    Wide<T> sum = 0;
    for (int64_t k = 0; k < parts; ++k) sum += partials[k * size + at];
    gw[at] = narrow<T>(sum);
  }
}

// ---- tensor cores ----

// The windows of an image in channels-last memory: owner pixel i (of rows x columns each) sees, at tap
// t, the image's pixel owner * step + offset + t * dilation, divided by `apart` if it divides that.
// Forward the image is x and owners are outputs; for the input's gradient it is the outputs' gradient
// and owners are inputs.
struct WindowAxis {
  int32_t size, step, offset, dilation;
  Divider apart;

  DEVICE int32_t start(int64_t owner) const { return static_cast<int32_t>(owner) * step + offset; }
  // -1: outside.
  DEVICE int32_t position(int32_t start, int32_t tap) const {
    int32_t at = start + tap * dilation;
    if (at < 0) return -1;
    if (apart.divisor > 1) {
      if (apart.remainder(at) != 0) return -1;
      at = static_cast<int32_t>(apart(at));
    }
    return at < size ? at : -1;
  }
};
template <class T>
struct WindowImage {
  const T* data;  // of the group
  WindowAxis h, w;
  Divider rows, columns, channels, kernel_w;  // owners' rows and columns; channels of a group
  int64_t pixel;  // elements from pixel to pixel

  struct Owner {
    int64_t image;
    int32_t h, w;
  };
  struct Tap {
    int32_t channel, h, w;
  };
  DEVICE Owner owner(int64_t i) const {
    const int64_t row = columns(i), n = rows(row);
    return {n * h.size * w.size * pixel, h.start(row - n * rows.divisor),
            w.start(i - row * columns.divisor)};
  }
  DEVICE Tap tap(int64_t k) const {
    const int64_t t = channels(k), row = kernel_w(t);
    return {static_cast<int32_t>(k - t * channels.divisor), static_cast<int32_t>(row),
            static_cast<int32_t>(t - row * kernel_w.divisor)};
  }
  DEVICE const T* find(const Owner& o, const Tap& t) const {
    const int32_t y = h.position(o.h, t.h), x = w.position(o.w, t.w);
    if (y < 0 || x < 0) return nullptr;
    return data + o.image + (static_cast<int64_t>(y) * w.size + x) * pixel + t.channel;
  }
  DEVICE Wide<T> value(int64_t owner_number, int64_t k) const {
    const T* found = find(owner(owner_number), tap(k));
    return found ? widen(*found) : Wide<T>(0);
  }
};
// Rows of A are owners; k is an element of K.
template <class T>
struct WindowRows : WindowImage<T> {
  using Place = typename WindowImage<T>::Owner;
  DEVICE Place place(int64_t i) const { return this->owner(i); }
  DEVICE const T* chunk(const Place& o, int64_t, int64_t k) const {
    return this->find(o, this->tap(k));
  }
  DEVICE Wide<T> at(int64_t i, int64_t k) const { return this->value(i, k); }
};
// Columns of B are elements of K; k is an owner.
template <class T>
struct WindowColumns : WindowImage<T> {
  using Place = typename WindowImage<T>::Tap;
  DEVICE Place place(int64_t j) const { return this->tap(j); }
  DEVICE const T* chunk(const Place& t, int64_t, int64_t k) const {
    return this->find(this->owner(k), t);
  }
  DEVICE Wide<T> at(int64_t j, int64_t k) const { return this->value(k, j); }
};

template <class T>
struct ConvTile;
template <>
struct ConvTile<float> {
  template <bool kAAlongK, bool kBAlongK>
  using type = Tf32Tile<kAAlongK, kBAlongK>;
};
template <>
struct ConvTile<bf16> {
  template <bool kAAlongK, bool kBAlongK>
  using type = MmaTile<bf16, kAAlongK, kBAlongK>;
};
template <>
struct ConvTile<half> {
  template <bool kAAlongK, bool kBAlongK>
  using type = MmaTile<half, kAAlongK, kBAlongK>;
};

constexpr int kTileSize = 128;

// For results that are not finite: what operands of infinity really give.
template <class A, class B>
SELDOM_DEVICE float plain_sum(const A& a, int64_t i, const B& b, int64_t j, int64_t begin,
                              int64_t end) {
  float sum = 0;
  for (int64_t k = begin; k < end; ++k) sum = fma(a.at(i, k), b.at(j, k), sum);
  return sum;
}

// y[owner, channel] = windows times the weight [groups][channels][K], plus bias.
template <class T>
__global__ void __launch_bounds__(kThreads)
    multiply_windows(WindowRows<T> windows, const T* weight, const T* bias, T* y, Image strides,
                     int64_t owners, int64_t channels, int64_t depth, bool exact) {
  using Tile = typename ConvTile<T>::template type<true, true>;
  const int64_t i0 = static_cast<int64_t>(blockIdx.x) * kTileSize,
                j0 = static_cast<int64_t>(blockIdx.y) * kTileSize, group = blockIdx.z;
  windows.data += group * windows.channels.divisor;
  const Operand<T> right{weight + group * channels * depth, depth, 1};
  Shared shared;
  Tile tile(shared);
  if constexpr (Tile::kSplits) tile.exact = exact;
  tile.multiply(windows, i0, owners, right, j0, channels, 0, depth);
  tile.for_each_row([&](int row) {
    const int64_t i = i0 + row;
    const Pixel o = pixel_of(i, windows.rows.divisor, windows.columns.divisor);
    T* const to = y + o.n * strides.n + o.h * strides.h + o.w * strides.w;
    return [=, &windows, &right](int column, float sum) {
      const int64_t j = j0 + column, c = group * channels + j;
      if (i >= owners || j >= channels) return;
      if (Tile::kSplits && sum - sum != 0) sum = plain_sum(windows, i, right, j, 0, depth);
      if (bias) sum += widen(bias[c]);
      to[c * strides.c] = narrow<T>(sum);
    };
  });
}

// partials [parts, groups, outputs, K] = the gradient (channels-last) times windows, by parts of the
// pixels. Blocks along z: groups times parts.
template <class T>
__global__ void __launch_bounds__(kThreads)
    multiply_gradients(WindowColumns<T> windows, const T* grad, int64_t groups, int64_t outputs,
                       int64_t depth, int64_t pixels, int64_t part, float* partials, bool exact) {
  using Tile = typename ConvTile<T>::template type<false, false>;
  const int64_t i0 = static_cast<int64_t>(blockIdx.x) * kTileSize,
                j0 = static_cast<int64_t>(blockIdx.y) * kTileSize;
  const int64_t group = blockIdx.z % groups, begin = blockIdx.z / groups * part;
  const int64_t end = begin + part < pixels ? begin + part : pixels;
  windows.data += group * windows.channels.divisor;
  const Operand<T> left{grad + group * outputs, 1, groups * outputs};
  Shared shared;
  Tile tile(shared);
  if constexpr (Tile::kSplits) tile.exact = exact;
  tile.multiply(left, i0, outputs, windows, j0, depth, begin, end);
  float* to = partials + static_cast<int64_t>(blockIdx.z) * outputs * depth;
  tile.for_each([&](int i, int j, float sum) {
    if (i0 + i >= outputs || j0 + j >= depth) return;
    if (Tile::kSplits && sum - sum != 0) sum = plain_sum(left, i0 + i, windows, j0 + j, begin, end);
    to[(i0 + i) * depth + j0 + j] = sum;
  });
}

// [rows, a, b] -> [rows, b, a]; with parts the sums of `parts` such arrays, in order.
template <class From, class To>
__global__ void __launch_bounds__(kThreads)
    swap_dimensions(int64_t rows, int64_t a, int64_t b, int64_t parts, const From* from, To* to) {
  const int64_t size = rows * a * b;
  for (int64_t at = thread_number(); at < size; at += thread_count()) {
    const int64_t row = at / (a * b), j = at / a % b, i = at % a;
    const From* element = from + (row * a + i) * b + j;
    Wide<From> sum = 0;
    for (int64_t k = 0; k < parts; ++k) sum += widen(element[k * size]);
    to[at] = narrow<To>(sum);
  }
}

// An image in channels-last memory: 32 x 32 tiles of channels and columns by way of shared memory.
template <class T>
__global__ void __launch_bounds__(kThreads)
    copy_channels_last(const T* x, Image strides, int64_t channels, int64_t height, int64_t width,
                       T* to) {
  constexpr int kSide = 32;
  Shared shared;
  T* tile = shared.take<T>(kSide * (kSide + 2));
  const int64_t row = blockIdx.x, n = row / height, h = row % height;
  const int64_t c0 = static_cast<int64_t>(blockIdx.y) * kSide,
                w0 = static_cast<int64_t>(blockIdx.z) * kSide;
  const int lane = threadIdx.x % kSide, first = threadIdx.x / kSide;
  const bool along_w = strides.w == 1;
  for (int i = first; i < kSide; i += kThreads / kSide) {
    const int c = along_w ? i : lane, w = along_w ? lane : i;
    if (c0 + c < channels && w0 + w < width)
      tile[c * (kSide + 2) + w] =
          x[n * strides.n + (c0 + c) * strides.c + h * strides.h + (w0 + w) * strides.w];
  }
  __syncthreads();
  for (int w = first; w < kSide; w += kThreads / kSide)
    if (c0 + lane < channels && w0 + w < width)
      to[(row * width + w0 + w) * channels + c0 + lane] = tile[lane * (kSide + 2) + w];
}

// ---- groups of few channels ----

template <class T>
__global__ void __launch_bounds__(kThreads)
    forward_direct(Problem p, const T* x, const T* weight, const T* bias, T* y) {
  const int64_t outputs = p.groups * p.outputs, plane = p.out_h * p.out_w;
  for (int64_t at = thread_number(); at < p.batch * outputs * plane; at += thread_count()) {
    const int64_t c = at / plane % outputs;
    const Pixel o = pixel_of(at / plane / outputs * plane + at % plane, p.out_h, p.out_w);
    const T* image = x + o.n * p.x.n + c / p.outputs * p.channels * p.x.c;
    const T* w = weight + c * p.channels * p.taps();
    Wide<T> sum = 0;
    for (int64_t i = 0; i < p.channels; ++i)
      for (int64_t kh = 0; kh < p.kernel_h; ++kh) {
        const int64_t ih = o.h * p.stride_h - p.pad_h + kh * p.dilation_h;
        if (ih < 0 || ih >= p.in_h) continue;
        for (int64_t kw = 0; kw < p.kernel_w; ++kw) {
          const int64_t iw = o.w * p.stride_w - p.pad_w + kw * p.dilation_w;
          if (iw < 0 || iw >= p.in_w) continue;
          sum = fma(widen(image[i * p.x.c + ih * p.x.h + iw * p.x.w]),
                    widen(w[(i * p.kernel_h + kh) * p.kernel_w + kw]), sum);
        }
      }
    if (bias) sum += widen(bias[c]);
    y[o.n * p.y.n + c * p.y.c + o.h * p.y.h + o.w * p.y.w] = narrow<T>(sum);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    grad_input_direct(Problem p, const T* grad, const T* weight, T* gx) {
  const int64_t channels = p.groups * p.channels, plane = p.in_h * p.in_w;
  for (int64_t at = thread_number(); at < p.batch * channels * plane; at += thread_count()) {
    const int64_t c = at / plane % channels, group = c / p.channels;
    const Pixel i = pixel_of(at / plane / channels * plane + at % plane, p.in_h, p.in_w);
    Wide<T> sum = 0;
    for (int64_t o = group * p.outputs; o < (group + 1) * p.outputs; ++o)
      for (int64_t kh = 0; kh < p.kernel_h; ++kh) {
        const int64_t h = i.h + p.pad_h - kh * p.dilation_h;
        if (h < 0 || h % p.stride_h != 0 || h / p.stride_h >= p.out_h) continue;
        for (int64_t kw = 0; kw < p.kernel_w; ++kw) {
          const int64_t w = i.w + p.pad_w - kw * p.dilation_w;
          if (w < 0 || w % p.stride_w != 0 || w / p.stride_w >= p.out_w) continue;
          const T g =
              grad[i.n * p.y.n + o * p.y.c + h / p.stride_h * p.y.h + w / p.stride_w * p.y.w];
          const int64_t tap = kh * p.kernel_w + kw;
          sum =
              fma(widen(g), widen(weight[(o * p.channels + c % p.channels) * p.taps() + tap]), sum);
        }
      }
    gx[i.n * p.x.n + c * p.x.c + i.h * p.x.h + i.w * p.x.w] = narrow<T>(sum);
  }
}

// A block per weight.
template <class T>
__global__ void __launch_bounds__(kThreads)
    grad_weight_direct(Problem p, const T* grad, const T* x, T* gw) {
  Shared shared;
  double* space = shared.take<double>(kThreads / 32);
  const int64_t at = blockIdx.x, o = at / p.taps() / p.channels, group = o / p.outputs;
  const int64_t c = group * p.channels + at / p.taps() % p.channels;
  const int64_t kh = at / p.kernel_w % p.kernel_h, kw = at % p.kernel_w;
  double sum = 0;
  for (int64_t i = threadIdx.x; i < p.out_pixels(); i += kThreads) {
    const Pixel q = pixel_of(i, p.out_h, p.out_w);
    const int64_t ih = q.h * p.stride_h - p.pad_h + kh * p.dilation_h;
    const int64_t iw = q.w * p.stride_w - p.pad_w + kw * p.dilation_w;
    if (ih < 0 || ih >= p.in_h || iw < 0 || iw >= p.in_w) continue;
    sum += static_cast<double>(widen(grad[q.n * p.y.n + o * p.y.c + q.h * p.y.h + q.w * p.y.w])) *
           static_cast<double>(widen(x[q.n * p.x.n + c * p.x.c + ih * p.x.h + iw * p.x.w]));
  }
  sum = block_combine(sum, space, Plus{});
  if (threadIdx.x == 0) gw[at] = narrow<T>(static_cast<Wide<T>>(sum));
}

// ---- launches ----

Problem problem_of(const View& x, const View& w, const View& y, int64_t stride_h, int64_t stride_w,
                   int64_t pad_h, int64_t pad_w, int64_t dilation_h, int64_t dilation_w,
                   int64_t groups) {
  return {x.shape[0], w.shape[1],  w.shape[0] / (groups ? groups : 1),
          groups,     x.shape[2],  x.shape[3],
          y.shape[2], y.shape[3],  w.shape[2],
          w.shape[3], stride_h,    stride_w,
          pad_h,      pad_w,       dilation_h,
          dilation_w, image_of(x), image_of(y)};
}

const Tap* new_taps(const Problem& p, bool backward) {
  const int64_t count = (backward ? p.outputs : p.channels) * p.taps();
  Tap* taps = static_cast<Tap*>(workspace(count * static_cast<int64_t>(sizeof(Tap))));
  launch("conv2d", make_taps, blocks_for(count, kThreads), kThreads, 0, p, count, backward, taps);
  return taps;
}

dim3 tiles_of(int64_t pixels, int64_t channels, int64_t groups) {
  return dim3(blocks_for(pixels, 64), blocks_for(channels, 64), static_cast<unsigned>(groups));
}

// ---- launches on tensor cores; false: not for them ----

template <class T>
bool fits_tensor_cores(const Problem& p) {
  constexpr int64_t kLeastWork = 16, kMostSize = int64_t{1} << 28;
  if constexpr (sizeof(T) == 8) return false;
  if (compute_capability() < (std::is_same_v<T, half> ? 75 : 80)) return false;
  if (p.channels % kPack<T> || p.outputs % kPack<T>) return false;
  if (p.channels < kLeastWork || p.outputs < kLeastWork) return false;
  return p.in_pixels() < kMostSize && p.out_pixels() < kMostSize &&
         p.dilation_h * p.kernel_h + p.pad_h < kMostSize &&
         p.dilation_w * p.kernel_w + p.pad_w < kMostSize && p.in_h * p.stride_h < kMostSize &&
         p.in_w * p.stride_w < kMostSize;
}

// `x` itself if it lies in channels-last memory, else a copy that does.
template <class T>
const T* channels_last(const T* x, const Image& s, int64_t n, int64_t channels, int64_t height,
                       int64_t width) {
  if (is_aligned(x) && s.c == 1 && s.w == channels && s.h == width * channels &&
      (s.n == height * s.h || n == 1))
    return x;
  T* copy =
      static_cast<T*>(workspace(n * channels * height * width * static_cast<int64_t>(sizeof(T))));
  launch("conv2d", copy_channels_last<T>,
         dim3(static_cast<unsigned>(n * height), blocks_for(channels, 32), blocks_for(width, 32)),
         kThreads, 32 * 34 * sizeof(T), x, s, channels, height, width, copy);
  return copy;
}
template <class T>
const T* inputs_channels_last(const Problem& p, const T* x) {
  return channels_last(x, p.x, p.batch, p.groups * p.channels, p.in_h, p.in_w);
}
template <class T>
const T* outputs_channels_last(const Problem& p, const T* y) {
  return channels_last(y, p.y, p.batch, p.groups * p.outputs, p.out_h, p.out_w);
}

int32_t narrowed(int64_t n) { return static_cast<int32_t>(n); }

// The windows of x that the outputs see.
template <class T>
WindowImage<T> windows_of(const Problem& p, const T* x) {
  return {x,
          {narrowed(p.in_h), narrowed(p.stride_h), narrowed(-p.pad_h), narrowed(p.dilation_h),
           Divider(1)},
          {narrowed(p.in_w), narrowed(p.stride_w), narrowed(-p.pad_w), narrowed(p.dilation_w),
           Divider(1)},
          Divider(p.out_h),
          Divider(p.out_w),
          Divider(p.channels),
          Divider(p.kernel_w),
          p.groups * p.channels};
}
// The windows of the outputs' gradient that the inputs see.
template <class T>
WindowImage<T> gradient_windows_of(const Problem& p, const T* grad) {
  return {grad,
          {narrowed(p.out_h), 1, narrowed(p.pad_h), narrowed(-p.dilation_h), Divider(p.stride_h)},
          {narrowed(p.out_w), 1, narrowed(p.pad_w), narrowed(-p.dilation_w), Divider(p.stride_w)},
          Divider(p.in_h),
          Divider(p.in_w),
          Divider(p.outputs),
          Divider(p.kernel_w),
          p.groups * p.outputs};
}

// ---- launches on warpgroups ----

template <class T>
bool fits_warpgroups(const Problem& p) {
  return sizeof(T) == 2 && compute_capability() == 90 && p.groups == 1;
}
Windows2d windows_for_warpgroups(const Problem& p) {
  return {p.batch,
          p.in_h,
          p.in_w,
          p.channels,
          p.out_h,
          p.out_w,
          {p.kernel_w, p.kernel_h},
          {p.stride_w, p.stride_h},
          {-p.pad_w, -p.pad_h},
          {p.dilation_w, p.dilation_h},
          false};
}
// Steps of 1 only: else neighbours see different taps.
Windows2d gradient_windows_for_warpgroups(const Problem& p) {
  return {p.batch,
          p.out_h,
          p.out_w,
          p.outputs,
          p.in_h,
          p.in_w,
          {p.kernel_w, p.kernel_h},
          {1, 1},
          {p.pad_w - (p.kernel_w - 1) * p.dilation_w, p.pad_h - (p.kernel_h - 1) * p.dilation_h},
          {p.dilation_w, p.dilation_h},
          true};
}
// False: these windows or results are not for warpgroups.
template <class T>
bool multiply_on_warpgroups(const Windows2d& q, const T* image, const T* weight, const T* bias,
                            T* y, const Image& s, int64_t columns) {
  if (!q.fit() || (q.rows > 1 && s.h != q.columns * s.w)) return false;
  const int64_t strides[4] = {s.n, s.c, s.h, s.w};
  if (columns <= 64)
    launch_windows<64>(q, image, weight, bias, y, strides, columns);
  else
    launch_windows<128>(q, image, weight, bias, y, strides, columns);
  return true;
}

dim3 wide_tiles_of(int64_t rows, int64_t columns, int64_t layers) {
  return dim3(blocks_for(rows, kTileSize), blocks_for(columns, kTileSize),
              static_cast<unsigned>(layers));
}

template <class T>
bool forward_on_tensor_cores(const Problem& p, const T* x, const T* w, const T* bias, T* y) {
  if constexpr (sizeof(T) < 8) {
    if (!fits_tensor_cores<T>(p)) return false;
    const int64_t depth = p.channels * p.taps(), rows = p.groups * p.outputs;
    T* turned = static_cast<T*>(workspace(rows * depth * static_cast<int64_t>(sizeof(T))));
    launch("conv2d", swap_dimensions<T, T>, blocks_for(rows * depth, kThreads), kThreads, 0, rows,
           p.channels, p.taps(), 1, w, turned);
    const T* image = inputs_channels_last(p, x);
    if constexpr (sizeof(T) == 2)
      if (fits_warpgroups<T>(p) && multiply_on_warpgroups<T>(windows_for_warpgroups(p), image,
                                                             turned, bias, y, p.y, p.outputs))
        return true;
    const WindowRows<T> windows{windows_of(p, image)};
    launch("conv2d", multiply_windows<T>, wide_tiles_of(p.out_pixels(), p.outputs, p.groups),
           kThreads, ConvTile<T>::template type<true, true>::kSharedBytes, windows,
           static_cast<const T*>(turned), bias, y, p.y, p.out_pixels(), p.outputs, depth,
           !tf32_allowed());
    return true;
  }
  return false;
}

template <class T>
bool grad_input_on_tensor_cores(const Problem& p, const T* grad, const T* w, T* gx) {
  if constexpr (sizeof(T) < 8) {
    if (!fits_tensor_cores<T>(p)) return false;
    const int64_t depth = p.outputs * p.taps(), size = p.groups * p.channels * depth;
    // [groups][outputs][channels x taps] -> [groups][channels x taps][outputs]: then a row of the
    // product's right operand has (tap, output) behind each other for a channel.
    T* turned = static_cast<T*>(workspace(size * static_cast<int64_t>(sizeof(T))));
    launch("conv2d", swap_dimensions<T, T>, blocks_for(size, kThreads), kThreads, 0, p.groups,
           p.outputs, p.channels * p.taps(), 1, w, turned);
    const T* image = outputs_channels_last(p, grad);
    if constexpr (sizeof(T) == 2)
      if (fits_warpgroups<T>(p) && p.stride_h == 1 && p.stride_w == 1 &&
          multiply_on_warpgroups<T>(gradient_windows_for_warpgroups(p), image, turned, nullptr, gx,
                                    p.x, p.channels))
        return true;
    const WindowRows<T> windows{gradient_windows_of(p, image)};
    launch("conv2d", multiply_windows<T>, wide_tiles_of(p.in_pixels(), p.channels, p.groups),
           kThreads, ConvTile<T>::template type<true, true>::kSharedBytes, windows,
           static_cast<const T*>(turned), static_cast<const T*>(nullptr), gx, p.x, p.in_pixels(),
           p.channels, depth, !tf32_allowed());
    return true;
  }
  return false;
}

// Parts of the pixels, so that there are enough blocks.
int64_t part_of_pixels(const Problem& p, int64_t tiles) {
  int64_t parts = divide_up(kEnoughTiles, tiles ? tiles : 1);
  const int64_t most = p.out_pixels() / kLeastPart;
  parts = parts < most ? parts : most;
  parts = parts < 1 ? 1 : parts < kMostParts ? parts : kMostParts;
  return divide_up(p.out_pixels(), parts);
}

template <class T>
bool gradients_on_warpgroups(const Problem& p, const T* image, const T* grad, int64_t part,
                             float* partials) {
  if constexpr (sizeof(T) == 2) {
    const Windows2d q = windows_for_warpgroups(p);
    if (!fits_warpgroups<T>(p) || !q.fit()) return false;
    launch_gradients(q, image, grad, p.outputs, part, partials);
    return true;
  }
  return false;
}

template <class T>
bool grad_weight_on_tensor_cores(const Problem& p, const T* grad, const T* x, T* gw) {
  if constexpr (sizeof(T) < 8) {
    if (!fits_tensor_cores<T>(p)) return false;
    const int64_t depth = p.channels * p.taps(), rows = p.groups * p.outputs;
    const int64_t tiles = divide_up(depth, kTileSize) * divide_up(p.outputs, kTileSize) * p.groups;
    const int64_t part = divide_up(part_of_pixels(p, tiles), 64) * 64;
    const int64_t parts = divide_up(p.out_pixels(), part);
    float* partials =
        static_cast<float*>(workspace(parts * rows * depth * static_cast<int64_t>(sizeof(float))));
    const T *image = inputs_channels_last(p, x), *gradient = outputs_channels_last(p, grad);
    if (!gradients_on_warpgroups(p, image, gradient, part, partials))
      launch("conv2d", multiply_gradients<T>, wide_tiles_of(p.outputs, depth, p.groups * parts),
             kThreads, ConvTile<T>::template type<false, false>::kSharedBytes,
             WindowColumns<T>{windows_of(p, image)}, gradient, p.groups, p.outputs, depth,
             p.out_pixels(), part, partials, !tf32_allowed());
    launch("conv2d", swap_dimensions<float, T>, blocks_for(rows * depth, kThreads), kThreads, 0,
           rows, p.taps(), p.channels, parts, static_cast<const float*>(partials), gw);
    return true;
  }
  return false;
}

// ---- which way ----

template <class T>
void forward(const Problem& p, const T* x, const T* w, const T* bias, T* y) {
  if (forward_on_tensor_cores(p, x, w, bias, y)) return;
  if (p.outputs <= kFewChannels) {
    const int64_t size = p.out_pixels() * p.groups * p.outputs;
    launch("conv2d", forward_direct<T>, blocks_for(size, kThreads), kThreads, 0, p, x, w, bias, y);
    return;
  }
  launch("conv2d", forward_tiles<T>, tiles_of(p.out_pixels(), p.outputs, p.groups), kThreads,
         Tile<T>::kSharedBytes, p, new_taps(p, false), x, w, bias, y);
}

template <class T>
void grad_input(const Problem& p, const T* grad, const T* w, T* gx) {
  if (grad_input_on_tensor_cores(p, grad, w, gx)) return;
  if (p.channels <= kFewChannels) {
    const int64_t size = p.in_pixels() * p.groups * p.channels;
    launch("conv2d", grad_input_direct<T>, blocks_for(size, kThreads), kThreads, 0, p, grad, w, gx);
    return;
  }
  launch("conv2d", grad_input_tiles<T>, tiles_of(p.in_pixels(), p.channels, p.groups), kThreads,
         Tile<T>::kSharedBytes, p, new_taps(p, true), grad, w, gx);
}

template <class T>
void grad_weight(const Problem& p, const T* grad, const T* x, T* gw) {
  const int64_t depth = p.channels * p.taps(), size = p.groups * p.outputs * depth;
  if (grad_weight_on_tensor_cores(p, grad, x, gw)) return;
  if (p.outputs <= kFewChannels && size <= kFewWeights) {
    launch("conv2d", grad_weight_direct<T>, static_cast<unsigned>(size), kThreads,
           kThreads / 32 * sizeof(double), p, grad, x, gw);
    return;
  }
  const int64_t tiles = divide_up(depth, 64) * divide_up(p.outputs, 64) * p.groups;
  const int64_t part = part_of_pixels(p, tiles), parts = divide_up(p.out_pixels(), part);
  Wide<T>* partials =
      static_cast<Wide<T>*>(workspace(parts * size * static_cast<int64_t>(sizeof(Wide<T>))));
  launch("conv2d", grad_weight_tiles<T>, tiles_of(depth, p.outputs, p.groups * parts), kThreads,
         Tile<T>::kSharedBytes, p, new_taps(p, false), part, grad, x, partials);
  launch("conv2d", add_parts<T>, blocks_for(size, kThreads), kThreads, 0, size, parts,
         static_cast<const Wide<T>*>(partials), gw);
}

}  // namespace

bool conv2d(In x, In w, OptIn bias, Out y, int64_t stride_h, int64_t stride_w, int64_t pad_h,
            int64_t pad_w, int64_t dilation_h, int64_t dilation_w, int64_t groups) {
  const Problem p =
      problem_of(x, w, y, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups);
  if (numel(y) == 0) return true;
  with_float("conv2d", x.dtype, [&](auto zero) {
    using T = decltype(zero);
    forward<T>(p, data<T>(x), data<T>(w), data<T>(bias), data<T>(y));
  });
  return true;
}

bool conv2d_grad_input(In grad, In w, Out gx, int64_t stride_h, int64_t stride_w, int64_t pad_h,
                       int64_t pad_w, int64_t dilation_h, int64_t dilation_w, int64_t groups) {
  const Problem p =
      problem_of(gx, w, grad, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups);
  if (numel(gx) == 0) return true;
  with_float("conv2d", grad.dtype, [&](auto zero) {
    using T = decltype(zero);
    grad_input<T>(p, data<T>(grad), data<T>(w), data<T>(gx));
  });
  return true;
}

bool conv2d_grad_weight(In grad, In x, Out gw, OptOut gb, int64_t stride_h, int64_t stride_w,
                        int64_t pad_h, int64_t pad_w, int64_t dilation_h, int64_t dilation_w,
                        int64_t groups) {
  const Problem p =
      problem_of(x, gw, grad, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups);
  if (numel(gw) > 0)
    with_float("conv2d", grad.dtype, [&](auto zero) {
      using T = decltype(zero);
      grad_weight<T>(p, data<T>(grad), data<T>(x), data<T>(gw));
    });
  if (!gb.data) return true;
  Out sums{};  // gb as [1, outputs, 1, 1]
  sums.data = gb.data;
  sums.dtype = gb.dtype;
  sums.ndim = 4;
  for (int d = 0; d < 4; ++d) sums.shape[d] = sums.strides[d] = 1;
  sums.shape[1] = numel(gb);
  return reduce_sum(grad, sums, 1);
}

}  // namespace grebe::cuda
