// The elementwise kernels as module.cpp calls them: one function per line of elementwise.def.
#pragma once
#include "../iteration.h"

namespace grebe::cuda {

// numbers: per input its value where its data is null.
using ElementwiseKernel = void(DType dtype, const Iteration& it, const double* numbers,
                               const double* params);
#define UNARY(name, ...) ElementwiseKernel name;
#define BINARY(name, ...) ElementwiseKernel name;
#include "../elementwise.def"
#undef UNARY
#undef BINARY

}  // namespace grebe::cuda
