// Binding of modulated_norm for CUDA tensors.

#include "modulated_norm.cuh"

#include "binding.h"

namespace fym::gpu {

static void check_width(const char* name, const Tensor& x) {
  check_rows(name, x);
  STD_TORCH_CHECK(x.size(2) <= norm_most_width, name, " must have rows of at most ", norm_most_width,
                  " channels on the cuda backend, got ", x.size(2));
}

static std::tuple<Tensor, Tensor, Tensor> modulated_norm_cuda(Tensor x, Tensor scale, Tensor shift, double eps) {
  check_width("x", x);
  check_modulation("scale", scale, x);
  check_modulation("shift", shift, x);
  Launch launch(x);
  x = with_dense_rows(x);
  scale = with_dense_rows(float_or_like(scale, x)), shift = with_dense_rows(float_or_like(shift, x));
  if (scale.scalar_type() != shift.scalar_type())
    scale = to_type(scale, ScalarType::Float), shift = to_type(shift, ScalarType::Float);
  const int64_t batch = x.size(0), tokens = x.size(1), width = x.size(2);
  Tensor out = torch::stable::new_empty(x, x.sizes());
  Tensor mean = new_floats(x, {batch, tokens}), rstd = new_floats(x, {batch, tokens});
  if (width == 0) torch::stable::zero_(mean), torch::stable::zero_(rstd);
  with_storage_types(x, scale, [&](auto storage, auto modulation) {
    using T = decltype(storage);
    using M = decltype(modulation);
    modulated_norm<T, M>({launch.data<T>(out), launch.data<float>(mean), launch.data<float>(rstd),
                          rows<const T>(launch, x), rows<const M>(launch, scale), rows<const M>(launch, shift),
                          batch, tokens, width, static_cast<float>(eps)},
                         launch);
  });
  return {out, mean, rstd};
}

// The gradients of x, scale and shift (the last in float32); one that is not wanted comes back empty.
static std::tuple<Tensor, Tensor, Tensor> modulated_norm_backward_cuda(
    Tensor grad, Tensor x, Tensor scale, Tensor mean, Tensor rstd, bool shift_per_token, bool want_x,
    bool want_scale, bool want_shift) {
  check_width("x", x);
  check_same_shape("grad", grad, "x", x);
  check_modulation("scale", scale, x);
  Launch launch(x);
  const ScalarType scale_type = scale.scalar_type();
  grad = with_dense_rows(grad), x = with_dense_rows(x), scale = with_dense_rows(float_or_like(scale, x));
  mean = torch::stable::contiguous(mean), rstd = torch::stable::contiguous(rstd);
  const int64_t batch = x.size(0), tokens = x.size(1), width = x.size(2);
  const bool sum_scale = want_scale && scale.dim() == 2, sum_shift = want_shift && !shift_per_token;
  Tensor grad_x = want_x ? torch::stable::new_empty(x, x.sizes()) : torch::stable::new_empty(x, {0});
  Tensor grad_scale =
      want_scale ? torch::stable::new_empty(scale, scale.sizes()) : torch::stable::new_empty(scale, {0});
  Tensor grad_shift = !want_shift       ? new_floats(x, {0})
                      : shift_per_token ? new_floats(x, {batch, tokens, width})
                                        : new_floats(x, {batch, width});
  const bool sums = sum_scale || sum_shift;
  Tensor partials = new_floats(x, {sums ? batch * norm_parts(tokens, true).count * 2 * width : 0});
  with_storage_types(x, scale, [&](auto storage, auto modulation) {
    using T = decltype(storage);
    using M = decltype(modulation);
    ModulatedNormBackward<T, M> a{};
    if (want_x) a.grad_x = launch.data<T>(grad_x);
    if (want_scale && !sum_scale) a.grad_scale = launch.data<M>(grad_scale);
    if (want_shift && !sum_shift) a.grad_shift = launch.data<float>(grad_shift);
    if (sums) a.partials = launch.data<float>(partials);
    a.grad = rows<const T>(launch, grad), a.x = rows<const T>(launch, x), a.scale = rows<const M>(launch, scale);
    a.mean = launch.data<const float>(mean), a.rstd = launch.data<const float>(rstd);
    a.batch = batch, a.tokens = tokens, a.width = width;
    modulated_norm_backward<T, M>(a, sums, sum_scale ? launch.data<M>(grad_scale) : nullptr,
                                  sum_shift ? launch.data<float>(grad_shift) : nullptr, launch);
  });
  return {grad_x, to_type(grad_scale, scale_type), grad_shift};
}

}  // namespace fym::gpu

FYM_CUDA_LIBRARY(library) {
  library.impl("modulated_norm", TORCH_BOX(&fym::gpu::modulated_norm_cuda));
  library.impl("modulated_norm_backward", TORCH_BOX(&fym::gpu::modulated_norm_backward_cuda));
}
