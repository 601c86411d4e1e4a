// gated_residual: out = x + y * gate. Backward: grad_y = grad * gate, grad_gate = grad * y, summed over the tokens
// that share a gate. A block covers a tile of columns and walks over tokens, so a shared gate is read once a thread.
#pragma once

#include "common.cuh"

namespace fym::gpu {

constexpr int gate_columns = 64;  // vectors across: 1 KB of a row
constexpr int gate_rows = 4;
constexpr int gate_threads = gate_columns * gate_rows;
constexpr int gate_batch = 4;  // tokens a thread has in flight
constexpr int gate_backward_batch = 2;  // of two tensors; with four the registers run out on sm_100
constexpr int gate_tokens = gate_rows * gate_batch;

template <class T, class G>
struct GatedResidual {
  Rows<T> out;
  Rows<const T> x, y;
  Rows<const G> gate;
  int64_t batch, tokens, width;
};

template <class T, class G, bool Wide>
__global__ void __launch_bounds__(gate_threads) gated_residual_kernel(const GatedResidual<T, G> a) {
  constexpr int N = vector_elements<T>;
  const int64_t column = (static_cast<int64_t>(blockIdx.y) * gate_columns + threadIdx.x % gate_columns) * N;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * gate_tokens + threadIdx.x / gate_columns;
  const int64_t b = blockIdx.z, left = a.width - column;
  if (left <= 0) return;
  Pack<T, N> x[gate_batch], y[gate_batch];
#pragma unroll
  for (int i = 0; i < gate_batch; ++i) {
    const int64_t s = first + i * gate_rows;
    if (s >= a.tokens) continue;
    x[i] = load<Wide, N>(a.x.at(b, s) + column, left);
    y[i] = load<Wide, N>(a.y.at(b, s) + column, left);
  }
  float gate[N];
#pragma unroll
  for (int i = 0; i < gate_batch; ++i) {
    const int64_t s = first + i * gate_rows;
    if (s >= a.tokens) continue;
    if (i == 0 || a.gate.stride_s) load<Wide, N>(a.gate.at(b, s) + column, left).unpack(gate);
    float out[N], factor[N];
    x[i].unpack(out), y[i].unpack(factor);
#pragma unroll
    for (int n = 0; n < N; ++n) out[n] += factor[n] * gate[n];
    store<Wide>(a.out.at(b, s) + column, out, left);
  }
}

// Null outputs are not wanted. partials: (B, parts, width), for a gate that tokens share.
template <class T, class G>
struct GatedResidualBackward {
  Rows<T> grad_y;
  Rows<G> grad_gate;
  float* partials;
  Rows<const T> grad, y;
  Rows<const G> gate;
  int64_t batch, tokens, width, tokens_per_part;
};

template <class T, class G, bool Wide>
__global__ void __launch_bounds__(gate_threads, Wide ? 2 : 1)
    gated_residual_backward_kernel(const GatedResidualBackward<T, G> a) {
  constexpr int N = vector_elements<T>;
  const int across = threadIdx.x % gate_columns, row = threadIdx.x / gate_columns;
  const int64_t column = (static_cast<int64_t>(blockIdx.y) * gate_columns + across) * N;
  const int64_t b = blockIdx.z, left = a.width - column;
  const int64_t start = static_cast<int64_t>(blockIdx.x) * a.tokens_per_part;
  const int64_t end = start + a.tokens_per_part < a.tokens ? start + a.tokens_per_part : a.tokens;
  const bool inside = left > 0, want_y = a.grad_y.data, want_gate = a.grad_gate.data || a.partials;
  const bool per_token = a.gate.stride_s;
  float sum[N] = {}, gate[N] = {};
  if (inside && want_y && !per_token) load<Wide, N>(a.gate.at(b, 0) + column, left).unpack(gate);
#pragma unroll 1
  for (int64_t s0 = start + row; inside && s0 < end; s0 += gate_rows * gate_backward_batch) {
    Pack<T, N> grads[gate_backward_batch], ys[gate_backward_batch];
#pragma unroll
    for (int i = 0; i < gate_backward_batch; ++i) {
      const int64_t s = s0 + i * gate_rows;
      if (s >= end) continue;
      grads[i] = load<Wide, N>(a.grad.at(b, s) + column, left);
      if (want_gate) ys[i] = load<Wide, N>(a.y.at(b, s) + column, left);
    }
#pragma unroll
    for (int i = 0; i < gate_backward_batch; ++i) {
      const int64_t s = s0 + i * gate_rows;
      if (s >= end) continue;
      float grad[N], product[N];
      grads[i].unpack(grad);
      if (want_y) {
        if (per_token) load<Wide, N>(a.gate.at(b, s) + column, left).unpack(gate);
#pragma unroll
        for (int n = 0; n < N; ++n) product[n] = grad[n] * gate[n];
        store<Wide>(a.grad_y.at(b, s) + column, product, left);
      }
      if (!want_gate) continue;
      ys[i].unpack(product);
#pragma unroll
      for (int n = 0; n < N; ++n) {
        product[n] *= grad[n];
        sum[n] += product[n];
      }
      if (a.grad_gate.data) store<Wide>(a.grad_gate.at(b, s) + column, product, left);
    }
  }
  if (!a.partials) return;
#pragma unroll
  for (int n = 0; n < N; ++n) shared_memory[n * gate_threads + threadIdx.x] = sum[n];
  __syncthreads();
  if (row > 0 || !inside) return;
#pragma unroll
  for (int n = 0; n < N; ++n)
    for (int other = 1; other < gate_rows; ++other)
      sum[n] += shared_memory[n * gate_threads + other * gate_columns + across];
  store<Wide>(a.partials + (b * gridDim.x + blockIdx.x) * a.width + column, sum, left);
}

inline Parts gate_parts(int64_t tokens) { return Parts(tokens, 256, 4 * gate_tokens); }

template <class T>
dim3 gate_grid(int64_t blocks, int64_t width, int64_t batch) {
  const int64_t tiles = ceil_div(width, gate_columns * vector_elements<T>);
  return dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(tiles), static_cast<unsigned>(batch));
}

