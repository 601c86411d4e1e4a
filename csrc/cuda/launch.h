// How a binding reaches the GPU: the tensors' device, torch's current stream there, and launches that report errors.
// The emulator in tests/emulator has a header of the same name, so that the bindings run there as they are.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#define FYM_CUDA_LIBRARY(library) STABLE_TORCH_LIBRARY_IMPL(fym_kernels, CUDA, library)

namespace fym::gpu {

class Launch {
 public:
  explicit Launch(const torch::stable::Tensor& like) : guard_(like.get_device_index()) {
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(like.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  template <class T>
  T* data(const torch::stable::Tensor& tensor) const {
    return static_cast<T*>(tensor.data_ptr());
  }

  template <class Arguments>
  void operator()(void (*kernel)(Arguments), dim3 grid, unsigned threads, size_t shared, const Arguments& arguments) {
    kernel<<<grid, threads, shared, stream_>>>(arguments);
    const cudaError_t error = cudaGetLastError();
    STD_TORCH_CHECK(error == cudaSuccess, "CUDA launch failed: ", cudaGetErrorString(error));
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
};

}  // namespace fym::gpu
