// Every op's schema, once. The implementations register themselves: csrc/cpu for the CPU.

#include <torch/csrc/stable/library.h>

#include "cpu/isa.h"

namespace {

// The instruction set of the CPU kernels: 0 portable, 1 AVX2, 2 AVX-512, 3 AVX-512 with bf16.
int64_t cpu_isa() { return static_cast<int64_t>(fym::best_isa()); }

}  // namespace

STABLE_TORCH_LIBRARY(fym_kernels, library) {
  library.def("cpu_isa() -> int");
  library.def("gated_residual(Tensor x, Tensor y, Tensor gate) -> Tensor");
  library.def(
      "gated_residual_backward(Tensor grad, Tensor y, Tensor gate, bool want_y, bool want_gate)"
      " -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(fym_kernels, CompositeExplicitAutograd, library) {
  library.impl("cpu_isa", TORCH_BOX(&cpu_isa));
}