template <class T, class G, class Launch>
void gated_residual(const GatedResidual<T, G>& a, Launch& launch) {
  if (a.batch * a.tokens * a.width == 0) return;
  const bool wide = a.width % vector_elements<T> == 0 && a.out.aligned() && a.x.aligned() && a.y.aligned() &&
                    a.gate.aligned();
  const auto kernel = wide ? gated_residual_kernel<T, G, true> : gated_residual_kernel<T, G, false>;
  launch(kernel, gate_grid<T>(ceil_div(a.tokens, gate_tokens), a.width, a.batch), gate_threads, 0, a);
}

// shared_gate: where the sum for a gate of (B,d) goes, or null; a.partials is then room for its parts.
template <class T, class G, class Launch>
void gated_residual_backward(GatedResidualBackward<T, G> a, G* shared_gate, Launch& launch) {
  const Parts parts = gate_parts(a.tokens);
  a.tokens_per_part = parts.tokens_per_part;
  if (a.batch * a.tokens * a.width > 0) {
    const bool wide = a.width % vector_elements<T> == 0 && a.grad_y.aligned() && a.grad_gate.aligned() &&
                      a.grad.aligned() && a.y.aligned() && a.gate.aligned();
    const auto kernel =
        wide ? gated_residual_backward_kernel<T, G, true> : gated_residual_backward_kernel<T, G, false>;
    const size_t shared = a.partials ? gate_threads * vector_elements<T> * sizeof(float) : 0;
    launch(kernel, gate_grid<T>(parts.count, a.width, a.batch), gate_threads, shared, a);
  }
  if (shared_gate) sum_parts<G>({a.partials, shared_gate, parts.count, a.width, a.width}, a.batch, launch);
}

}  // namespace fym::gpu
