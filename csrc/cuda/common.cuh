// Torch-free device code shared by the CUDA kernels: storage types, 16-byte loads and stores, sums in a fixed order.
//
// A second launch bound of 1 keeps the assembler from spilling a few registers to fit one more block.
//
// Every access to global memory goes through access.h, and all shared memory is dynamic: so the emulator in
// tests/emulator sees both. Each op's header ends with host functions that choose template and grid; `launch` is
// called as launch(kernel, grid, threads, shared_bytes, arguments).
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstddef>
#include <cstdint>

#include <access.h>  // not by quotes: the emulator puts its own first on the path

namespace fym::gpu {

constexpr int warp_size = 32;
constexpr unsigned all_lanes = 0xffffffffu;
constexpr int vector_bytes = 16;

extern __shared__ __align__(16) float shared_memory[];

// The elements of T in 32 bits of a register.
template <class T>
struct Word;

template <>
struct Word<float> {
  static constexpr int elements = 1;
  static __device__ void unpack(unsigned word, float* out) { out[0] = __uint_as_float(word); }
  static __device__ unsigned pack(const float* in) { return __float_as_uint(in[0]); }
};

template <>
struct Word<__nv_bfloat16> {
  static constexpr int elements = 2;
  static __device__ void unpack(unsigned word, float* out) {
    out[0] = __uint_as_float(word << 16), out[1] = __uint_as_float(word & 0xffff0000u);
  }
  static __device__ unsigned pack(const float* in) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(in[0], in[1]);
    return reinterpret_cast<const unsigned&>(pair);
  }
};

template <>
struct Word<__half> {
  static constexpr int elements = 2;
  static __device__ void unpack(unsigned word, float* out) {
    const float2 pair = __half22float2(reinterpret_cast<const __half2&>(word));
    out[0] = pair.x, out[1] = pair.y;
  }
  static __device__ unsigned pack(const float* in) {
    const __half2 pair = __floats2half2_rn(in[0], in[1]);
    return reinterpret_cast<const unsigned&>(pair);
  }
};

// Named conversions: torch's build flags take the operators away.
__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ inline float to_float(__half value) { return __half2float(value); }

template <class T>
__device__ T from_float(float value) {
  if constexpr (sizeof(T) == sizeof(float)) {
    return value;
  } else {
    const float pair[2] = {value, value};
    const unsigned word = Word<T>::pack(pair);
    return reinterpret_cast<const T&>(word);
  }
}

// Elements a 16-byte vector holds.
template <class T>
constexpr int vector_elements = vector_bytes / static_cast<int>(sizeof(T));

// N elements as they are stored: bf16 and half take half the registers of their float values.
template <class T, int N>
struct Pack {
  static constexpr int words_of_pack = N / Word<T>::elements;
  static_assert(words_of_pack % 4 == 0, "whole 16-byte vectors");
  unsigned words[words_of_pack];

  __device__ void unpack(float (&out)[N]) const {
#pragma unroll
    for (int i = 0; i < words_of_pack; ++i) Word<T>::unpack(words[i], out + i * Word<T>::elements);
  }
};

// N elements from `from`. Wide: all there and 16-byte aligned; otherwise the first `left`, then zeros.
template <bool Wide, int N, class T>
__device__ Pack<T, N> load(const T* from, int64_t left) {
  Pack<T, N> pack;
  if constexpr (Wide) {
#pragma unroll
    for (int i = 0; i < Pack<T, N>::words_of_pack / 4; ++i) {
      const uint4 vector = read(reinterpret_cast<const uint4*>(from) + i);
      pack.words[4 * i] = vector.x, pack.words[4 * i + 1] = vector.y;
      pack.words[4 * i + 2] = vector.z, pack.words[4 * i + 3] = vector.w;
    }
  } else {
    float values[N];
#pragma unroll
    for (int i = 0; i < N; ++i) values[i] = i < left ? to_float(read(from + i)) : 0.0f;
#pragma unroll
    for (int i = 0; i < Pack<T, N>::words_of_pack; ++i)
      pack.words[i] = Word<T>::pack(values + i * Word<T>::elements);
  }
  return pack;
}

