// qk_norm_rope: RMSNorm of query and key, then 3D rotary embedding. A block holds one token of one of the two in
// registers; its cosines and sines come from small per-axis tables through shared memory. The rotation is orthogonal,
// so with n = x rstd and g = w (R^T grad) the backward pass is grad_x = rstd (g - n mean(g n)), grad_w = (R^T grad) n.
#pragma once

#include "rotary.cuh"

namespace fym::gpu {

constexpr int rope_most_threads = 512;

enum Norm : int { norm_none = 0, norm_across_heads = 1, norm_per_head = 2 };

// Channels of a token that the threads of a block hold in registers; heads count in whole units.
constexpr int64_t rope_most_width = 8192;

// Heads of a thread in the widest token.
template <class T>
constexpr int rope_most_heads = rope_most_width / rope_most_threads / (2 * vector_elements<T>);

// For query or key. Forward: x, weight -> out, rstd. Backward: grad, x, weight, rstd -> out, the gradient of x.
template <class T>
struct RopeSide {
  Heads<const T> x, grad;
  const float* weight;
  T* out;
  float* rstd;
};

template <class T>
struct QkNormRope {
  RopeSide<T> query, key;
  Rotary rotary;
  int64_t batch, tokens, heads, dim;
  int units, heads_at_once;  // units of a head; heads the threads of a block hold side by side
  Norm norm;
  float eps;
};

// Shared memory: cosines and sines of units * N pairs each, then scratch for the sums.
template <class T>
size_t rope_shared_bytes(int units, unsigned threads) {
  const size_t angles = 2 * static_cast<size_t>(units) * vector_elements<T>;
  return (angles + static_cast<size_t>(rope_most_heads<T>) * threads) * sizeof(float);
}

template <int N>
__device__ void share_angles(const Rotary& rotary, int units) {
  const TokenAngles angles(rotary, blockIdx.y, blockIdx.x);
  for (int pair = threadIdx.x; pair < units * N; pair += blockDim.x) {
    const float2 turn = angles(rotary, pair);
    shared_memory[pair] = turn.x;
    shared_memory[units * N + pair] = turn.y;
  }
}

template <int N>
__device__ void shared_angles(int unit, int units, float (&cosine)[N], float (&sine)[N]) {
#pragma unroll
  for (int i = 0; i < N; i += 4) {
    const float4 c = *reinterpret_cast<const float4*>(shared_memory + unit * N + i);
    const float4 s = *reinterpret_cast<const float4*>(shared_memory + (units + unit) * N + i);
    cosine[i] = c.x, cosine[i + 1] = c.y, cosine[i + 2] = c.z, cosine[i + 3] = c.w;
    sine[i] = s.x, sine[i + 1] = s.y, sine[i + 2] = s.z, sine[i + 3] = s.w;
  }
}

// Replaces each sum by the mean over all heads, or over the threads of the same head. Contains a barrier.
template <int H>
__device__ void norm_means(float (&sum)[H], Norm norm, int units, int64_t heads, int64_t dim, float* scratch) {
  if (norm == norm_across_heads) {
    float total = 0.0f;
#pragma unroll
    for (int h = 0; h < H; ++h) total += sum[h];
    total = block_sum(total, scratch) / (heads * dim);
#pragma unroll
    for (int h = 0; h < H; ++h) sum[h] = total;
  } else if (units <= warp_size && (units & (units - 1)) == 0) {  // a head's threads are in one warp
#pragma unroll
    for (int h = 0; h < H; ++h) {
      for (int offset = units / 2; offset > 0; offset /= 2)
        sum[h] += __shfl_xor_sync(all_lanes, sum[h], offset);
      sum[h] /= dim;
    }
    __syncthreads();
  } else {
#pragma unroll
    for (int h = 0; h < H; ++h) scratch[h * blockDim.x + threadIdx.x] = sum[h];
    __syncthreads();
    const int first = threadIdx.x / units * units;
#pragma unroll
    for (int h = 0; h < H; ++h) {
      sum[h] = 0.0f;
      for (int i = first; i < first + units && i < static_cast<int>(blockDim.x); ++i)
        sum[h] += scratch[h * blockDim.x + i];
      sum[h] /= dim;
    }
  }
}

template <class T, bool Interleaved, int HeadsOfThread, bool Wide>
__global__ void __launch_bounds__(rope_most_threads, Wide ? 2 : 1) qk_norm_rope_kernel(const QkNormRope<T> p) {
  constexpr int N = vector_elements<T>;
  const RopeSide<T> side = blockIdx.z == 0 ? p.query : p.key;
  const int64_t s = blockIdx.x, b = blockIdx.y, row = b * p.tokens + s;
  const int unit = threadIdx.x % p.units, first_head = threadIdx.x / p.units;
  const bool works = first_head < p.heads_at_once;
  Unit<T, Interleaved, Wide> x[HeadsOfThread];
#pragma unroll
  for (int h = 0; h < HeadsOfThread; ++h) {
    const int head = first_head + h * p.heads_at_once;
    if (works && head < p.heads)
      x[h].load(side.x.at(b, s, head) + Unit<T, Interleaved, Wide>::offset(unit), unit, p.dim);
  }
  share_angles<N>(p.rotary, p.units);
  float a[N], c[N], rstd[HeadsOfThread];
#pragma unroll
  for (int h = 0; h < HeadsOfThread; ++h) {
    rstd[h] = 0.0f;
    if (!works || first_head + h * p.heads_at_once >= p.heads) continue;
    x[h].unpack(a, c);
#pragma unroll
    for (int i = 0; i < N; ++i) rstd[h] += a[i] * a[i] + c[i] * c[i];
  }
  if (p.norm == norm_none) {
    __syncthreads();
  } else {
    norm_means(rstd, p.norm, p.units, p.heads, p.dim, shared_memory + 2 * p.units * N);
  }
#pragma unroll
  for (int h = 0; h < HeadsOfThread; ++h) rstd[h] = p.norm == norm_none ? 1.0f : 1.0f / sqrtf(rstd[h] + p.eps);
  if (p.norm == norm_across_heads && threadIdx.x == 0) write(side.rstd + row, rstd[0]);
#pragma unroll
  for (int h = 0; h < HeadsOfThread; ++h) {
    const int head = first_head + h * p.heads_at_once;
    if (!works || head >= p.heads) continue;
    if (p.norm == norm_per_head && unit == 0) write(side.rstd + row * p.heads + head, rstd[h]);
    const int64_t offset = Unit<T, Interleaved, Wide>::offset(unit);
    x[h].unpack(a, c);
    float cosine[N], sine[N], out_a[N], out_c[N];
#pragma unroll
    for (int i = 0; i < N; ++i) a[i] *= rstd[h], c[i] *= rstd[h];
    if (side.weight) {
      const float* weight = side.weight + (p.norm == norm_across_heads ? head * p.dim : 0) + offset;
      load_weight<Interleaved, Wide>(weight, out_a, out_c, unit, p.dim);
#pragma unroll
      for (int i = 0; i < N; ++i) a[i] *= out_a[i], c[i] *= out_c[i];
    }
    shared_angles<N>(unit, p.units, cosine, sine);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      out_a[i] = a[i] * cosine[i] - c[i] * sine[i];
      out_c[i] = c[i] * cosine[i] + a[i] * sine[i];
    }
    store_unit<Interleaved, Wide>(side.out + (row * p.heads + head) * p.dim + offset, out_a, out_c, unit, p.dim);
  }
}

