// Small kernels with one fault each: the test asks that the emulator notices every one of them.

#include <access.h>
#include <cuda_bf16.h>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace fym::gpu {
extern __shared__ __align__(16) float shared_memory[];
}
using fym::gpu::read;
using fym::gpu::shared_memory;
using fym::gpu::write;

namespace {

constexpr unsigned threads = 64, all_lanes = 0xffffffffu;

struct Arguments {
  const float* in;
  float* out;
};

// out = the sum of in, each thread holding one number: right if no fault is put in.
template <bool BarrierBeforeReading, bool BarrierBeforeWritingAgain>
__global__ void sum_twice(Arguments a) {
  float total = 0.0f;
  for (int round = 0; round < 2; ++round) {
    shared_memory[threadIdx.x] = read(a.in + threadIdx.x) * (round + 1);
    if constexpr (BarrierBeforeReading) __syncthreads();
    for (unsigned i = 0; i < threads; ++i) total += shared_memory[i];
    if constexpr (BarrierBeforeWritingAgain) __syncthreads();
  }
  write(a.out + threadIdx.x, total / 3.0f);
}

__global__ void shuffled_sum(Arguments a) {
  float value = read(a.in + threadIdx.x);
  for (int lanes = 16; lanes > 0; lanes /= 2) value += __shfl_xor_sync(all_lanes, value, lanes);
  shared_memory[threadIdx.x / 32] = value;
  __syncthreads();
  write(a.out + threadIdx.x, shared_memory[0] + shared_memory[1]);
}

__global__ void shuffled_down(Arguments a) {
  float value = read(a.in + threadIdx.x);
  for (unsigned lanes = 16; lanes > 0; lanes /= 2) value += __shfl_down_sync(all_lanes, value, lanes);
  if (threadIdx.x % 32 == 0) shared_memory[threadIdx.x / 32] = value;
  __syncthreads();
  write(a.out + threadIdx.x, shared_memory[0] + shared_memory[1]);
}

__global__ void barrier_in_branch(Arguments) {
  if (threadIdx.x < 32) __syncthreads();
}

__global__ void shuffle_in_branch(Arguments a) {
  if (threadIdx.x % 2) write(a.out, __shfl_xor_sync(all_lanes, 1.0f, 1));
}

__global__ void read_beyond(Arguments a) { write(a.out + threadIdx.x, read(a.in + threadIdx.x + 1)); }

__global__ void write_beyond(Arguments a) { write(a.out + threadIdx.x + 1, 0.0f); }

__global__ void write_to_input(Arguments a) { write(const_cast<float*>(a.in) + threadIdx.x, 0.0f); }

__global__ void misaligned(Arguments a) { read(reinterpret_cast<const uint4*>(a.in + 1)); }

__global__ void beyond_shared(Arguments) { shared_memory[threadIdx.x + 1] = 0.0f; }

using Kernel = void (*)(Arguments);
constexpr Kernel kernels[] = {
    sum_twice<true, true>, shuffled_sum,      shuffled_down, sum_twice<false, true>, sum_twice<true, false>,
    barrier_in_branch,     shuffle_in_branch, read_beyond,   write_beyond,           write_to_input,
    misaligned,            beyond_shared,
};

}  // namespace

// Runs one of the kernels on 64 numbers; returns what the emulator complains about, or an empty string.
EXPORT const char* run_fault(int kernel, const float* in, float* out) {
  emulator::restart();
  emulator::declare(in, threads * sizeof(float), false);
  emulator::declare(out, threads * sizeof(float), true);
  const Arguments arguments{in, out};
  emulator::run(dim3(1), threads, threads * sizeof(float), [&] { kernels[kernel](arguments); });
  return emulator::error().c_str();
}

// Storage conversions, there and back.
EXPORT void round_trip(const float* from, float* bfloat16, float* half, int count) {
  for (int i = 0; i < count; ++i) {
    bfloat16[i] = __bfloat162float(__floats2bfloat162_rn(from[i], 0.0f).x);
    half[i] = __half22float2(__floats2half2_rn(from[i], 0.0f)).x;
  }
}
