// Which ISA levels this CPU *and* operating system can run. A CPU flag alone is not enough: the
// system must save the wider registers (XGETBV), or the first vector instruction is a SIGILL.
#include <cstring>

#include "table.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace grebe {

// GREBE_LEVELS is made by CMake: LEVEL(baseline) LEVEL(avx2) ...
#define LEVEL(name)         \
  namespace name {          \
  extern const Table table; \
  }
GREBE_LEVELS
#undef LEVEL

namespace {

#if defined(__x86_64__)
struct Registers {
  unsigned a, b, c, d;
};

Registers cpuid(unsigned leaf, unsigned subleaf) {
  Registers r{0, 0, 0, 0};
  __get_cpuid_count(leaf, subleaf, &r.a, &r.b, &r.c, &r.d);
  return r;
}

unsigned enabled_state() {
  if (!(cpuid(1, 0).c & bit_OSXSAVE)) return 0;
  unsigned low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

bool supported(const char* level) {
  if (!std::strcmp(level, "baseline")) return true;
  constexpr unsigned kYmm = 0x6, kZmm = 0xe6;
  const unsigned state = enabled_state();
  const Registers one = cpuid(1, 0), seven = cpuid(7, 0), seven1 = cpuid(7, 1);
  const bool avx2 = (state & kYmm) == kYmm && (one.c & bit_FMA) && (one.c & bit_F16C) &&
                    (seven.b & bit_AVX2) && (seven.b & bit_BMI2);
  if (!std::strcmp(level, "avx2")) return avx2;
  const unsigned needed = bit_AVX512F | bit_AVX512DQ | bit_AVX512CD | bit_AVX512BW | bit_AVX512VL;
  const bool avx512 = avx2 && (state & kZmm) == kZmm && (seven.b & needed) == needed;
  if (!std::strcmp(level, "avx512")) return avx512;
  constexpr unsigned kAvx512Bf16 = 1u << 5;
  return avx512 && !std::strcmp(level, "avx512bf16") && (seven1.a & kAvx512Bf16);
}
#else
bool supported(const char* level) { return !std::strcmp(level, "baseline"); }
#endif

struct Level {
  const char* name;
  const Table* table;
};

constexpr Level kLevels[] = {
#define LEVEL(name) {#name, &name::table},
    GREBE_LEVELS
#undef LEVEL
};

}  // namespace

const Table* table_for(const char* level) {
  for (const Level& l : kLevels)
    if (!std::strcmp(l.name, level)) return supported(level) ? l.table : nullptr;
  return nullptr;
}

const char* built_level(int index) {
  const int count = static_cast<int>(sizeof(kLevels) / sizeof(kLevels[0]));
  return index < count ? kLevels[index].name : nullptr;
}

const char* best_level() {
  const char* best = "baseline";
  for (const Level& l : kLevels)
    if (supported(l.name)) best = l.name;
  return best;
}

}  // namespace grebe
