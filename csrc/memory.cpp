#include "memory.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <vector>

namespace grebe {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kHugeFrom = size_t{4} << 20;  // transparent huge pages pay from here on
constexpr size_t kPage = size_t{2} << 20;
constexpr int kSteps = 8;  // classes per power of two: at most 1/8 is wasted

size_t g_scratch_limit = SIZE_MAX;

struct Pool {
  std::mutex mutex;
  std::vector<void*> free_lists[64 * kSteps];
  MemoryStats stats{0, 0, 0};
  size_t cached_limit = size_t{8} << 30;
};

// Leaked on purpose: arrays may outlive static destruction at interpreter exit.
Pool& pool() {
  static Pool* p = new Pool;
  return *p;
}

struct SizeClass {
  int index;
  size_t bytes;
};

SizeClass size_class(size_t bytes) {
  if (bytes < kAlignment * kSteps) bytes = kAlignment * kSteps;
  const int exponent = 63 - __builtin_clzll(bytes);
  const size_t step = (size_t{1} << exponent) / kSteps;
  const size_t units = (bytes + step - 1) / step;  // kSteps .. 2 * kSteps
  return {exponent * kSteps + static_cast<int>(units - kSteps), units * step};
}

void* system_allocate(size_t bytes) {
  const bool huge = bytes >= kHugeFrom;
  void* p = nullptr;
  if (posix_memalign(&p, huge ? kPage : kAlignment, bytes) != 0) return nullptr;
  if (huge) madvise(p, bytes, MADV_HUGEPAGE);
  return p;
}

}  // namespace

void* pool_allocate(size_t bytes) {
  if (bytes > (size_t{1} << 62)) return nullptr;
  const SizeClass c = size_class(bytes);
  Pool& p = pool();
  void* result = nullptr;
  {
    std::lock_guard<std::mutex> lock(p.mutex);
    std::vector<void*>& list = p.free_lists[c.index];
    if (!list.empty()) {
      result = list.back();
      list.pop_back();
      p.stats.cached -= static_cast<int64_t>(c.bytes);
    }
  }
  if (!result) result = system_allocate(c.bytes);
  if (!result) {
    pool_empty_cache();
    result = system_allocate(c.bytes);
    if (!result) return nullptr;
  }
  std::lock_guard<std::mutex> lock(p.mutex);
  p.stats.allocated += static_cast<int64_t>(c.bytes);
  if (p.stats.allocated > p.stats.peak) p.stats.peak = p.stats.allocated;
  return result;
}

void pool_free(void* ptr, size_t bytes) {
  const SizeClass c = size_class(bytes);
  Pool& p = pool();
  {
    std::lock_guard<std::mutex> lock(p.mutex);
    p.stats.allocated -= static_cast<int64_t>(c.bytes);
    if (static_cast<size_t>(p.stats.cached) + c.bytes <= p.cached_limit) {
      p.free_lists[c.index].push_back(ptr);
      p.stats.cached += static_cast<int64_t>(c.bytes);
      return;
    }
  }
  std::free(ptr);
}

void pool_empty_cache() {
  Pool& p = pool();
  std::lock_guard<std::mutex> lock(p.mutex);
  for (std::vector<void*>& list : p.free_lists) {
    for (void* ptr : list) std::free(ptr);
    list.clear();
  }
  p.stats.cached = 0;
}

MemoryStats pool_stats() {
  Pool& p = pool();
  std::lock_guard<std::mutex> lock(p.mutex);
  return p.stats;
}

void pool_reset_peak() {
  Pool& p = pool();
  std::lock_guard<std::mutex> lock(p.mutex);
  p.stats.peak = p.stats.allocated;
}

void limit_scratch(size_t bytes) { g_scratch_limit = bytes; }

void* scratch(size_t bytes) {
  if (bytes > g_scratch_limit) return nullptr;
  struct Scratch {
    void* ptr = nullptr;
    size_t size = 0;
    ~Scratch() { std::free(ptr); }
  };
  static thread_local Scratch s;
  if (bytes > s.size) {
    std::free(s.ptr);
    s.ptr = system_allocate(bytes);
    s.size = s.ptr ? bytes : 0;
  }
  return s.ptr;
}

}  // namespace grebe
