// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): a counter
// based generator. Element i of a stream is a pure function of (seed, offset, i), so any thread and
// any device makes the same number, and backward passes make it again instead of storing it.
#pragma once
#include <cstdint>

#ifdef __CUDACC__
#define GREBE_EVERYWHERE __host__ __device__
#else
#define GREBE_EVERYWHERE
#endif

namespace grebe {

struct Philox4 {
  uint32_t v[4];
};

GREBE_EVERYWHERE static inline Philox4 philox(uint64_t seed, uint64_t counter_low,
                                              uint64_t counter_high) {
  uint32_t c0 = static_cast<uint32_t>(counter_low), c1 = static_cast<uint32_t>(counter_low >> 32);
  uint32_t c2 = static_cast<uint32_t>(counter_high), c3 = static_cast<uint32_t>(counter_high >> 32);
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * c0, p1 = uint64_t{0xCD9E8D57u} * c2;
    const uint32_t n0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    const uint32_t n2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(p1);
    c3 = static_cast<uint32_t>(p0);
    c0 = n0;
    c2 = n2;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// Every pair (seed, offset) is a stream of its own. In groups of 64
// elements, element i takes word i % 64 / 16 of block i / 64 * 16 + i % 16, an order in which
// vectors of up to 16 blocks store their words without shuffling. A float64 number needs two words:
// in groups of 32 elements, element i takes words 2 (i % 32 / 16) (high half) and the next one of
// block i / 32 * 16 + i % 16.
GREBE_EVERYWHERE static inline uint32_t random_word(uint64_t seed, uint64_t offset, uint64_t i) {
  return philox(seed, i / 64 * 16 + i % 16, offset).v[i % 64 / 16];
}

}  // namespace grebe
