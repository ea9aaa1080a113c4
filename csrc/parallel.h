// Threads. OpenMP says how many (OMP_NUM_THREADS, threadpoolctl); the team is our own (parallel.cpp).
//
// Work is cut into fixed chunks of `grain` items, whatever the number of threads, so that a kernel
// that reduces per chunk gives the same bits for 1 or N threads. Nested calls, calls in a forked
// child (threads do not survive a fork) and calls while another thread has the team run serially.
//
// A thread that waits for others spins for some microseconds, then yields: where the system has put
// two threads of a team on one core, the one that waits would otherwise keep the other from working
// until its time slice ends.
#pragma once
#include <omp.h>
#include <sched.h>

#include <cstdint>

namespace grebe {

extern bool g_forked_child;  // set by pthread_atfork in module.cpp
extern __thread bool g_in_team;  // does this thread run a part of something?

static inline int num_threads() { return g_forked_child || g_in_team ? 1 : omp_get_max_threads(); }

static inline void pause_core() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

static inline void relax(int& spins) {
  if (++spins > 256)
    sched_yield();
  else
    pause_core();
}

// All threads of a team wait for each other.
struct Barrier {
  int arrived = 0;
  int phase = 0;

  // Always inline: as a function it would be a weak symbol of whichever ISA level comes first.
  [[gnu::always_inline]] void wait(int threads) {
    const int now = __atomic_load_n(&phase, __ATOMIC_ACQUIRE);
    if (__atomic_add_fetch(&arrived, 1, __ATOMIC_ACQ_REL) == threads) {
      __atomic_store_n(&arrived, 0, __ATOMIC_RELAXED);
      __atomic_store_n(&phase, now + 1, __ATOMIC_RELEASE);
      return;
    }
    for (int spins = 0; __atomic_load_n(&phase, __ATOMIC_ACQUIRE) == now;) relax(spins);
  }
};

// call(context, thread, size of the team) on each thread of a team of at most `threads`; returns when
// all have finished.
using TeamCall = void (*)(const void* context, int thread, int team);
void run_on_team(int threads, TeamCall call, const void* context);

template <class F>
static inline void run_team(int threads, const F& f) {
  run_on_team(
      threads,
      [](const void* context, int thread, int team) {
        (*static_cast<const F*>(context))(thread, team);
      },
      &f);
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
  run_team(threads, [&](int64_t t, int64_t team) {
    const int64_t begin = chunks * t / team * grain, stop = chunks * (t + 1) / team * grain;
    if (begin < stop) f(begin, stop < n ? stop : n);
  });
}

// f(thread, threads) once on each of `threads` threads, at most num_threads().
template <class F>
static inline void parallel_region(int threads, const F& f) {
  const int limit = num_threads();
  if (threads > limit) threads = limit;
  if (threads <= 1) {
    f(0, 1);
    return;
  }
  run_team(threads, f);
}

}  // namespace grebe
