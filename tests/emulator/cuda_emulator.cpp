// The scheduler behind cuda_emulator.h.

#include "cuda_emulator.h"

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace fym::gpu {
// The kernels' dynamic shared memory; the guard behind what a launch asked for must stay as it is.
alignas(16) float shared_memory[(emulator::most_shared_bytes + 1024) / sizeof(float)];
}  // namespace fym::gpu

namespace emulator {
namespace {

constexpr size_t stack_bytes = 256 << 10;
constexpr size_t guard_bytes = 1024;
constexpr unsigned char nan_byte = 0xff, guard_byte = 0xa5;

enum class State { ready, at_barrier, at_shuffle, ended };

struct Fiber {
  std::unique_ptr<char[]> stack;
  ucontext_t context;
  jmp_buf place;
  bool started = false;
  State state = State::ended;
  unsigned shuffles = 0, mask = 0;  // how many it has come to; who takes part in this one
};

struct Range {
  uintptr_t begin, end;
  bool writable;
};

// Everything a run touches. One process runs one block at a time.
std::mt19937_64 generator;
std::vector<Range> ranges;
std::string message;
std::vector<Fiber> fibers;
std::vector<unsigned> ready;
std::vector<uint32_t> slots;  // two per thread: a lane may be one shuffle ahead of the others
std::vector<unsigned> arrived;  // per warp, at the current shuffle
unsigned current, waiting, ended, threads_of_block;
jmp_buf scheduler;
const std::function<void()>* body;

void leave() {
  if (!_setjmp(fibers[current].place)) _longjmp(scheduler, 1);
}

// A fiber lives for many blocks: it runs the kernel once, hands over, and is then taken up again.
void live() {
  for (;;) {
    (*body)();
    fibers[current].state = State::ended;
    leave();
  }
}

void enter(unsigned thread) {
  current = thread;
  threadIdx = {thread, 0, 0};
  if (_setjmp(scheduler)) return;
  Fiber& fiber = fibers[thread];
  if (fiber.started) _longjmp(fiber.place, 1);
  fiber.started = true;
  if (!fiber.stack) fiber.stack.reset(new char[stack_bytes]);
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = stack_bytes;
  makecontext(&fiber.context, live, 0);
  setcontext(&fiber.context);
}

void make_ready(unsigned thread) {
  fibers[thread].state = State::ready;
  ready.push_back(thread);
}

unsigned take_ready() {
  std::swap(ready[generator() % ready.size()], ready.back());
  const unsigned thread = ready.back();
  ready.pop_back();
  return thread;
}

void run_block() {
  std::fill(arrived.begin(), arrived.end(), 0);
  ready.clear();
  waiting = ended = 0;
  for (unsigned thread = 0; thread < threads_of_block; ++thread) make_ready(thread), fibers[thread].shuffles = 0;
  while (!ready.empty()) {
    enter(take_ready());
    const State state = fibers[current].state;
    if (state == State::ended) ++ended;
    if (state == State::at_barrier) ++waiting;
    if (waiting && waiting == threads_of_block) {
      waiting = 0;
      for (unsigned thread = 0; thread < threads_of_block; ++thread) make_ready(thread);
    }
  }
  if (ended == threads_of_block) return;
  complain(waiting ? "a barrier that not every thread of the block comes to"
                   : "a shuffle that not every lane of its mask comes to");
  for (unsigned thread = 0; thread < threads_of_block; ++thread) fibers[thread].started = false;
}

}  // namespace

void restart() {
  ranges.clear();
  message.clear();
}

void declare(const void* begin, size_t bytes, bool writable) {
  const auto address = reinterpret_cast<uintptr_t>(begin);
  ranges.push_back({address, address + bytes, writable});
}

const std::string& error() { return message; }

void complain(const std::string& what) {
  if (message.empty())
    message = what + " (block " + std::to_string(blockIdx.x) + ", " + std::to_string(blockIdx.y) + ", " +
              std::to_string(blockIdx.z) + ", thread " + std::to_string(threadIdx.x) + ")";
}

void check(const void* address, size_t bytes, bool write) {
  const auto begin = reinterpret_cast<uintptr_t>(address);
  if (begin % bytes) complain("misaligned access of " + std::to_string(bytes) + " bytes");
  for (const Range& range : ranges)
    if (range.begin <= begin && begin + bytes <= range.end && (range.writable || !write)) return;
  complain(std::string(write ? "write to" : "read of") + " memory that is not " + (write ? "writable" : "there"));
}

void barrier() {
  fibers[current].state = State::at_barrier;
  leave();
}

uint32_t shuffle(unsigned mask, uint32_t value, unsigned source_lane) {
  const unsigned me = current, warp = me / warp_size, lane = me % warp_size;
  Fiber& fiber = fibers[me];
  uint32_t* now = slots.data() + (fiber.shuffles++ % 2) * threads_of_block + warp * warp_size;
  now[lane] = value;
  fiber.mask = mask;
  if (!(mask >> lane & 1) || !(mask >> source_lane & 1)) complain("a shuffle with a lane outside its mask");
  if (++arrived[warp] == static_cast<unsigned>(__builtin_popcount(mask))) {
    arrived[warp] = 0;
    for (unsigned other = warp * warp_size; other < (warp + 1) * warp_size && other < threads_of_block; ++other) {
      if (other == me || fibers[other].state != State::at_shuffle) continue;
      if (fibers[other].mask != mask) complain("a shuffle whose lanes disagree about its mask");
      make_ready(other);
    }
    make_ready(me);
  } else {
    fiber.state = State::at_shuffle;
  }
  leave();
  return now[source_lane];
}

void run(dim3 grid, unsigned threads, size_t shared_bytes, const std::function<void()>& kernel) {
  if (!message.empty()) return;
  if (threads == 0 || threads > 1024 || threads % warp_size)
    return complain("a block of " + std::to_string(threads) + " threads");
  if (shared_bytes > most_shared_bytes) return complain("too much shared memory");
  if (grid.y > 65535 || grid.z > 65535 || !grid.x || !grid.y || !grid.z) return complain("a grid out of range");
  gridDim = grid, blockDim = dim3(threads), threads_of_block = threads, body = &kernel;
  if (fibers.size() < threads) fibers.resize(threads);
  slots.assign(2 * threads, 0);
  arrived.assign(threads / warp_size, 0);
  std::vector<uint64_t> order(static_cast<uint64_t>(grid.x) * grid.y * grid.z);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), generator);
  auto* shared = reinterpret_cast<unsigned char*>(fym::gpu::shared_memory);
  for (const uint64_t block : order) {
    blockIdx = {static_cast<unsigned>(block % grid.x), static_cast<unsigned>(block / grid.x % grid.y),
                static_cast<unsigned>(block / grid.x / grid.y)};
    std::memset(shared, nan_byte, shared_bytes);
    std::memset(shared + shared_bytes, guard_byte, guard_bytes);
    run_block();
    for (size_t i = 0; i < guard_bytes; ++i)
      if (shared[shared_bytes + i] != guard_byte) return complain("a write beyond the block's shared memory");
    if (!message.empty()) return;
  }
}

}  // namespace emulator

// What the tests call: the seed of the order in which threads and blocks run.
extern "C" __attribute__((visibility("default"))) void emulator_seed(uint64_t seed) { emulator::generator.seed(seed); }
