// Elementwise loops.
#include "kernels.h"

namespace grebe::GREBE_ISA {
namespace {

template <class T, class F>
void binary_loop(int64_t n, const T* a, int64_t sa, const T* b, int64_t sb, T* y, int64_t sy,
                 const F& f) {
  int64_t i = 0;
  if (sy == 1 && (sa == 1 || sa == 0) && (sb == 1 || sb == 0)) {
    const vec<T> a0 = splat(*a), b0 = splat(*b);
    for (; i + lanes<T> <= n; i += lanes<T>)
      store(y + i, f(sa ? load(a + i) : a0, sb ? load(b + i) : b0));
  }
  for (; i < n; ++i) y[i * sy] = f(splat(a[i * sa]), splat(b[i * sb]))[0];
}

}  // namespace

void add(DType dtype, int64_t n, const void* a, int64_t sa, const void* b, int64_t sb, void* y,
         int64_t sy, const double*) {
  auto f = [](auto u, auto v) { return u + v; };
  if (dtype == DType::kFloat32)
    binary_loop((int64_t)n, (const float*)a, sa, (const float*)b, sb, (float*)y, sy, f);
  else
    binary_loop((int64_t)n, (const double*)a, sa, (const double*)b, sb, (double*)y, sy, f);
}

}  // namespace grebe::GREBE_ISA
