// The function table of one ISA level: a member per line of ops.def.
#pragma once
#include "../view.h"

namespace grebe {

using UnaryLoop = void(DType, int64_t, const void*, int64_t, void*, int64_t, const double*);
using BinaryLoop = void(DType, int64_t, const void*, int64_t, const void*, int64_t, void*, int64_t,
                        const double*);

struct Table {
#define UNARY(name) UnaryLoop* name;
#define BINARY(name) BinaryLoop* name;
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
