// Memory behind arrays and kernels.
//
// Fresh pages cost a fault each: in a training step, arrays that come from the operating system and
// go back to it cost 3-8 times arrays from a pool. So array buffers are cached in size classes.
#pragma once
#include <cstddef>
#include <cstdint>

namespace grebe {

struct MemoryStats {
  int64_t allocated;  // bytes in live buffers
  int64_t cached;  // bytes in free buffers kept for reuse
  int64_t peak;  // highest `allocated` so far
};

// 64-byte aligned; nullptr when memory is exhausted even after emptying the cache. Thread-safe.
void* pool_allocate(size_t bytes);
void pool_free(void* p, size_t bytes);
void pool_empty_cache();
MemoryStats pool_stats();
void pool_reset_peak();

// Scratch space of the calling thread for the duration of one kernel: grows, is reused, never
// shrinks. Call it before a parallel section and hand slices to the team. nullptr: out of memory.
void* scratch(size_t bytes);

}  // namespace grebe
