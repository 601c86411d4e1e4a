// motion_loss: weighted squared error plus the direction error of adjacent frame differences. Statistics: per sample
// and frame the sums of squared error, a.b, a.a and b.b, with a and b the differences to the frame before of pred and
// target. They fix the gradient up to three numbers per frame pair, so nothing of the clip's size is kept; the
// backward pass reads both clips again. A thread holds a few frames of the same pixels, so each is read about once.
#pragma once

#include "common.cuh"

namespace fym::gpu {

constexpr int motion_frames = 4;  // of a block
constexpr int motion_threads = 128;
constexpr int motion_statistics = 4;
constexpr int motion_sums = motion_frames * motion_statistics;
constexpr float motion_smallest_norm = 1e-8f;  // as in the reference: a pair of equal frames has no direction

// A (B,C,T,h,w) tensor whose frames are dense.
template <class T>
struct Clip {
  T* data = nullptr;
  int64_t stride_b = 0, stride_c = 0, stride_t = 0;

  __device__ T* at(int64_t b, int64_t c, int64_t t) const {
    return data + b * stride_b + c * stride_c + t * stride_t;
  }

  bool aligned() const {
    return Rows<T>{data, stride_b, stride_c}.aligned() && stride_t * sizeof(T) % vector_bytes == 0;
  }
};

struct ClipSize {
  int64_t batch, channels, frames, pixels;
};

// Sums 2 * Half values over the warp: in each step a lane hands over half of what it holds, which takes 16 shuffles
// for 16 values where sums one by one take 80. Lane l returns the sum of value[l / 2], for Half = 8.
template <int Half>
__device__ float warp_sums(float (&value)[2 * Half]) {
  const bool upper = threadIdx.x & (2 * Half);
  float kept[Half];
#pragma unroll
  for (int i = 0; i < Half; ++i) {
    const float give = upper ? value[i] : value[i + Half];
    kept[i] = (upper ? value[i + Half] : value[i]) + __shfl_xor_sync(all_lanes, give, 2 * Half);
  }
  if constexpr (Half == 1) {
    return kept[0] + __shfl_xor_sync(all_lanes, kept[0], 1);
  } else {
    return warp_sums<Half / 2>(kept);
  }
}

// partials: (B, C * pixel tiles, 4, T)
template <class T>
struct MotionStatistics {
  Clip<const T> pred, target;
  float* partials;
  ClipSize size;
  int64_t pixel_tiles;
};

template <class T, bool Wide>
__global__ void __launch_bounds__(motion_threads) motion_statistics_kernel(const MotionStatistics<T> a) {
  static_assert(motion_sums == 16, "what warp_sums adds");
  constexpr int N = vector_elements<T>;
  const int64_t tile = blockIdx.x % a.pixel_tiles, c = blockIdx.y, b = blockIdx.z;
  const int64_t first = static_cast<int64_t>(blockIdx.x / a.pixel_tiles) * motion_frames;
  const int64_t pixel = (tile * motion_threads + threadIdx.x) * N, left = a.size.pixels - pixel;
  float sums[motion_sums] = {};
  if (left > 0) {
    Pack<T, N> preds[motion_frames + 1], targets[motion_frames + 1];
#pragma unroll
    for (int f = 0; f <= motion_frames; ++f) {
      const int64_t t = first + f - 1;
      if (t < 0 || t >= a.size.frames) continue;
      preds[f] = load<Wide, N>(a.pred.at(b, c, t) + pixel, left);
      targets[f] = load<Wide, N>(a.target.at(b, c, t) + pixel, left);
    }
    float pred_before[N], target_before[N];
    if (first > 0) preds[0].unpack(pred_before), targets[0].unpack(target_before);
#pragma unroll
    for (int f = 0; f < motion_frames; ++f) {
      const int64_t t = first + f;
      if (t >= a.size.frames) continue;
      float pred[N], target[N];
      preds[f + 1].unpack(pred), targets[f + 1].unpack(target);
#pragma unroll
      for (int n = 0; n < N; ++n) {
        const float error = pred[n] - target[n];
        sums[f] += error * error;
        if (t > 0) {
          const float step = pred[n] - pred_before[n], step_target = target[n] - target_before[n];
          sums[motion_frames + f] += step * step_target;
          sums[2 * motion_frames + f] += step * step;
          sums[3 * motion_frames + f] += step_target * step_target;
        }
        pred_before[n] = pred[n], target_before[n] = target[n];
      }
    }
  }
  const float sum = warp_sums<motion_sums / 2>(sums);
  const int lane = threadIdx.x % warp_size, warp = threadIdx.x / warp_size;
  if (lane % 2 == 0) shared_memory[warp * motion_sums + lane / 2] = sum;
  __syncthreads();
  const int64_t t = first + threadIdx.x % motion_frames;
  if (threadIdx.x >= motion_sums || t >= a.size.frames) return;
  float total = 0.0f;
  for (int other = 0; other < motion_threads / warp_size; ++other)
    total += shared_memory[other * motion_sums + threadIdx.x];
  const int64_t part = (b * a.size.channels + c) * a.pixel_tiles + tile;
  write(a.partials + (part * motion_statistics + threadIdx.x / motion_frames) * a.size.frames + t, total);
}

// sums (B,4,T), weight (B) or null -> loss (), coefficients (B,3,T): what a frame pair's own, the other clip's and,
// for the target, its own difference is multiplied with in the gradient; error_scale (B): 2 weight / elements.
struct MotionFinish {
  const float *sums, *weight;
  float *loss, *coefficients, *error_scale;
  ClipSize size;
  float motion_weight;
};

// One warp: B * T numbers.
static __global__ void __launch_bounds__(warp_size) motion_finish_kernel(const MotionFinish a) {
  const int64_t frames = a.size.frames, pairs = a.size.batch * (frames - 1);
  const float elements = static_cast<float>(a.size.batch * a.size.channels * frames * a.size.pixels);
  const float pair_weight = pairs > 0 ? a.motion_weight / pairs : 0.0f;
  float loss = 0.0f;
  for (int64_t b = 0; b < a.size.batch; ++b) {
    const float error_scale = 2.0f * (a.weight ? read(a.weight + b) : 1.0f) / elements;
    if (threadIdx.x == 0) write(a.error_scale + b, error_scale);
    for (int64_t t = threadIdx.x; t < frames; t += warp_size) {
      const float* sums = a.sums + b * motion_statistics * frames + t;
      float* coefficients = a.coefficients + b * 3 * frames + t;
      loss += 0.5f * error_scale * read(sums);
      float own_pred = 0.0f, other = 0.0f, own_target = 0.0f;
      if (t > 0 && pair_weight != 0.0f) {
        const float norm = fmaxf(sqrtf(read(sums + 2 * frames)), motion_smallest_norm);
        const float norm_target = fmaxf(sqrtf(read(sums + 3 * frames)), motion_smallest_norm);
        const float cosine = read(sums + frames) / norm / norm_target;
        loss += pair_weight * (1.0f - cosine);
        // d(-cosine)/da = cosine a / |a|^2 - b / (|a| |b|); a clamped norm is a constant
        if (norm > motion_smallest_norm) own_pred = pair_weight * cosine / norm / norm;
        if (norm_target > motion_smallest_norm) own_target = pair_weight * cosine / norm_target / norm_target;
        other = -pair_weight / norm / norm_target;
      }
      write(coefficients, own_pred);
      write(coefficients + frames, other);
      write(coefficients + 2 * frames, own_target);
    }
  }
  loss = warp_sum(loss);
  if (threadIdx.x == 0) write(a.loss, loss);
}

// The gradient of `own`, contiguous. own_factor, other_factor: rows of coefficients, `factor_stride` apart between
// samples.
template <class T>
struct MotionGradient {
  Clip<const T> own, other;
  const float *own_factor, *other_factor, *error_scale, *grad_loss;
  T* out;
  ClipSize size;
  int64_t pixel_tiles;
};

// With the pair gradient g_t = own_t (p_t - p_t-1) + other_t (q_t - q_t-1), frame t gets g_t - g_t+1 and the error's.
template <class T, bool Wide>
__global__ void __launch_bounds__(motion_threads) motion_gradient_kernel(const MotionGradient<T> a) {
  constexpr int N = vector_elements<T>;
  const int64_t frames = a.size.frames;
  const int64_t tile = blockIdx.x % a.pixel_tiles, c = blockIdx.y, b = blockIdx.z;
  const int64_t first = static_cast<int64_t>(blockIdx.x / a.pixel_tiles) * motion_frames;
  const int64_t pixel = (tile * motion_threads + threadIdx.x) * N, left = a.size.pixels - pixel;
  if (left <= 0) return;
  Pack<T, N> owns[motion_frames + 2], others[motion_frames + 2];
#pragma unroll
  for (int f = 0; f < motion_frames + 2; ++f) {
    const int64_t t = first + f - 1;
    if (t < 0 || t >= frames) continue;
    owns[f] = load<Wide, N>(a.own.at(b, c, t) + pixel, left);
    others[f] = load<Wide, N>(a.other.at(b, c, t) + pixel, left);
  }
  const float grad_loss = read(a.grad_loss), error_scale = read(a.error_scale + b);
  float before[N] = {}, own[N], other[N];  // the pair gradient of the frame and the one before
#pragma unroll
  for (int f = 0; f < motion_frames + 1; ++f) {
    const int64_t t = first + f;  // the pair (t - 1, t); its gradient completes frame t - 1
    float step[N] = {}, after[N] = {};
    if (t > 0 && t < frames) {
      const float own_factor = read(a.own_factor + b * 3 * frames + t);
      const float other_factor = read(a.other_factor + b * 3 * frames + t);
      float own_after[N], other_after[N];
      owns[f].unpack(own), others[f].unpack(other);
      owns[f + 1].unpack(own_after), others[f + 1].unpack(other_after);
#pragma unroll
      for (int n = 0; n < N; ++n)
        after[n] = own_factor * (own_after[n] - own[n]) + other_factor * (other_after[n] - other[n]);
    }
    if (f > 0 && t <= frames) {
      owns[f].unpack(own), others[f].unpack(other);
#pragma unroll
      for (int n = 0; n < N; ++n)
        step[n] = grad_loss * (error_scale * (own[n] - other[n]) + before[n] - after[n]);
      const int64_t row = (b * a.size.channels + c) * frames + t - 1;
      store<Wide>(a.out + row * a.size.pixels + pixel, step, left);
    }
#pragma unroll
    for (int n = 0; n < N; ++n) before[n] = after[n];
  }
}

template <class T>
int64_t motion_tiles(const ClipSize& size) {
  return ceil_div(size.pixels, motion_threads * vector_elements<T>);
}

template <class T>
dim3 motion_grid(const ClipSize& size) {
  return dim3(static_cast<unsigned>(motion_tiles<T>(size) * ceil_div(size.frames, motion_frames)),
              static_cast<unsigned>(size.channels), static_cast<unsigned>(size.batch));
}

// a.partials: room for (B, C * motion_tiles, 4, T); sums: room for (B,4,T)
template <class T, class Launch>
void motion_loss(MotionStatistics<T> a, float* sums, const MotionFinish& finish, Launch& launch) {
  a.pixel_tiles = motion_tiles<T>(a.size);
  const bool wide = a.size.pixels % vector_elements<T> == 0 && a.pred.aligned() && a.target.aligned();
  const auto kernel = wide ? motion_statistics_kernel<T, true> : motion_statistics_kernel<T, false>;
  const size_t shared = motion_threads / warp_size * motion_sums * sizeof(float);
  launch(kernel, motion_grid<T>(a.size), motion_threads, shared, a);
  const int64_t width = motion_statistics * a.size.frames;
  sum_parts<float>({a.partials, sums, a.size.channels * a.pixel_tiles, width, width}, a.size.batch, launch);
  launch(&motion_finish_kernel, dim3(1), warp_size, 0, finish);
}

template <class T, class Launch>
void motion_loss_backward(MotionGradient<T> a, Launch& launch) {
  a.pixel_tiles = motion_tiles<T>(a.size);
  const bool wide = a.size.pixels % vector_elements<T> == 0 && a.own.aligned() && a.other.aligned();
  const auto kernel = wide ? motion_gradient_kernel<T, true> : motion_gradient_kernel<T, false>;
  launch(kernel, motion_grid<T>(a.size), motion_threads, 0, a);
}

}  // namespace fym::gpu