// Rounds to T, to nearest even. Wide and `left` as in load.
template <bool Wide, class T, int N>
__device__ void store(T* to, const float (&values)[N], int64_t left) {
  unsigned words[Pack<T, N>::words_of_pack];
#pragma unroll
  for (int i = 0; i < Pack<T, N>::words_of_pack; ++i) words[i] = Word<T>::pack(values + i * Word<T>::elements);
  if constexpr (Wide) {
#pragma unroll
    for (int i = 0; i < Pack<T, N>::words_of_pack / 4; ++i)
      write(reinterpret_cast<uint4*>(to) + i,
             make_uint4(words[4 * i], words[4 * i + 1], words[4 * i + 2], words[4 * i + 3]));
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i)
      if (i < left) write(to + i, from_float<T>(values[i]));
  }
}

// The rows of a (B,S,d) tensor with dense d, or of a (B,d) one that is the same for every token (stride_s 0).
template <class T>
struct Rows {
  T* data = nullptr;
  int64_t stride_b = 0, stride_s = 0;

  __device__ T* at(int64_t b, int64_t s) const { return data + b * stride_b + s * stride_s; }

  bool aligned() const {
    const auto bits = reinterpret_cast<uintptr_t>(data) | static_cast<uintptr_t>(stride_b * sizeof(T)) |
                      static_cast<uintptr_t>(stride_s * sizeof(T));
    return bits % vector_bytes == 0;
  }
};

// The sum over the warp's lanes, the same bits in each.
__device__ inline float warp_sum(float value) {
#pragma unroll
  for (int offset = warp_size / 2; offset > 0; offset /= 2)
    value += __shfl_xor_sync(all_lanes, value, offset);
  return value;
}

// Sums over the block, the same bits in each thread. scratch: one float a warp, not read by anyone since the last
// barrier but one, so that consecutive sums must take turns between two.
__device__ inline float block_sum(float value, float* scratch) {
  const int warps = blockDim.x / warp_size;
  value = warp_sum(value);
  if (threadIdx.x % warp_size == 0) scratch[threadIdx.x / warp_size] = value;
  __syncthreads();
  float sum = 0.0f;
  for (int warp = 0; warp < warps; ++warp) sum += scratch[warp];
  return sum;
}

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// How the tokens of a sample are shared out among the blocks whose partial sums are then added in order. A function
// of the size alone, so that results do not depend on the GPU.
struct Parts {
  int64_t tokens_per_part, count;

  Parts(int64_t tokens, int64_t most, int64_t multiple)
      : tokens_per_part(round_up(ceil_div(tokens > 0 ? tokens : 1, most), multiple)),
        count(ceil_div(tokens, tokens_per_part)) {}
};

// out (batch, width) = the sum over `count` rows of parts, `stride` apart, in a fixed order.
template <class Out>
struct SumParts {
  const float* parts;
  Out* out;
  int64_t count, width, stride;
};

constexpr int sum_groups = 8;

template <class Out>
__global__ void __launch_bounds__(warp_size* sum_groups) sum_parts_kernel(const SumParts<Out> a) {
  const int lane = threadIdx.x % warp_size, group = threadIdx.x / warp_size;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * warp_size + lane, batch = blockIdx.y;
  float sum = 0.0f;
  if (column < a.width) {
    const float* from = a.parts + batch * a.count * a.stride + column;
#pragma unroll 8
    for (int64_t part = group; part < a.count; part += sum_groups) sum += read(from + part * a.stride);
  }
  shared_memory[threadIdx.x] = sum;
  __syncthreads();
  if (group == 0 && column < a.width) {
    for (int other = 1; other < sum_groups; ++other) sum += shared_memory[other * warp_size + lane];
    write(a.out + batch * a.width + column, from_float<Out>(sum));
  }
}

template <class Out, class Launch>
void sum_parts(const SumParts<Out>& a, int64_t batch, Launch& launch) {
  if (batch * a.width == 0) return;
  const dim3 grid(static_cast<unsigned>(ceil_div(a.width, warp_size)), static_cast<unsigned>(batch));
  launch(sum_parts_kernel<Out>, grid, warp_size * sum_groups, warp_size * sum_groups * sizeof(float), a);
}

}  // namespace fym::gpu
