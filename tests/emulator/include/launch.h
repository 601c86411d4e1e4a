// The emulator's side of csrc/cuda/launch.h: the bindings of csrc/cuda run as ops on CPU tensors, in a namespace of
// their own. Each call starts afresh, knows of the tensors it was given, and raises what went wrong.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <type_traits>

#include "cuda_emulator.h"

#define FYM_CUDA_LIBRARY(library) STABLE_TORCH_LIBRARY_IMPL(fym_emulated, CPU, library)

namespace fym::gpu {

class Launch {
 public:
  explicit Launch(const torch::stable::Tensor&) { emulator::restart(); }

  template <class T>
  T* data(const torch::stable::Tensor& tensor) const {
    int64_t last = 0;
    for (int64_t i = 0; i < tensor.dim(); ++i) last += std::max<int64_t>(0, tensor.size(i) - 1) * tensor.stride(i);
    if (tensor.numel() > 0) emulator::declare(tensor.data_ptr(), (last + 1) * sizeof(T), !std::is_const_v<T>);
    return static_cast<T*>(tensor.data_ptr());
  }

  template <class Arguments>
  void operator()(void (*kernel)(Arguments), dim3 grid, unsigned threads, size_t shared, const Arguments& arguments) {
    emulator::run(grid, threads, shared, [&] { kernel(arguments); });
    STD_TORCH_CHECK(emulator::error().empty(), "on the emulator: ", emulator::error());
  }
};

}  // namespace fym::gpu
