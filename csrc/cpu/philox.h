// Philox numbers, 64 at a time, for whatever drops or draws.
#pragma once
#include "kernels.h"

namespace grebe::GREBE_ISA {
namespace {

constexpr int kBlocks = 16;  // Philox blocks per group
constexpr int kWords = 4 * kBlocks;

// Words of group `group` in element order: word w of block b at index 16 w + b.
inline void philox_group(uint64_t seed, uint64_t offset, int64_t group, uint32_t* words) {
  constexpr int kWidth = static_cast<int>(lanes<double>);  // blocks per vector of 64-bit lanes
  u64v step{};
  for (int i = 0; i < kWidth; ++i) step[i] = 2 * static_cast<uint64_t>(i);
  for (int h = 0; h < kBlocks; h += 2 * kWidth) {
    // Even blocks in one set of vectors, odd ones in another; the low half of a lane counts.
    u64v c[2][4];
    for (int odd = 0; odd < 2; ++odd) {
      const u64v block = step + static_cast<uint64_t>(group * kBlocks + h + odd);
      c[odd][0] = block;
      c[odd][1] = block >> 32;
      c[odd][2] = u64v{} + offset;
      c[odd][3] = u64v{} + (offset >> 32);
    }
    uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
#pragma GCC unroll 10
    for (int round = 0; round < 10; ++round) {
      for (int odd = 0; odd < 2; ++odd) {
        u64v* s = c[odd];
        const u64v p0 = multiply_low_halves(s[0], u64v{} + uint64_t{0xD2511F53u});
        const u64v p1 = multiply_low_halves(s[2], u64v{} + uint64_t{0xCD9E8D57u});
        s[0] = (p1 >> 32) ^ s[1] ^ uint64_t { k0 };
        s[2] = (p0 >> 32) ^ s[3] ^ uint64_t { k1 };
        s[1] = p1;
        s[3] = p0;
      }
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    for (int w = 0; w < 4; ++w) {
      const u64v both = (c[0][w] & uint64_t{0xFFFFFFFFu}) | (c[1][w] << 32);
      __builtin_memcpy(words + w * kBlocks + h, &both, sizeof(both));
    }
  }
}

}  // namespace
}  // namespace grebe::GREBE_ISA
