// Compiled once per ISA level: that level's function table, filled at compile time.
#include "table.h"

namespace grebe::GREBE_ISA {

#define UNARY(name, ...) UnaryLoop name;
#define BINARY(name, ...) BinaryLoop name;
#define OP(result, name, args) result name args;
#include "../ops.def"
#undef UNARY
#undef BINARY
#undef OP

extern const Table table;
const Table table = {
#define UNARY(name, ...) name,
#define BINARY(name, ...) name,
#define OP(result, name, args) name,
#include "../ops.def"
#undef UNARY
#undef BINARY
#undef OP
};

}  // namespace grebe::GREBE_ISA
