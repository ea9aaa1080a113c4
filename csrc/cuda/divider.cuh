// Division of indices by a number that the launch knows: a multiplication and a shift.
#pragma once
#include "kernels.cuh"

namespace grebe::cuda {

// n / divisor for n >= 0. Below 2^31 with the multiplier of Granlund and Montgomery (1994).
struct Divider {
  int64_t divisor;
  uint32_t multiplier = 0;
  int shift = 31;  // with multiplier 0: the quotient of anything below 2^31 is 0

  Divider() : Divider(1) {}
  explicit Divider(int64_t d) : divisor(d > 0 ? d : 1) {
    if (divisor > INT32_MAX) return;
    shift = 0;
    while (int64_t{1} << shift < divisor) ++shift;
    multiplier = static_cast<uint32_t>(
        (uint64_t{1} << 32) * ((uint64_t{1} << shift) - static_cast<uint64_t>(divisor)) /
            static_cast<uint64_t>(divisor) +
        1);
  }
  DEVICE int64_t operator()(int64_t n) const {
    if (n > INT32_MAX) return n / divisor;
    const uint32_t low = static_cast<uint32_t>(n);
    const uint32_t high = static_cast<uint32_t>(static_cast<uint64_t>(low) * multiplier >> 32);
    return (high + low) >> shift;
  }
  DEVICE int64_t remainder(int64_t n) const { return n - (*this)(n)*divisor; }
};

}  // namespace grebe::cuda
