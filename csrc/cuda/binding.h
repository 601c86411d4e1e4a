// Between torch tensors (stable ABI) and the torch-free kernels: dtypes, dense rows, views.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "common.cuh"

#include <launch.h>  // the emulator has its own

namespace fym::gpu {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t most_samples = 65535;  // the second and third dimension of a grid

// Calls f with a value of the storage type: float, bfloat16 or half.
template <class F>
void with_storage_type(const char* name, const Tensor& tensor, F f) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return f(float{});
    case ScalarType::BFloat16:
      return f(__nv_bfloat16{});
    case ScalarType::Half:
      return f(__half{});
    default:
      STD_TORCH_CHECK(false, name, " must be float32, bfloat16 or float16");
  }
}

// Calls f with the storage types of x and of its modulation, which is float32 or like x (see float_or_like).
template <class F>
void with_storage_types(const Tensor& x, const Tensor& modulation, F f) {
  with_storage_type("x", x, [&](auto storage) {
    if (modulation.scalar_type() == ScalarType::Float) return f(storage, float{});
    f(storage, storage);
  });
}

// The tensor itself when its last dimension is dense, else a contiguous copy.
inline Tensor with_dense_rows(const Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  return tensor.stride(last) == 1 || tensor.size(last) <= 1 ? tensor : torch::stable::contiguous(tensor);
}

// A modulation is read as float32 or in the dtype of x: any other is converted first.
inline Tensor float_or_like(const Tensor& tensor, const Tensor& x) {
  const ScalarType type = tensor.scalar_type();
  return type == ScalarType::Float || type == x.scalar_type() ? tensor
                                                              : torch::stable::to(tensor, ScalarType::Float);
}

inline Tensor to_type(const Tensor& tensor, ScalarType type) {
  return tensor.scalar_type() == type ? tensor : torch::stable::to(tensor, type);
}

// A dimension of one element may have any stride; 0 spoils no alignment.
inline int64_t stride_of(const Tensor& tensor, int64_t dimension) {
  return tensor.size(dimension) > 1 ? tensor.stride(dimension) : 0;
}

// The rows of a (B,S,d) tensor, or of a (B,d) one that is the same for every token.
template <class T>
Rows<T> rows(const Launch& launch, const Tensor& tensor) {
  return {launch.data<T>(tensor), stride_of(tensor, 0), tensor.dim() == 3 ? stride_of(tensor, 1) : 0};
}

inline Tensor new_floats(const Tensor& like, const std::vector<int64_t>& sizes) {
  return torch::stable::new_empty(like, sizes, ScalarType::Float);
}

inline void check_same_shape(const char* name, const Tensor& tensor, const char* like_name, const Tensor& like) {
  bool same = tensor.dim() == like.dim() && tensor.scalar_type() == like.scalar_type();
  for (int64_t i = 0; same && i < like.dim(); ++i) same = tensor.size(i) == like.size(i);
  STD_TORCH_CHECK(same, name, " must be like ", like_name);
}

// modulation must be (B,d) or (B,S,d), x being (B,S,d).
inline void check_modulation(const char* name, const Tensor& modulation, const Tensor& x) {
  const bool per_token = modulation.dim() == 3 && modulation.size(1) == x.size(1);
  STD_TORCH_CHECK((modulation.dim() == 2 || per_token) && modulation.size(0) == x.size(0) &&
                      modulation.size(modulation.dim() - 1) == x.size(2),
                  name, " must be (B,d) or (B,S,d)");
}

inline void check_rows(const char* name, const Tensor& x) {
  STD_TORCH_CHECK(x.dim() == 3, name, " must be (B,S,d)");
  STD_TORCH_CHECK(x.size(0) <= most_samples, name, " must have at most ", most_samples, " samples");
}

}  // namespace fym::gpu
