// Everything a kernel file includes.
//
// A kernel file is compiled once per ISA level. Rules (checked on the objects by tests/objects.sh):
// whatever is not a kernel sits in an anonymous namespace or is `static inline`: a weak symbol
// would let the linker hand AVX-512 code to an older CPU. No static constructors, no std containers.
//
// Kernel files do not see ops.def, so that a new line there rebuilds only the tables and bindings;
// a definition that does not match its line is an undefined symbol when table.cpp is linked.
#pragma once
#include "../memory.h"
#include "../parallel.h"
#include "../random.h"
#include "../view.h"
#include "simd_math.h"
