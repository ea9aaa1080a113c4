// The team of threads behind parallel.h.
//
// Between two parallel sections a worker spins, because waking it takes 30 to 50 microseconds, as
// long as many a kernel runs; then it sleeps. Where another process wants its core, spinning is
// bad: it uses up the worker's share, and the system makes it wait for milliseconds in the middle
// of the next section. On the core of the thread that it works for, it keeps that one from working.
// A worker notices both, by a jump of the clock while it spins and by the number of its core, and
// goes to sleep at once for a while; a thread that wakes up is given a core immediately.
//
// libgomp has one fixed number of spins for both cases. Measured, training steps of a small MLP,
// alone and beside a busy process, thousand samples per second: libgomp with 500 spins 164 and 82,
// with 10,000 spins 176 and 34.
#include "parallel.h"

#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <climits>

namespace grebe {

bool g_forked_child = false;
__thread bool g_in_team = false;

namespace {

using Nanoseconds = int64_t;
constexpr Nanoseconds kSpin = 200'000;  // more than what Python does between two kernels
constexpr Nanoseconds kPreempted = 100'000;  // a jump of the clock by that much: not on the core
constexpr Nanoseconds kFirstPause = 20'000'000, kLastPause = 1'000'000'000;  // without spinning
constexpr int kMaxTeam = 4095;

Nanoseconds now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * Nanoseconds{1'000'000'000} + t.tv_nsec;
}

// A section is published by one word: 20 bits that count sections, 12 bits for the team's size, so
// that a worker that does not take part reads nothing else.
struct Team {
  alignas(64) uint32_t section = 0;
  TeamCall call = nullptr;
  const void* context = nullptr;
  int workers = 0;  // started so far; worker i is thread i + 1 of a team
  bool in_use = false;  // by one calling thread at a time
  int core = 0;  // where that thread was when it published
  alignas(64) int finished = 0;
  alignas(64) int sleepers = 0;
};
Team g_team;

long futex(int operation, uint32_t value) {
  return syscall(SYS_futex, &g_team.section, operation, value, nullptr, nullptr, 0);
}

uint32_t current_section() { return __atomic_load_n(&g_team.section, __ATOMIC_SEQ_CST); }

// How long a worker may spin.
struct SpinBudget {
  Nanoseconds pause = kFirstPause, paused_until = 0;

  // True: there is a section after `seen`.
  bool spin(uint32_t seen) {
    const Nanoseconds start = now();
    if (start < paused_until) return false;
    for (Nanoseconds last = start, t = start; t - start < kSpin; last = t) {
      for (int i = 0; i < 32; ++i) {
        if (current_section() != seen) return true;
        pause_core();
      }
      t = now();
      if (t - last > kPreempted || sched_getcpu() == g_team.core) return preempted(t);
    }
    return false;
  }
  bool preempted(Nanoseconds t) {
    const bool again = t - paused_until < 2 * pause;
    pause = !again ? kFirstPause : pause < kLastPause / 2 ? 2 * pause : kLastPause;
    paused_until = t + pause;
    return false;
  }
};

void sleep_until_section_after(uint32_t seen) {
  while (current_section() == seen) {
    __atomic_add_fetch(&g_team.sleepers, 1, __ATOMIC_SEQ_CST);
    futex(FUTEX_WAIT_PRIVATE, seen);
    __atomic_sub_fetch(&g_team.sleepers, 1, __ATOMIC_SEQ_CST);
  }
}

void* worker(void* number) {
  const int thread = static_cast<int>(reinterpret_cast<intptr_t>(number));
  SpinBudget budget;
  g_in_team = true;
  uint32_t seen = 0;
  for (bool took_part = true;;) {
    if (!took_part || !budget.spin(seen)) sleep_until_section_after(seen);
    seen = current_section();
    const int threads = static_cast<int>(seen & kMaxTeam);
    took_part = thread < threads;
    if (!took_part) continue;
    g_team.call(g_team.context, thread, threads);
    __atomic_add_fetch(&g_team.finished, 1, __ATOMIC_ACQ_REL);
  }
  return nullptr;
}

// The size of the team that there is, at most `threads`.
int start_workers(int threads) {
  while (g_team.workers + 1 < threads) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);  // signals are for the threads of the program
    pthread_t id;
    const intptr_t number = g_team.workers + 1;
    const int error = pthread_create(&id, nullptr, worker, reinterpret_cast<void*>(number));
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    if (error) break;
    pthread_detach(id);
    ++g_team.workers;
  }
  return g_team.workers + 1 < threads ? g_team.workers + 1 : threads;
}

void publish(int threads) {
  __atomic_store_n(&g_team.finished, 0, __ATOMIC_RELAXED);
  g_team.core = sched_getcpu();
  const uint32_t next = ((current_section() >> 12) + 1) << 12 | static_cast<uint32_t>(threads);
  __atomic_store_n(&g_team.section, next, __ATOMIC_SEQ_CST);
  if (__atomic_load_n(&g_team.sleepers, __ATOMIC_SEQ_CST)) futex(FUTEX_WAKE_PRIVATE, INT_MAX);
}

}  // namespace

void run_on_team(int threads, TeamCall call, const void* context) {
  threads = threads < kMaxTeam ? threads : kMaxTeam;
  const bool nested = g_in_team;
  const bool alone = nested || __atomic_exchange_n(&g_team.in_use, true, __ATOMIC_ACQUIRE);
  const int team = alone ? 1 : start_workers(threads);
  g_in_team = true;
  if (team > 1) {
    g_team.call = call;
    g_team.context = context;
    publish(team);
  }
  call(context, 0, team);
  if (team > 1)
    for (int spins = 0; __atomic_load_n(&g_team.finished, __ATOMIC_ACQUIRE) < team - 1;)
      relax(spins);
  g_in_team = nested;
  if (!alone) __atomic_store_n(&g_team.in_use, false, __ATOMIC_RELEASE);
}

}  // namespace grebe
