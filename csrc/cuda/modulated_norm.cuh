// modulated_norm: LayerNorm(x) * (1 + scale) + shift. A block holds a whole row in registers, so x is read once and
// the variance is that of the centred values. With n = (x - mean) rstd and g = grad (1 + scale) the backward pass is
// grad_x = rstd (g - mean(g) - n mean(g n)), grad_scale = grad n, grad_shift = grad, in one read of grad and x.
#pragma once

#include "common.cuh"

namespace fym::gpu {

constexpr int norm_most_threads = 512;
constexpr int64_t norm_most_width = 8192;  // the widest row the threads of a block hold in registers

// Vectors of a thread in the widest row.
template <class T>
constexpr int norm_most_vectors = norm_most_width / norm_most_threads / vector_elements<T>;

template <class T, class M>
struct ModulatedNorm {
  T* out;  // outputs are contiguous
  float *mean, *rstd;
  Rows<const T> x;
  Rows<const M> scale, shift;
  int64_t batch, tokens, width;
  float eps;
};

template <class T, class M, int Vectors, bool Wide>
__global__ void __launch_bounds__(norm_most_threads, 1) modulated_norm_kernel(const ModulatedNorm<T, M> a) {
  constexpr int N = vector_elements<T>;
  const int64_t s = blockIdx.x, b = blockIdx.y, row = b * a.tokens + s;
  Pack<T, N> x[Vectors];
  float value[N], sum = 0.0f, squares = 0.0f;
#pragma unroll
  for (int v = 0; v < Vectors; ++v) {
    const int64_t column = static_cast<int64_t>(threadIdx.x + v * blockDim.x) * N;
    if (column >= a.width) continue;
    x[v] = load<Wide, N>(a.x.at(b, s) + column, a.width - column);
  }
#pragma unroll
  for (int v = 0; v < Vectors; ++v) {
    const int64_t column = static_cast<int64_t>(threadIdx.x + v * blockDim.x) * N;
    if (column >= a.width) continue;
    x[v].unpack(value);
#pragma unroll
    for (int n = 0; n < N; ++n) sum += value[n];
  }
  const float mean = block_sum(sum, shared_memory) / a.width;
#pragma unroll
  for (int v = 0; v < Vectors; ++v) {
    const int64_t column = static_cast<int64_t>(threadIdx.x + v * blockDim.x) * N;
    if (column >= a.width) continue;
    x[v].unpack(value);
#pragma unroll
    for (int n = 0; n < N; ++n)
      if (Wide || column + n < a.width) squares += (value[n] - mean) * (value[n] - mean);
  }
  const float variance = block_sum(squares, shared_memory + blockDim.x / warp_size) / a.width;
  const float rstd = 1.0f / sqrtf(variance + a.eps);
  if (threadIdx.x == 0) {
    write(a.mean + row, mean);
    write(a.rstd + row, rstd);
  }
#pragma unroll
  for (int v = 0; v < Vectors; ++v) {
    const int64_t column = static_cast<int64_t>(threadIdx.x + v * blockDim.x) * N, left = a.width - column;
    if (column >= a.width) continue;
    float scale[N], shift[N];
    load<Wide, N>(a.scale.at(b, s) + column, left).unpack(scale);
    load<Wide, N>(a.shift.at(b, s) + column, left).unpack(shift);
    x[v].unpack(value);
#pragma unroll
    for (int n = 0; n < N; ++n) value[n] = (value[n] - mean) * rstd * (1.0f + scale[n]) + shift[n];
    store<Wide>(a.out + row * a.width + column, value, left);
  }
}

// Null outputs are not wanted. grad_scale, grad_shift: (B,S,d). partials: (B, parts, 2, d), the sums over a part's
// tokens of grad n and grad, for a scale or shift that tokens share.
template <class T, class M>
struct ModulatedNormBackward {
  T* grad_x;
  M* grad_scale;
  float *grad_shift, *partials;
  Rows<const T> grad, x;
  Rows<const M> scale;
  const float *mean, *rstd;
  int64_t batch, tokens, width, tokens_per_part;
};

template <class T, class M, int Vectors, bool Wide, bool Sums>
__global__ void __launch_bounds__(norm_most_threads, 1)
    modulated_norm_backward_kernel(const ModulatedNormBackward<T, M> a) {
  constexpr int N = vector_elements<T>;
  const int warps = blockDim.x / warp_size;
  const int64_t b = blockIdx.y, start = static_cast<int64_t>(blockIdx.x) * a.tokens_per_part;
  const int64_t end = start + a.tokens_per_part < a.tokens ? start + a.tokens_per_part : a.tokens;
  float scale_sum[Sums ? Vectors : 1][N] = {}, shift_sum[Sums ? Vectors : 1][N] = {};
  for (int64_t s = start; s < end; ++s) {
    const int64_t row = b * a.tokens + s;
    const float mean = read(a.mean + row), rstd = read(a.rstd + row);
    Pack<T, N> grads[Vectors], xs[Vectors];
#pragma unroll
    for (int v = 0; v < Vectors; ++v) {
      const int64_t column = static_cast<int64_t>(threadIdx.x + v * blockDim.x) * N;
      if (column >= a.width) continue;
      grads[v] = load<Wide, N>(a.grad.at(b, s) + column, a.width - column);
      xs[v] = load<Wide, N>(a.x.at(b, s) + column, a.width - column);
    }
    float sum_g = 0.0f, sum_gn = 0.0f;
#pragma unroll
    for (int v = 0; v < Vectors; ++v) {
      const int64_t column = static_cast<int64_t>(threadIdx.x + v * blockDim.x) * N, left = a.width - column;
      if (column >= a.width) continue;
      float grad[N], normed[N], scale[N];
      grads[v].unpack(grad), xs[v].unpack(normed);
#pragma unroll
      for (int n = 0; n < N; ++n) normed[n] = (normed[n] - mean) * rstd;
      if (a.grad_x) {
        load<Wide, N>(a.scale.at(b, s) + column, left).unpack(scale);
#pragma unroll
        for (int n = 0; n < N; ++n) {
          const float g = grad[n] * (1.0f + scale[n]);  // 0 beyond the row, as is grad
          sum_g += g;
          sum_gn += g * normed[n];
        }
      }
      if (a.grad_shift) store<Wide>(a.grad_shift + row * a.width + column, grad, left);
#pragma unroll
      for (int n = 0; n < N; ++n) {
        if constexpr (Sums) shift_sum[v][n] += grad[n];
        grad[n] *= normed[n];
        if constexpr (Sums) scale_sum[v][n] += grad[n];
      }
      if (a.grad_scale) store<Wide>(a.grad_scale + row * a.width + column, grad, left);
    }
    if (!a.grad_x) continue;
    float* scratch = shared_memory + (s & 1) * 2 * warps;
    sum_g = warp_sum(sum_g), sum_gn = warp_sum(sum_gn);
    if (threadIdx.x % warp_size == 0) {
      scratch[threadIdx.x / warp_size] = sum_g;
      scratch[warps + threadIdx.x / warp_size] = sum_gn;
    }
    __syncthreads();
    float mean_g = 0.0f, mean_gn = 0.0f;
    for (int warp = 0; warp < warps; ++warp) mean_g += scratch[warp], mean_gn += scratch[warps + warp];
    mean_g /= a.width, mean_gn /= a.width;
#pragma unroll
    for (int v = 0; v < Vectors; ++v) {
      const int64_t column = static_cast<int64_t>(threadIdx.x + v * blockDim.x) * N, left = a.width - column;
      if (column >= a.width) continue;
      float grad[N], normed[N], scale[N];
      grads[v].unpack(grad), xs[v].unpack(normed);
      load<Wide, N>(a.scale.at(b, s) + column, left).unpack(scale);  // from the cache
#pragma unroll
      for (int n = 0; n < N; ++n)
        grad[n] = rstd * (grad[n] * (1.0f + scale[n]) - mean_g - (normed[n] - mean) * rstd * mean_gn);
      store<Wide>(a.grad_x + row * a.width + column, grad, left);
    }
  }
  if constexpr (Sums) {
    float* out = a.partials + (b * gridDim.x + blockIdx.x) * 2 * a.width;
#pragma unroll
    for (int v = 0; v < Vectors; ++v) {
      const int64_t column = static_cast<int64_t>(threadIdx.x + v * blockDim.x) * N, left = a.width - column;
      if (column >= a.width) continue;
      store<Wide>(out + column, scale_sum[v], left);
      store<Wide>(out + a.width + column, shift_sum[v], left);
    }
  }
}

// Parts of one token have nothing to add up.
inline Parts norm_parts(int64_t tokens, bool sums) {
  return sums ? Parts(tokens, 512, 4) : Parts(tokens, tokens > 0 ? tokens : 1, 1);
}

struct NormShape {
  int vectors;  // of each thread
  unsigned threads;
};

template <class T>
NormShape norm_shape(int64_t width, bool wide) {
  const int64_t vectors = ceil_div(width, vector_elements<T>);
  const int most = norm_most_vectors<T>;
  const int each = !wide || vectors > 2 * norm_most_threads ? most : vectors > 128 ? 2 : 1;
  return {each, static_cast<unsigned>(round_up(ceil_div(vectors, each), warp_size))};
}

template <class T, class M, class Launch>
void modulated_norm(const ModulatedNorm<T, M>& a, Launch& launch) {
  if (a.batch * a.tokens * a.width == 0) return;
  const bool wide = a.width % vector_elements<T> == 0 && a.x.aligned() && a.scale.aligned() && a.shift.aligned();
  const NormShape shape = norm_shape<T>(a.width, wide);
  const auto kernel = !wide                ? modulated_norm_kernel<T, M, norm_most_vectors<T>, false>
                      : shape.vectors == 1 ? modulated_norm_kernel<T, M, 1, true>
                      : shape.vectors == 2 ? modulated_norm_kernel<T, M, 2, true>
                                           : modulated_norm_kernel<T, M, norm_most_vectors<T>, true>;
  const dim3 grid(static_cast<unsigned>(a.tokens), static_cast<unsigned>(a.batch));
  launch(kernel, grid, shape.threads, 2 * shape.threads / warp_size * sizeof(float), a);
}

template <class T, class M, bool Sums>
auto norm_backward_kernel(int vectors, bool wide) {
  return !wide          ? modulated_norm_backward_kernel<T, M, norm_most_vectors<T>, false, Sums>
         : vectors == 1 ? modulated_norm_backward_kernel<T, M, 1, true, Sums>
         : vectors == 2 ? modulated_norm_backward_kernel<T, M, 2, true, Sums>
                        : modulated_norm_backward_kernel<T, M, norm_most_vectors<T>, true, Sums>;
}

// shared_scale, shared_shift: (B,d), where the sums over the tokens go, or null. sums: either is wanted, and
// a.partials is room for their parts.
template <class T, class M, class Launch>
void modulated_norm_backward(
    ModulatedNormBackward<T, M> a, bool sums, M* shared_scale, float* shared_shift, Launch& launch) {
  const Parts parts = norm_parts(a.tokens, sums);
  a.tokens_per_part = parts.tokens_per_part;
  if (a.batch * a.tokens * a.width > 0) {
    const bool wide = a.width % vector_elements<T> == 0 && a.grad.aligned() && a.x.aligned() && a.scale.aligned();
    const NormShape shape = norm_shape<T>(a.width, wide);
    const auto kernel = sums ? norm_backward_kernel<T, M, true>(shape.vectors, wide)
                             : norm_backward_kernel<T, M, false>(shape.vectors, wide);
    const dim3 grid(static_cast<unsigned>(parts.count), static_cast<unsigned>(a.batch));
    launch(kernel, grid, shape.threads, 4 * shape.threads / warp_size * sizeof(float), a);
  }
  if (shared_scale) sum_parts<M>({a.partials, shared_scale, parts.count, a.width, 2 * a.width}, a.batch, launch);
  if (shared_shift)
    sum_parts<float>({a.partials + a.width, shared_shift, parts.count, a.width, 2 * a.width}, a.batch, launch);
}

}  // namespace fym::gpu
