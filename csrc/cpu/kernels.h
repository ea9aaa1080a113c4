// Everything a kernel file includes, and the declarations of all kernels from ops.def.
//
// A kernel file is compiled once per ISA level. Rules (checked on the objects by tests/objects.sh):
// whatever is not a kernel sits in an anonymous namespace or is `static inline`: a weak symbol
// would let the linker hand AVX-512 code to an older CPU. No static constructors, no std containers.
#pragma once
#include "../memory.h"
#include "../parallel.h"
#include "../random.h"
#include "../view.h"
#include "simd_math.h"

namespace grebe {

// y[i] = f(x[i]; p) for i < n, strides in elements, any of them 0 for a broadcast operand.
using UnaryLoop = void(DType dtype, int64_t n, const void* x, int64_t x_stride, void* y,
                       int64_t y_stride, const double* p);
using BinaryLoop = void(DType dtype, int64_t n, const void* a, int64_t a_stride, const void* b,
                        int64_t b_stride, void* y, int64_t y_stride, const double* p);

namespace GREBE_ISA {
#define UNARY(name) UnaryLoop name;
#define BINARY(name) BinaryLoop name;
#define OP(result, name, args) result name args;
#include "../ops.def"
#undef UNARY
#undef BINARY
#undef OP
}  // namespace GREBE_ISA
}  // namespace grebe