template <class T, bool Interleaved, int HeadsOfThread, bool Wide>
__global__ void __launch_bounds__(rope_most_threads, 1) qk_norm_rope_backward_kernel(const QkNormRope<T> p) {
  constexpr int N = vector_elements<T>;
  const RopeSide<T> side = blockIdx.z == 0 ? p.query : p.key;
  const int64_t s = blockIdx.x, b = blockIdx.y, row = b * p.tokens + s;
  const int unit = threadIdx.x % p.units, first_head = threadIdx.x / p.units;
  const bool works = first_head < p.heads_at_once;
  const int64_t offset = Unit<T, Interleaved, Wide>::offset(unit);
  Unit<T, Interleaved, Wide> grads[HeadsOfThread], x[HeadsOfThread];
#pragma unroll
  for (int h = 0; h < HeadsOfThread; ++h) {
    const int head = first_head + h * p.heads_at_once;
    if (!works || head >= p.heads) continue;
    grads[h].load(side.grad.at(b, s, head) + offset, unit, p.dim);
    if (p.norm != norm_none) x[h].load(side.x.at(b, s, head) + offset, unit, p.dim);
  }
  share_angles<N>(p.rotary, p.units);
  __syncthreads();
  float cosine[N], sine[N], ga[HeadsOfThread][N], gc[HeadsOfThread][N], a[N], c[N];
  float rstd[HeadsOfThread], mean[HeadsOfThread];
  shared_angles<N>(unit, p.units, cosine, sine);
#pragma unroll
  for (int h = 0; h < HeadsOfThread; ++h) {
    const int head = first_head + h * p.heads_at_once;
    mean[h] = rstd[h] = 0.0f;
    if (!works || head >= p.heads) continue;
    grads[h].unpack(a, c);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      ga[h][i] = a[i] * cosine[i] + c[i] * sine[i];
      gc[h][i] = c[i] * cosine[i] - a[i] * sine[i];
    }
    if (side.weight) {
      const float* weight = side.weight + (p.norm == norm_across_heads ? head * p.dim : 0) + offset;
      load_weight<Interleaved, Wide>(weight, a, c, unit, p.dim);
#pragma unroll
      for (int i = 0; i < N; ++i) ga[h][i] *= a[i], gc[h][i] *= c[i];
    }
    if (p.norm == norm_none) continue;
    rstd[h] = read(side.rstd + (p.norm == norm_across_heads ? row : row * p.heads + head));
    x[h].unpack(a, c);
#pragma unroll
    for (int i = 0; i < N; ++i) mean[h] += (ga[h][i] * a[i] + gc[h][i] * c[i]) * rstd[h];
  }
  if (p.norm != norm_none)
    norm_means(mean, p.norm, p.units, p.heads, p.dim, shared_memory + 2 * p.units * N);
