// Runs CUDA kernels on the host: one fiber per CUDA thread, scheduled on one CPU core.
//
// A fiber runs until it has to wait (a barrier, a warp operation, an mbarrier); then the next ready
// one goes on. Warp operations are rendezvous: the last lane to arrive computes for all. Shared
// memory starts as NaN, addresses into it are 32-bit offsets as on the device, so that descriptors
// and swizzles work bit for bit. Asynchronous copies and products land either at once ("eager") or
// as late as their waits allow ("lazy"), and fibers run in order or in a random order that a seed
// fixes: what a missing barrier or a wait off by one spoils differs between these modes, so the
// tests run them all. What no thread can go on from is reported as a deadlock, with what is waited
// for. Not seen: memory order, missing proxy fences, speed.
//
// Only the host build of the kernels includes this file; nvcc never sees it.
#pragma once
#include <sys/mman.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_UNPOISON_MEMORY_REGION(address, bytes)
#endif

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace grebe::emulator {

using Action = std::function<void()>;
// Asynchronous work: what is issued and not committed yet, then the committed groups, oldest first.
struct Groups {
  std::vector<Action> open;
  std::deque<std::vector<Action>> committed;

  void commit() {
    committed.push_back(std::move(open));
    open.clear();
  }
  void wait(size_t most_pending) {
    for (; committed.size() > most_pending; committed.pop_front())
      for (Action& action : committed.front()) action();
  }
};

struct Block;

struct Fiber {
  void* stack_pointer;
  Block* block;
  dim3 thread;
  int index;  // within the block
  bool done;
  const char* waits_for;
  Groups copies;  // cp.async
  Groups stores;  // cp.async.bulk from shared memory
};

// Who has arrived at a warp operation or a barrier.
struct Rendezvous {
  int arrived = 0;
  std::vector<Fiber*> waiting;
  void* arguments[32];
};

struct Mbarrier {
  uint32_t count, pending;
  int64_t bytes = 0;  // announced and not arrived yet
  uint32_t phase = 0;
  std::vector<Fiber*> waiting;
};

struct Block {
  dim3 index;
  unsigned rank;  // in the cluster
  int alive;
  char* shared;
  std::vector<Fiber> fibers;
  Rendezvous barriers[16];
  std::map<std::pair<int, uint32_t>, Rendezvous> warp_operations;  // by warp and lane mask
  std::map<uint32_t, Mbarrier> mbarriers;  // by shared address
  std::vector<Groups> products;  // wgmma, per warp
};

struct Options {
  bool lazy = true;
  uint64_t seed = 0;  // 0: threads run in order
  int capability = 90;  // what compute_capability() says
};

struct Counts {
  uint64_t launches = 0, switches = 0;
  uint64_t conflicts = 0;  // extra passes of ldmatrix over the banks
};

constexpr size_t kStackBytes = 64 << 10;
constexpr size_t kSharedStep = 1 << 18;  // between the shared memories of a cluster's blocks
constexpr size_t kSharedMost = 227 << 10;  // what a block may have (sm_90)
constexpr unsigned kClusterMost = 254;  // blocks that an address can tell apart
constexpr size_t kGuard = 64;  // bytes behind it that must stay as they are

inline Options options;
inline Counts counts;

// All of a launch in flight. Kernels see it through threadIdx and the like.
struct Machine {
  Fiber* current = nullptr;
  void* main_stack_pointer = nullptr;
  std::deque<Fiber*> ready;
  std::deque<Action> asynchronous;  // bulk copies, in the order of issue
  std::vector<Block>* cluster = nullptr;
  const Action* kernel = nullptr;
  const char* name = "";
  dim3 grid, block;
  size_t shared_bytes = 0;
  Rendezvous cluster_barrier;
  std::string error;
  uint64_t random = 0;
};
inline Machine machine;

// ---- fibers ----

extern "C" void grebe_switch_stack(void** save, void* load);
#if defined(__x86_64__)
asm(R"(.text
.weak grebe_switch_stack
.type grebe_switch_stack,@function
grebe_switch_stack:
  push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp
  ret
)");
constexpr int kSavedRegisters = 6;
#else
#error "the emulator switches stacks in x86-64 assembly"
#endif

// Ends the launch with an error; the other fibers are left where they are.
[[noreturn]] inline void fail(const std::string& problem) {
  const Fiber* f = machine.current;
  machine.error = std::string(machine.name) + ": " + problem;
  if (!f) throw std::runtime_error(machine.error);
  const dim3& b = f->block->index;
  machine.error += " (block " + std::to_string(b.x) + "," + std::to_string(b.y) + "," +
                   std::to_string(b.z) + " thread " + std::to_string(f->index) + ")";
  void* unused;
  grebe_switch_stack(&unused, machine.main_stack_pointer);
  std::abort();
}

inline uint64_t random_below(uint64_t n) {
  machine.random = machine.random * 6364136223846793005u + 1442695040888963407u;
  return (machine.random >> 33) % n;
}

inline Fiber* take_ready() {
  const size_t at =
      options.seed && machine.ready.size() > 1 ? random_below(machine.ready.size()) : 0;
  std::swap(machine.ready[at], machine.ready.front());
  Fiber* f = machine.ready.front();
  machine.ready.pop_front();
  return f;
}

// The current fiber gives way until somebody makes it ready.
inline void wait_for(const char* what) {
  Fiber* me = machine.current;
  me->waits_for = what;
  ++counts.switches;
  if (machine.ready.empty())
    return grebe_switch_stack(&me->stack_pointer, machine.main_stack_pointer);
  machine.current = take_ready();
  if (machine.current == me) return;
  grebe_switch_stack(&me->stack_pointer, machine.current->stack_pointer);
}

inline void wake(std::vector<Fiber*>& waiting) {
  for (Fiber* f : waiting) machine.ready.push_back(f);
  waiting.clear();
}

// The current fiber goes to the end of the queue: for loops that poll memory.
inline void yield() {
  machine.ready.push_back(machine.current);
  wait_for("another thread's write");
}
// Where others may overtake a thread that has told them to go on: with a seed, now and then.
inline void perhaps_yield() {
  if (options.seed && random_below(2)) yield();
}

// ---- rendezvous ----

// A warp operation over the lanes of `mask`: the last lane to arrive runs operation(arguments by
// lane).
template <class Operation>
inline void collective(const char* name, uint32_t mask, void* argument, Operation operation) {
  Fiber* me = machine.current;
  const int lane = me->index & 31;
  if (!(mask >> lane & 1)) fail(std::string(name) + ": the lane is not in its own mask");
  Rendezvous& r = me->block->warp_operations[{me->index >> 5, mask}];
  r.arguments[lane] = argument;
  if (++r.arrived < __builtin_popcount(mask)) {
    r.waiting.push_back(me);
    return wait_for(name);
  }
  r.arrived = 0;
  operation(r.arguments);
  wake(r.waiting);
}

inline void arrive(Rendezvous& r, int expected, const char* name) {
  if (++r.arrived < expected) {
    r.waiting.push_back(machine.current);
    return wait_for(name);
  }
  r.arrived = 0;
  wake(r.waiting);
}

inline int threads_alive() {
  int n = 0;
  for (Block& b : *machine.cluster) n += b.alive;
  return n;
}

// A thread that ends counts as arrived at the cluster's barrier.
inline void release_complete(Rendezvous& r, int expected) {
  if (r.arrived == 0 || r.arrived < expected) return;
  r.arrived = 0;
  wake(r.waiting);
}

inline void run_fiber() {
  (*machine.kernel)();
  Fiber* me = machine.current;
  if (me->block->barriers[0].arrived) fail("a thread ends while others wait in __syncthreads");
  me->done = true;
  for (Groups* groups : {&me->copies, &me->stores}) {
    groups->commit();
    groups->wait(0);
  }
  --me->block->alive;
  release_complete(machine.cluster_barrier, threads_alive());
  void* unused;
  grebe_switch_stack(&unused, machine.main_stack_pointer);
  std::abort();
}

// ---- shared memory ----

// Bulk copies and matrix products permute the 16-byte chunks of every 1024 bytes, as a function of
// the address: chunk c of row r of 128 bytes lies at c ^ r.
inline uint32_t swizzle(uint32_t address) { return address ^ (address >> 7 & 7) << 4; }

// Address of a pointer into shared memory: its offset, with the block's rank + 1 in the highest
// byte if it is another block's of the cluster.
inline uint32_t address_in(uint32_t rank, uint32_t address) {
  return (rank + 1) << 24 | (address & 0xffffff);
}
inline uint32_t shared_address(const void* pointer) {
  const char* p = static_cast<const char*>(pointer);
  for (const Block& b : *machine.cluster) {
    if (p < b.shared || p > b.shared + machine.shared_bytes) continue;
    const uint32_t offset = static_cast<uint32_t>(p - b.shared);
    return b.rank == machine.current->block->rank ? offset : address_in(b.rank, offset);
  }
  fail("a pointer outside shared memory where one into it is expected");
}
inline Block& block_of(uint32_t address) {
  const uint32_t rank = address >> 24;
  if (rank > machine.cluster->size()) fail("a block outside the cluster");
  Block& block = rank ? (*machine.cluster)[rank - 1] : *machine.current->block;
  if (block.alive == 0) fail("the shared memory of a block that has ended");
  return block;
}
// `address` as seen from all blocks of the cluster.
inline uint32_t everywhere(uint32_t address) {
  return address >> 24 ? address : address_in(machine.current->block->rank, address);
}
inline char* shared_pointer(uint32_t address, size_t bytes) {
  const uint32_t offset = address & 0xffffff;
  if (offset + bytes > machine.shared_bytes)
    fail("shared memory: " + std::to_string(bytes) + " bytes at " + std::to_string(offset) +
         " of " + std::to_string(machine.shared_bytes));
  return block_of(address).shared + offset;
}

// ---- mbarriers ----

inline Mbarrier& mbarrier(uint32_t address) {
  auto& all = block_of(address).mbarriers;
  const auto found = all.find(address & 0xffffff);
  if (found == all.end()) fail("an mbarrier that is not initialised");
  return found->second;
}
inline void complete(Mbarrier& m) {
  if (m.pending != 0 || m.bytes != 0) return;
  m.phase ^= 1;
  m.pending = m.count;
  wake(m.waiting);
}
inline void arrive(Mbarrier& m, int64_t bytes) {
  if (m.pending == 0) fail("an mbarrier that has all its arrivals gets one more");
  m.bytes += bytes;
  --m.pending;
  complete(m);
}

// Bulk copies into shared memory: now, or when no thread can go on.
inline void start_asynchronous(Action action) {
  if (options.lazy)
    machine.asynchronous.push_back(std::move(action));
  else
    action();
}

// ---- launch ----

inline std::string deadlock() {
  std::map<std::string, int> waiting;
  for (Block& b : *machine.cluster)
    for (Fiber& f : b.fibers)
      if (!f.done) ++waiting[f.waits_for];
  std::string report = "deadlock:";
  for (auto& [what, n] : waiting)
    report += " " + std::to_string(n) + " threads wait for " + what + ";";
  report.pop_back();
  return report;
}

inline void start(Fiber& f, char* stack) {
  ASAN_UNPOISON_MEMORY_REGION(stack, kStackBytes);  // frames that were never left
  void** top = reinterpret_cast<void**>(stack + kStackBytes);
  *--top = nullptr;  // keeps the stack aligned as after a call
  *--top = reinterpret_cast<void*>(&run_fiber);
  for (int i = 0; i < kSavedRegisters; ++i) *--top = nullptr;
  f.stack_pointer = top;
  f.done = false;
  f.copies = {};
  f.stores = {};
  machine.ready.push_back(&f);
}

inline void run_cluster(std::vector<Block>& blocks, char* stacks) {
  machine.ready.clear();
  machine.asynchronous.clear();
  machine.cluster_barrier = {};
  for (Block& b : blocks) {
    b.alive = static_cast<int>(b.fibers.size());
    for (Rendezvous& r : b.barriers) r = {};
    b.warp_operations.clear();
    b.mbarriers.clear();
    b.products.assign((b.fibers.size() + 31) / 32, {});
    std::memset(b.shared, 0xff, machine.shared_bytes + kGuard);  // NaN in every format
    for (Fiber& f : b.fibers) start(f, stacks + (b.rank * b.fibers.size() + f.index) * kStackBytes);
  }
  for (;;) {
    machine.current = nullptr;
    if (!machine.ready.empty()) {
      machine.current = take_ready();
      grebe_switch_stack(&machine.main_stack_pointer, machine.current->stack_pointer);
      if (!machine.error.empty()) throw std::runtime_error(std::exchange(machine.error, {}));
    } else if (!machine.asynchronous.empty()) {
      if (options.seed)
        std::swap(machine.asynchronous.front(),
                  machine.asynchronous[random_below(machine.asynchronous.size())]);
      const Action action = std::move(machine.asynchronous.front());
      machine.asynchronous.pop_front();
      action();
    } else if (threads_alive()) {
      fail(deadlock());
    } else {
      break;
    }
  }
  for (Block& b : blocks)
    for (size_t i = 0; i < kGuard; ++i)
      if (b.shared[machine.shared_bytes + i] != '\xff') fail("a write behind shared memory");
}

struct Mapping {
  char* data;
  size_t bytes;
  explicit Mapping(size_t bytes) : bytes(bytes) {
    void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
    data = static_cast<char*>(p);
  }
  Mapping(const Mapping&) = delete;
  ~Mapping() {
    ASAN_UNPOISON_MEMORY_REGION(data, bytes);  // others get this memory next
    munmap(data, bytes);
  }
};

// Runs kernel(arguments...) over the grid, `cluster` neighbouring blocks along x at a time. Throws
// std::runtime_error for what a device would refuse or hang on.
template <class... P, class... A>
void launch(const char* name, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes,
            unsigned cluster, A... arguments) {
  machine.name = name;
  machine.grid = grid;
  machine.block = block;
  machine.shared_bytes = shared_bytes;
  machine.random = options.seed;
  machine.current = nullptr;
  const unsigned threads = block.x * block.y * block.z;
  if (threads == 0 || threads > 1024) fail("a block of " + std::to_string(threads) + " threads");
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffff || grid.y > 65535 ||
      grid.z > 65535)
    fail("a grid of " + std::to_string(grid.x) + "," + std::to_string(grid.y) + "," +
         std::to_string(grid.z) + " blocks");
  if (shared_bytes > kSharedMost) fail(std::to_string(shared_bytes) + " bytes of shared memory");
  if (grid.x % cluster || cluster > kClusterMost)
    fail("a grid of " + std::to_string(grid.x) + " blocks in clusters of " +
         std::to_string(cluster));
  ++counts.launches;

  const std::tuple<P...> parameters(arguments...);
  const Action body = [&] { std::apply(kernel, parameters); };
  machine.kernel = &body;
  const Mapping stacks(size_t{cluster} * threads * kStackBytes);
  const Mapping shared(size_t{cluster} * kSharedStep + kGuard);
  std::vector<Block> blocks(cluster);
  machine.cluster = &blocks;
  for (unsigned r = 0; r < cluster; ++r) {
    Block& b = blocks[r];
    b.rank = r;
    b.shared = shared.data + r * kSharedStep;
    b.fibers.resize(threads);
    for (unsigned t = 0; t < threads; ++t) {
      b.fibers[t].block = &b;
      b.fibers[t].index = static_cast<int>(t);
      b.fibers[t].thread = dim3(t % block.x, t / block.x % block.y, t / (block.x * block.y));
    }
  }
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; x += cluster) {
        for (unsigned r = 0; r < cluster; ++r) blocks[r].index = dim3(x + r, y, z);
        run_cluster(blocks, stacks.data);
      }
}

}  // namespace grebe::emulator

