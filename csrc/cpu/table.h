// The function table of one ISA level: a member per line of ops.def.
#pragma once
#include "../view.h"

namespace grebe {

// y[i] = f(x[i]; p) for i < n, strides in elements, any of them 0 for a broadcast operand.
using UnaryLoop = void(DType dtype, int64_t n, const void* x, int64_t x_stride, void* y,
                       int64_t y_stride, const double* p);
using BinaryLoop = void(DType dtype, int64_t n, const void* a, int64_t a_stride, const void* b,
                        int64_t b_stride, void* y, int64_t y_stride, const double* p);

struct Table {
#define UNARY(name, ...) UnaryLoop* name;
#define BINARY(name, ...) BinaryLoop* name;
#define OP(result, name, args) result(*name) args;
#include "../ops.def"
#undef UNARY
#undef BINARY
#undef OP
};

const Table* table_for(const char* level);  // nullptr: level not built or not supported here
const char* built_level(int index);  // name of the index-th level of this build, lowest first
const char* best_level();                   // highest level that this CPU and OS can run

}  // namespace grebe