#pragma unroll
  for (int h = 0; h < HeadsOfThread; ++h) {
    const int head = first_head + h * p.heads_at_once;
    if (!works || head >= p.heads) continue;
    if (p.norm != norm_none) {
      x[h].unpack(a, c);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        ga[h][i] = (ga[h][i] - a[i] * rstd[h] * mean[h]) * rstd[h];
        gc[h][i] = (gc[h][i] - c[i] * rstd[h] * mean[h]) * rstd[h];
      }
    }
    store_unit<Interleaved, Wide>(side.out + (row * p.heads + head) * p.dim + offset, ga[h], gc[h], unit, p.dim);
  }
}

// The weight's gradient of one side: a thread keeps its unit's sum over the tokens of its part.
// partials: (B, parts, H, D)
template <class T>
struct RopeWeight {
  Heads<const T> x, grad;
  const float* rstd;
  float* partials;
  Rotary rotary;
  int64_t batch, tokens, heads, dim, tokens_per_part;
  int units, heads_at_once;
  Norm norm;
};

constexpr int rope_weight_threads = 256;

template <class T, bool Interleaved, bool Wide>
__global__ void __launch_bounds__(rope_weight_threads, 1) qk_norm_rope_weight_kernel(const RopeWeight<T> p) {
  constexpr int N = vector_elements<T>;
  const int unit = threadIdx.x % p.units;
  const int64_t b = blockIdx.y, head = blockIdx.z * p.heads_at_once + threadIdx.x / p.units;
  if (static_cast<int>(threadIdx.x) / p.units >= p.heads_at_once || head >= p.heads) return;
  const int64_t offset = Unit<T, Interleaved, Wide>::offset(unit);
  const int64_t start = static_cast<int64_t>(blockIdx.x) * p.tokens_per_part;
  const int64_t end = start + p.tokens_per_part < p.tokens ? start + p.tokens_per_part : p.tokens;
  float sum_a[N] = {}, sum_c[N] = {};
  for (int64_t s = start; s < end; ++s) {
    Unit<T, Interleaved, Wide> grad, x;
    grad.load(p.grad.at(b, s, head) + offset, unit, p.dim);
    x.load(p.x.at(b, s, head) + offset, unit, p.dim);
    const int64_t row = b * p.tokens + s;
    const float rstd = read(p.rstd + (p.norm == norm_across_heads ? row : row * p.heads + head));
    const TokenAngles angles(p.rotary, b, s);
    float ga[N], gc[N], a[N], c[N];
    grad.unpack(ga, gc), x.unpack(a, c);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float2 turn = angles(p.rotary, unit * N + i);
      sum_a[i] += (ga[i] * turn.x + gc[i] * turn.y) * a[i] * rstd;
      sum_c[i] += (gc[i] * turn.x - ga[i] * turn.y) * c[i] * rstd;
    }
  }
  float* out = p.partials + ((b * gridDim.x + blockIdx.x) * p.heads + head) * p.dim + offset;
  store_unit<Interleaved, Wide>(out, sum_a, sum_c, unit, p.dim);
}

struct RopeShape {
  int units, heads_of_thread, heads_at_once;
  unsigned threads;
};

// Few enough threads to a block that several fit a multiprocessor.
template <class T>
RopeShape rope_shape(int64_t heads, int64_t dim, bool wide) {
  const int64_t units = ceil_div(dim / 2, vector_elements<T>);
  const int of_thread = wide && units * heads <= rope_most_threads ? 1 : rope_most_heads<T>;
  const int64_t at_once = ceil_div(heads, of_thread);
  return {static_cast<int>(units), of_thread, static_cast<int>(at_once),
          static_cast<unsigned>(round_up(units * at_once, warp_size))};
}

