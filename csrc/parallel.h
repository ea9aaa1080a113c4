// Threads: the only file that knows OpenMP.
//
// Work is cut into fixed chunks of `grain` items, whatever the number of threads, so that a kernel
// that reduces per chunk gives the same bits for 1 or N threads. Nested calls and calls in a forked
// child run serially (libgomp's threads do not survive a fork, and waiting for them hangs).
#pragma once
#include <omp.h>

#include <cstdint>

namespace grebe {

extern bool g_forked_child;  // set by pthread_atfork in module.cpp

static inline int num_threads() {
  return g_forked_child || omp_in_parallel() ? 1 : omp_get_max_threads();
}

// f(begin, end) over disjoint ranges that cover [0, n); every range starts at a multiple of `grain`.
// A thread gets one contiguous run of chunks. At most n / grain threads take part.
template <class F>
static inline void parallel_for(int64_t n, int64_t grain, const F& f) {
  if (n <= 0) return;
  const int64_t chunks = (n + grain - 1) / grain;
  const int64_t limit = chunks < 2 ? 1 : num_threads();
  const int threads = static_cast<int>(limit < chunks ? limit : chunks);
  if (threads == 1) {
    f(static_cast<int64_t>(0), n);
    return;
  }
#pragma omp parallel num_threads(threads)
  {
    const int64_t t = omp_get_thread_num(), team = omp_get_num_threads();
    const int64_t begin = chunks * t / team * grain, stop = chunks * (t + 1) / team * grain;
    if (begin < stop) f(begin, stop < n ? stop : n);
  }
}

// f(thread, threads) once on each of `threads` threads (at most num_threads()); `barrier()` inside.
template <class F>
static inline void parallel_region(int threads, const F& f) {
  const int limit = num_threads();
  if (threads > limit) threads = limit;
  if (threads <= 1) {
    f(0, 1);
    return;
  }
#pragma omp parallel num_threads(threads)
  f(omp_get_thread_num(), omp_get_num_threads());
}

// Waits for the whole team of the enclosing parallel_region; a no-op when it runs serially.
static inline void barrier() {
#pragma omp barrier
}

}  // namespace grebe