// ---- CUDA C++, as the kernels use it ----

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __restrict__ __restrict
#define __align__(n) alignas(n)

#define threadIdx (grebe::emulator::machine.current->thread)
#define blockIdx (grebe::emulator::machine.current->block->index)
#define gridDim (grebe::emulator::machine.grid)
#define blockDim (grebe::emulator::machine.block)

struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};

inline void __syncthreads() {
  grebe::emulator::Block& b = *grebe::emulator::machine.current->block;
  const int threads = static_cast<int>(b.fibers.size());
  if (b.alive < threads) grebe::emulator::fail("__syncthreads where some threads have ended");
  grebe::emulator::arrive(b.barriers[0], threads, "__syncthreads");
}
inline void __syncwarp(uint32_t mask = ~0u) {
  grebe::emulator::collective("__syncwarp", mask, nullptr, [](void**) {});
}

namespace grebe::emulator {

// Every lane of `mask` gets the value of the lane it names.
template <class T>
inline T exchange(const char* name, uint32_t mask, T value, int source) {
  struct Lane {
    T value;
    int source;
    T result;
  } mine{value, source, value};
  collective(name, mask, &mine, [mask](void** lanes) {
    for (int l = 0; l < 32; ++l) {
      if (!(mask >> l & 1)) continue;
      Lane* lane = static_cast<Lane*>(lanes[l]);
      const int from = lane->source & 31;
      if (mask >> from & 1) lane->result = static_cast<Lane*>(lanes[from])->value;
    }
  });
  return mine.result;
}
inline int lane() { return machine.current->index & 31; }

}  // namespace grebe::emulator

