// Binding of gated_residual for CUDA tensors.

#include "gated_residual.cuh"

#include "binding.h"

namespace fym::gpu {

static Tensor gated_residual_cuda(Tensor x, Tensor y, Tensor gate) {
  check_rows("x", x);
  check_same_shape("y", y, "x", x);
  check_modulation("gate", gate, x);
  Launch launch(x);
  x = with_dense_rows(x), y = with_dense_rows(y), gate = with_dense_rows(float_or_like(gate, x));
  Tensor out = torch::stable::new_empty(x, x.sizes());
  with_storage_types(x, gate, [&](auto storage, auto gate_storage) {
    using T = decltype(storage);
    using G = decltype(gate_storage);
    gated_residual<T, G>({rows<T>(launch, out), rows<const T>(launch, x), rows<const T>(launch, y),
                          rows<const G>(launch, gate), x.size(0), x.size(1), x.size(2)},
                         launch);
  });
  return out;
}

// The gradients of y and gate; one that is not wanted comes back empty.
static std::tuple<Tensor, Tensor> gated_residual_backward_cuda(
    Tensor grad, Tensor y, Tensor gate, bool want_y, bool want_gate) {
  check_rows("grad", grad);
  check_same_shape("y", y, "grad", grad);
  check_modulation("gate", gate, grad);
  Launch launch(grad);
  const ScalarType gate_type = gate.scalar_type();
  grad = with_dense_rows(grad), y = with_dense_rows(y), gate = with_dense_rows(float_or_like(gate, grad));
  const int64_t batch = grad.size(0), tokens = grad.size(1), width = grad.size(2);
  const bool shared_gate = gate.dim() == 2, sums = want_gate && shared_gate;
  Tensor grad_y = want_y ? torch::stable::new_empty(y, y.sizes()) : torch::stable::new_empty(y, {0});
  Tensor grad_gate =
      want_gate ? torch::stable::new_empty(gate, gate.sizes()) : torch::stable::new_empty(gate, {0});
  Tensor partials = new_floats(grad, {sums ? batch * gate_parts(tokens).count * width : 0});
  with_storage_types(grad, gate, [&](auto storage, auto gate_storage) {
    using T = decltype(storage);
    using G = decltype(gate_storage);
    GatedResidualBackward<T, G> a{};
    if (want_y) a.grad_y = rows<T>(launch, grad_y);
    if (want_gate && !shared_gate) a.grad_gate = rows<G>(launch, grad_gate);
    if (sums) a.partials = launch.data<float>(partials);
    a.grad = rows<const T>(launch, grad), a.y = rows<const T>(launch, y), a.gate = rows<const G>(launch, gate);
    a.batch = batch, a.tokens = tokens, a.width = width;
    gated_residual_backward<T, G>(a, sums ? launch.data<G>(grad_gate) : nullptr, launch);
  });
  return {grad_y, to_type(grad_gate, gate_type)};
}

}  // namespace fym::gpu

FYM_CUDA_LIBRARY(library) {
  library.impl("gated_residual", TORCH_BOX(&fym::gpu::gated_residual_cuda));
  library.impl("gated_residual_backward", TORCH_BOX(&fym::gpu::gated_residual_backward_cuda));
}
