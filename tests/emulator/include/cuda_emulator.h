// As much of CUDA as the kernels of csrc/cuda use, on the host: enough to run them as they are, one block at a time.
//
// A block's threads are fibers. They change only at barriers and shuffles, where one is picked at random, so a missing
// barrier shows as a wrong number in one order or another. Shared memory is filled with nan before each block and has
// a guard behind it. Accesses through access.h must lie in memory that was declared, be aligned, and write only what
// is writable. What goes wrong is noted, not thrown: see emulator::error().
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>

#define __device__
#define __host__
#define __global__
#define __shared__  // only dynamic shared memory: an array with a name of its own, below
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace emulator {

constexpr unsigned warp_size = 32;
constexpr size_t most_shared_bytes = 48 << 10;  // what a launch may ask for without saying so

void restart();  // forgets declared memory and errors
void declare(const void* begin, size_t bytes, bool writable);
const std::string& error();
void complain(const std::string& what);
void run(dim3 grid, unsigned threads, size_t shared_bytes, const std::function<void()>& kernel);
void barrier();
void check(const void* address, size_t bytes, bool write);
uint32_t shuffle(unsigned mask, uint32_t value, unsigned source_lane);

}  // namespace emulator

inline void __syncthreads() { emulator::barrier(); }

inline unsigned __float_as_uint(float value) {
  unsigned bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float __shfl_xor_sync(unsigned mask, float value, int lanes) {
  const unsigned lane = threadIdx.x % emulator::warp_size;
  return __uint_as_float(emulator::shuffle(mask, __float_as_uint(value), lane ^ lanes));
}
// A lane that would read beyond the warp keeps its own value.
inline float __shfl_down_sync(unsigned mask, float value, unsigned delta) {
  const unsigned lane = threadIdx.x % emulator::warp_size;
  const unsigned source = lane + delta < emulator::warp_size ? lane + delta : lane;
  return __uint_as_float(emulator::shuffle(mask, __float_as_uint(value), source));
}

// bfloat16 and half, rounded to nearest even as the hardware does.
struct __nv_bfloat16 {
  uint16_t bits;
  __nv_bfloat16() = default;
  explicit __nv_bfloat16(float value) {
    const unsigned word = __float_as_uint(value);
    bits = value != value ? 0x7fff : static_cast<uint16_t>((word + 0x7fff + (word >> 16 & 1)) >> 16);
  }
  explicit operator float() const { return __uint_as_float(static_cast<unsigned>(bits) << 16); }
};
inline float __bfloat162float(__nv_bfloat16 value) { return static_cast<float>(value); }
struct __nv_bfloat162 {
  __nv_bfloat16 x, y;
};
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {__nv_bfloat16(x), __nv_bfloat16(y)}; }

struct __half {
  uint16_t bits;
  __half() = default;
  explicit __half(float value) {
    const uint16_t sign = static_cast<uint16_t>(std::signbit(value) << 15);
    const float size = std::fabs(value);
    if (size != size) {
      bits = 0x7fff;
    } else if (size >= 65520.0f) {  // rounds beyond the largest half
      bits = sign | 0x7c00;
    } else if (size < 0x1p-14f) {  // subnormal: steps of 2^-24
      bits = sign | static_cast<uint16_t>(std::nearbyint(size * 0x1p24f));
    } else {
      const unsigned word = __float_as_uint(size);
      bits = sign | static_cast<uint16_t>((word - (112u << 23) + 0xfff + (word >> 13 & 1)) >> 13);
    }
  }
  explicit operator float() const {
    const int exponent = bits >> 10 & 31, fraction = bits & 1023;
    const float size = exponent == 31 ? (fraction ? NAN : INFINITY)
                       : exponent     ? std::ldexp(static_cast<float>(1024 + fraction), exponent - 25)
                                      : std::ldexp(static_cast<float>(fraction), -24);
    return bits >> 15 ? -size : size;
  }
};
inline float __half2float(__half value) { return static_cast<float>(value); }
struct __half2 {
  __half x, y;
};
inline __half2 __floats2half2_rn(float x, float y) { return {__half(x), __half(y)}; }
inline float2 __half22float2(__half2 pair) { return {static_cast<float>(pair.x), static_cast<float>(pair.y)}; }