template <class T>
inline T __shfl_sync(uint32_t mask, T value, int source) {
  return grebe::emulator::exchange("__shfl_sync", mask, value, source);
}
template <class T>
inline T __shfl_xor_sync(uint32_t mask, T value, int bits) {
  return grebe::emulator::exchange("__shfl_xor_sync", mask, value, grebe::emulator::lane() ^ bits);
}
template <class T>
inline T __shfl_down_sync(uint32_t mask, T value, int distance) {
  const int lane = grebe::emulator::lane(), source = lane + distance;
  return grebe::emulator::exchange("__shfl_down_sync", mask, value, source > 31 ? lane : source);
}
template <class T>
inline T __shfl_up_sync(uint32_t mask, T value, int distance) {
  const int lane = grebe::emulator::lane(), source = lane - distance;
  return grebe::emulator::exchange("__shfl_up_sync", mask, value, source < 0 ? lane : source);
}
inline uint32_t __ballot_sync(uint32_t mask, int predicate) {
  struct Lane {
    int predicate;
    uint32_t votes;
  } mine{predicate, 0};
  grebe::emulator::collective("__ballot_sync", mask, &mine, [mask](void** lanes) {
    uint32_t votes = 0;
    for (int l = 0; l < 32; ++l)
      if ((mask >> l & 1) && static_cast<Lane*>(lanes[l])->predicate) votes |= 1u << l;
    for (int l = 0; l < 32; ++l)
      if (mask >> l & 1) static_cast<Lane*>(lanes[l])->votes = votes;
  });
  return mine.votes;
}
inline int __any_sync(uint32_t mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(uint32_t mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }
// One core runs all threads: a plain addition is atomic.
template <class T>
inline T atomicAdd(T* address, T value) {
  const T old = *address;
  *address = old + value;
  return old;
}
inline void __threadfence() {}
// Products that no addition absorbs; the host's compiler makes no fused operations of plain ones.
inline float __fmul_rn(float a, float b) { return a * b; }
inline double __dmul_rn(double a, double b) { return a * b; }