// Whether a block can hold a token.
template <class T>
bool rope_fits(int64_t heads, int64_t dim) {
  constexpr int unit = 2 * vector_elements<T>;
  return round_up(dim, unit) * heads <= rope_most_width && dim <= rope_weight_threads * unit;
}

template <class T, template <bool, int, bool> class Kernel, class Launch>
void launch_rope(QkNormRope<T> p, bool interleaved, bool wide, Launch& launch) {
  if (p.batch * p.tokens * p.heads * p.dim == 0) return;
  const RopeShape shape = rope_shape<T>(p.heads, p.dim, wide);
  p.units = shape.units, p.heads_at_once = shape.heads_at_once;
  constexpr int most = rope_most_heads<T>;
  const auto kernel = interleaved ? (!wide                        ? Kernel<true, most, false>::value
                                     : shape.heads_of_thread == 1 ? Kernel<true, 1, true>::value
                                                                  : Kernel<true, most, true>::value)
                                  : (!wide                        ? Kernel<false, most, false>::value
                                     : shape.heads_of_thread == 1 ? Kernel<false, 1, true>::value
                                                                  : Kernel<false, most, true>::value);
  const dim3 grid(static_cast<unsigned>(p.tokens), static_cast<unsigned>(p.batch), 2);
  launch(kernel, grid, shape.threads, rope_shared_bytes<T>(shape.units, shape.threads), p);
}

template <class T>
struct RopeKernels {
  template <bool Interleaved, int HeadsOfThread, bool Wide>
  struct Forward {
    static constexpr auto value = qk_norm_rope_kernel<T, Interleaved, HeadsOfThread, Wide>;
  };
  template <bool Interleaved, int HeadsOfThread, bool Wide>
  struct Backward {
    static constexpr auto value = qk_norm_rope_backward_kernel<T, Interleaved, HeadsOfThread, Wide>;
  };
};

inline bool aligned_weight(const float* weight) { return reinterpret_cast<uintptr_t>(weight) % vector_bytes == 0; }

template <class T>
bool rope_is_wide(const QkNormRope<T>& p) {
  return p.dim % (2 * vector_elements<T>) == 0 && p.query.x.aligned() && p.key.x.aligned() &&
         p.query.grad.aligned() && p.key.grad.aligned() && aligned_weight(p.query.weight) &&
         aligned_weight(p.key.weight);
}

template <class T, class Launch>
void qk_norm_rope(const QkNormRope<T>& p, bool interleaved, Launch& launch) {
  launch_rope<T, RopeKernels<T>::template Forward>(p, interleaved, rope_is_wide(p), launch);
}

template <class T, class Launch>
void qk_norm_rope_backward(const QkNormRope<T>& p, bool interleaved, Launch& launch) {
  launch_rope<T, RopeKernels<T>::template Backward>(p, interleaved, rope_is_wide(p), launch);
}

inline Parts rope_parts(int64_t tokens) { return Parts(tokens, 256, 16); }

// grad_weight: (H*D) across heads, (D) per head; head_sums: (H,D), room for the sum over tokens of the latter.
template <class T, class Launch>
void qk_norm_rope_weight(
    RopeWeight<T> p, bool interleaved, float* grad_weight, float* head_sums, Launch& launch) {
  const Parts parts = rope_parts(p.tokens);
  p.tokens_per_part = parts.tokens_per_part;
  if (p.batch * p.tokens * p.heads * p.dim > 0) {
    p.units = static_cast<int>(ceil_div(p.dim / 2, vector_elements<T>));
    p.heads_at_once = rope_weight_threads / p.units;
    const bool wide = p.dim % (2 * vector_elements<T>) == 0 && p.x.aligned() && p.grad.aligned();
    const auto kernel = interleaved ? (wide ? qk_norm_rope_weight_kernel<T, true, true>
                                            : qk_norm_rope_weight_kernel<T, true, false>)
                                    : (wide ? qk_norm_rope_weight_kernel<T, false, true>
                                            : qk_norm_rope_weight_kernel<T, false, false>);
    const dim3 grid(static_cast<unsigned>(parts.count), static_cast<unsigned>(p.batch),
                    static_cast<unsigned>(ceil_div(p.heads, p.heads_at_once)));
    launch(kernel, grid, rope_weight_threads, 0, p);
  }
  const int64_t width = p.heads * p.dim, count = p.batch * parts.count;
  float* sums = p.norm == norm_per_head ? head_sums : grad_weight;
  sum_parts<float>({p.partials, sums, count, width, width}, 1, launch);
  if (p.norm == norm_per_head) sum_parts<float>({head_sums, grad_weight, p.heads, p.dim, p.dim}, 1, launch);
}

}  // namespace fym::gpu
