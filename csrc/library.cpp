// Every op's schema, once. The implementations register themselves: csrc/cpu for the CPU.

#include <torch/csrc/stable/library.h>

#include "cpu/isa.h"

namespace {

// The instruction set of the CPU kernels: 0 portable, 1 AVX2, 2 AVX-512, 3 AVX-512 with bf16.
int64_t cpu_isa() { return static_cast<int64_t>(fym::best_isa()); }

// Holds the instruction set down to `most`; returns the one now in use.
int64_t limit_cpu_isa(int64_t most) {
  fym::isa_limit() = static_cast<int>(std::max<int64_t>(0, most));
  return cpu_isa();
}

}  // namespace

STABLE_TORCH_LIBRARY(fym_kernels, library) {
  library.def("cpu_isa() -> int");
  library.def("limit_cpu_isa(int most) -> int");
  library.def("gated_residual(Tensor x, Tensor y, Tensor gate) -> Tensor");
  library.def(
      "gated_residual_backward(Tensor grad, Tensor y, Tensor gate, bool want_y, bool want_gate)"
      " -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(fym_kernels, CompositeExplicitAutograd, library) {
  library.impl("cpu_isa", TORCH_BOX(&cpu_isa));
  library.impl("limit_cpu_isa", TORCH_BOX(&limit_cpu_isa));
}
