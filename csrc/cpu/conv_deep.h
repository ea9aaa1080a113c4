// Convolutions of many channels without groups: conv.cpp hands them over to conv_deep.cpp.
#pragma once
#include "kernels.h"

namespace grebe::GREBE_ISA {

// The steps of a convolution, as the arguments of the kernels.
struct Steps {
  int64_t stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
};

// Does the convolution of images x with w belong here?
bool is_deep(const View& x, const View& w, int64_t groups);

// False: out of memory.
bool deep_conv2d(const View& x, const View& w, const View& bias, const View& y, const Steps& steps);
bool deep_grad_input(const View& grad, const View& w, const View& gx, const Steps& steps);
bool deep_grad_weight(const View& grad, const View& x, const View& gw, const View& gb,
                      const Steps& steps);

}  // namespace grebe::GREBE_ISA
