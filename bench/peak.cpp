// peak [THREADS]: what this machine can do at most, as "GFLOP/s GB/s": float32 multiply-adds from
// registers, and c = a + b over arrays far larger than the caches (12 bytes per element).
#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <vector>

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX2__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
typedef float Vector __attribute__((vector_size(kBytes)));
constexpr int kChains = 12;  // enough to hide the latency of a multiply-add
constexpr long kSteps = 100'000;
constexpr size_t kElements = size_t{1} << 24;
constexpr double kSeconds = 0.7;  // per probe: it takes a while until each thread has its core

static double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

static float multiply_add() {
  Vector sum[kChains] = {}, a = Vector{} + 0.5f, b = Vector{} + 0.25f;
  for (long i = 0; i < kSteps; ++i) {
#pragma GCC unroll 12
    for (int c = 0; c < kChains; ++c) {
      sum[c] = sum[c] * a + b;
      __asm__ volatile("" : "+v"(sum[c]));
    }
  }
  float total = 0;
#pragma GCC unroll 12  // or `sum` would live in memory
  for (int c = 0; c < kChains; ++c) total += sum[c][0];
  return total;
}

// The highest rate, in `amount` per second, at which `work` ran within kSeconds.
template <class Work>
static double best_rate(double amount, Work work) {
  double best = 0;
  for (const double end = now() + kSeconds; now() < end;) {
    const double start = now();
    work();
    best = std::max(best, amount / (now() - start));
  }
  return best;
}

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : omp_get_max_threads();
  omp_set_num_threads(threads);
  float keep = 0;
  const double lanes = kBytes / sizeof(float);
  const double flops = best_rate(2.0 * lanes * kChains * kSteps * threads, [&] {
#pragma omp parallel reduction(+ : keep)
    keep += multiply_add();
  });
  std::vector<float> a(kElements, 1.0f), b(kElements, 2.0f), c(kElements, 3.0f);
  const double bandwidth = best_rate(12.0 * kElements, [&] {
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < kElements; ++i) c[i] = a[i] + b[i];
  });
  std::printf("%.1f %.2f\n", flops / 1e9, bandwidth / 1e9 + 0.0 * (keep + c[1]));
}
