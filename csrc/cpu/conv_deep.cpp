#include "conv_deep.h"

#include "winograd.h"

namespace grebe::GREBE_ISA {
namespace {

constexpr int64_t kDeep = 32;

bool by_winograd(const View& w, const Steps& s) {
  return w.dtype == DType::kFloat32 && w.shape[2] == 3 && w.shape[3] == 3 && s.stride_h == 1 &&
         s.stride_w == 1 && s.dilation_h == 1 && s.dilation_w == 1;
}

}  // namespace

bool is_deep(const View& x, const View& w, const Steps& s, int64_t groups) {
  return groups == 1 && x.shape[0] > 0 && w.shape[0] >= kDeep && w.shape[1] >= kDeep &&
         by_winograd(w, s);
}

bool deep_conv2d(const View& x, const View& w, const View& bias, const View& y, const Steps& s,
                 bool relu) {
  Winograd f{};
  f.x = image_of<float>(x);
  f.y = image_of<float>(y);
  f.pad_h = s.pad_h;
  f.pad_w = s.pad_w;
  f.kernels = {data<float>(w), f.y.channels, f.x.channels, 9 * f.x.channels, 9, false};
  f.bias = data<float>(bias);
  f.relu = relu;
  return f.run();
}

bool deep_grad_input(const View& grad, const View& w, const View& gx, const Steps& s) {
  Winograd f{};
  f.x = image_of<float>(grad);
  f.y = image_of<float>(gx);
  f.pad_h = 2 - s.pad_h;
  f.pad_w = 2 - s.pad_w;
  f.kernels = {data<float>(w), f.y.channels, f.x.channels, 9, 9 * f.y.channels, true};
  return f.run();
}

bool deep_grad_weight(const View& grad, const View& x, const View& gw, const View& gb,
                      const Steps& s) {
  WinogradWeight f{};
  f.x = image_of<float>(x);
  f.grad = image_of<float>(grad);
  f.pad_h = s.pad_h;
  f.pad_w = s.pad_w;
  f.gw = data<float>(gw);
  f.gb = data<float>(gb);
  return f.run();
}

}  // namespace grebe::GREBE_ISA
