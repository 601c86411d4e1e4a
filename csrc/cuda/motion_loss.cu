// Binding of motion_loss for CUDA tensors.

#include "motion_loss.cuh"

#include "binding.h"

namespace fym::gpu {

// The clip itself when the pixels of a frame are dense and in order, else a contiguous copy.
static Tensor with_dense_frames(const Tensor& x) {
  const int64_t height = x.size(3), width = x.size(4);
  const bool dense = (width <= 1 || x.stride(4) == 1) && (height <= 1 || x.stride(3) == width);
  return dense ? x : torch::stable::contiguous(x);
}

template <class T>
static Clip<const T> clip_of(const Launch& launch, const Tensor& x) {
  return {launch.data<const T>(x), stride_of(x, 0), stride_of(x, 1), stride_of(x, 2)};
}

static ClipSize size_of(const Tensor& x) { return {x.size(0), x.size(1), x.size(2), x.size(3) * x.size(4)}; }

static void check_clips(const Tensor& pred, const Tensor& target) {
  STD_TORCH_CHECK(pred.dim() == 5 && pred.numel() > 0, "pred must be (B,C,T,h,w) and not empty");
  bool same = target.dim() == 5;
  for (int64_t i = 0; same && i < 5; ++i) same = target.size(i) == pred.size(i);
  STD_TORCH_CHECK(same, "target must have the shape of pred");
  STD_TORCH_CHECK(pred.size(0) <= most_samples && pred.size(1) <= most_samples, "pred must have at most ",
                  most_samples, " samples and channels");
}

static std::tuple<Tensor, Tensor, Tensor> motion_loss_cuda(
    Tensor pred, Tensor target, std::optional<Tensor> weight, double motion_weight) {
  check_clips(pred, target);
  Launch launch(pred);
  if (pred.scalar_type() != target.scalar_type())  // both as float32: a copy, but rare
    pred = to_type(pred, ScalarType::Float), target = to_type(target, ScalarType::Float);
  pred = with_dense_frames(pred), target = with_dense_frames(target);
  if (weight) weight = torch::stable::contiguous(to_type(*weight, ScalarType::Float));
  const ClipSize size = size_of(pred);
  Tensor loss = new_floats(pred, {}), coefficients = new_floats(pred, {size.batch, 3, size.frames});
  Tensor error_scale = new_floats(pred, {size.batch});
  with_storage_type("pred", pred, [&](auto storage) {
    using T = decltype(storage);
    const int64_t width = motion_statistics * size.frames;
    const Tensor partials = new_floats(pred, {size.batch * size.channels * motion_tiles<T>(size) * width});
    const Tensor sums = new_floats(pred, {size.batch * width});
    const MotionFinish finish{launch.data<const float>(sums),
                              weight ? launch.data<const float>(*weight) : nullptr,
                              launch.data<float>(loss),
                              launch.data<float>(coefficients),
                              launch.data<float>(error_scale),
                              size,
                              static_cast<float>(motion_weight)};
    motion_loss<T>({clip_of<T>(launch, pred), clip_of<T>(launch, target), launch.data<float>(partials), size, 0},
                   launch.data<float>(sums), finish, launch);
  });
  return {loss, coefficients, error_scale};
}

// The gradient of one side, in its dtype.
static Tensor motion_loss_backward_cuda(
    Tensor grad_loss, Tensor pred, Tensor target, Tensor coefficients, Tensor error_scale, std::string side) {
  check_clips(pred, target);
  STD_TORCH_CHECK(side == "pred" || side == "target", "side must be pred or target");
  Launch launch(pred);
  // the loss is symmetric in its clips, but for the weight of each one's own difference
  const bool for_target = side == "target";
  Tensor own = for_target ? target : pred, other = for_target ? pred : target;
  const ScalarType type = own.scalar_type();
  if (own.scalar_type() != other.scalar_type())
    own = to_type(own, ScalarType::Float), other = to_type(other, ScalarType::Float);
  own = with_dense_frames(own), other = with_dense_frames(other);
  grad_loss = torch::stable::contiguous(to_type(grad_loss, ScalarType::Float));
  coefficients = torch::stable::contiguous(coefficients), error_scale = torch::stable::contiguous(error_scale);
  const ClipSize size = size_of(own);
  Tensor out = torch::stable::new_empty(own, own.sizes());
  with_storage_type("pred", own, [&](auto storage) {
    using T = decltype(storage);
    const float* factors = launch.data<const float>(coefficients);
    motion_loss_backward<T>({clip_of<T>(launch, own), clip_of<T>(launch, other),
                             factors + (for_target ? 2 * size.frames : 0), factors + size.frames,
                             launch.data<const float>(error_scale), launch.data<const float>(grad_loss),
                             launch.data<T>(out), size, 0},
                            launch);
  });
  return to_type(out, type);
}

}  // namespace fym::gpu

FYM_CUDA_LIBRARY(library) {
  library.impl("motion_loss", TORCH_BOX(&fym::gpu::motion_loss_cuda));
  library.impl("motion_loss_backward", TORCH_BOX(&fym::gpu::motion_loss_backward_cuda));
}
