// What every op's binding needs between torch tensors and the torch-free kernels: dtypes, rows, splitting work.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>

namespace fym {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t grain_elements = 32768;  // work below which another thread costs more than it saves

// Calls f with a value of the storage type: float, bf16 or half.
template <class F>
void with_storage_type(const char* name, const Tensor& tensor, F f) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return f(float{});
    case ScalarType::BFloat16:
      return f(bf16{});
    case ScalarType::Half:
      return f(half{});
    default:
      STD_TORCH_CHECK(false, name, " must be float32, bfloat16 or float16");
  }
}

// `tensor` must have the shape and the dtype of `like`.
inline void check_like(const char* name, const Tensor& tensor, const char* like_name, const Tensor& like) {
  bool same = tensor.dim() == like.dim() && tensor.scalar_type() == like.scalar_type();
  for (int64_t i = 0; same && i < like.dim(); ++i) same = tensor.size(i) == like.size(i);
  STD_TORCH_CHECK(same, name, " must have the shape and dtype of ", like_name);
}

template <class T>
T* data_of(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

// The tensor itself when its last dimension is dense, else a contiguous copy.
inline Tensor with_dense_rows(const Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  return tensor.stride(last) == 1 || tensor.size(last) <= 1 ? tensor : torch::stable::contiguous(tensor);
}

// The rows of a (B,S,d) tensor, or of a (B,d) one that is the same for every s.
template <class T>
struct Rows {
  T* data = nullptr;
  int64_t stride_b = 0, stride_s = 0;

  Rows() = default;
  explicit Rows(const Tensor& tensor)
      : data(static_cast<T*>(tensor.data_ptr())),
        stride_b(tensor.stride(0)),
        stride_s(tensor.dim() == 3 ? tensor.stride(1) : 0) {}

  T* operator()(int64_t b, int64_t s) const { return data ? data + b * stride_b + s * stride_s : nullptr; }
};

inline int64_t grain_rows(int64_t row_length) {
  return std::max<int64_t>(1, grain_elements / std::max<int64_t>(1, row_length));
}

}  // namespace fym
