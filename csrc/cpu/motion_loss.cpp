// motion_loss: weighted squared error plus the direction error of adjacent frame differences.
//
// The gradient needs the cosine of every pair of frames, which is known only after everything has been read. So
// forward keeps three numbers a pair; backward reads both tensors again and writes the gradient. Work is cut
// into blocks of pixels of one channel, through all frames: a frame is still in the cache when the next one wants
// it again, and the sums do not depend on the threads.

#ifdef FYM_ISA

namespace fym::FYM_ISA {

// Two vectors of a frame. What is done to them does not mind their order, as long as it is the same for both
// tensors, and bf16 splits into pairs in half the time it takes in order.
template <class P, class Q>
constexpr bool as_pairs = std::is_same_v<P, bf16> && std::is_same_v<Q, bf16>;

template <bool pairs, class T>
inline Pairs load_two(const T* p) {
  if constexpr (pairs) return load_pairs(p);
  return {Vec::load(p), Vec::load(p + Vec::width)};
}

template <bool pairs, class T>
inline void store_two(Pairs v, T* p) {
  if constexpr (pairs) {
    store_pairs(v, p);
  } else {
    v.first.store(p);
    v.second.store(p + Vec::width);
  }
}

// Numbers to fetch ahead: the tensors are larger than the cache, and the processor's own fetching starts anew at
// every page.
constexpr int64_t ahead = 1024;

template <int write, class T>
inline void prefetch_two(T* p) {
  __builtin_prefetch(p, write);
  if constexpr (sizeof(T) * Vec::width >= 64) __builtin_prefetch(p + Vec::width, write);
}

struct MotionSums {
  Vec error{}, ab{}, aa{}, bb{};

  void add(Vec p, Vec q, Vec p_before, Vec q_before) {
    const Vec e = p - q, a = p - p_before, b = q - q_before;
    error = fma(e, e, error);
    ab = fma(a, b, ab);
    aa = fma(a, a, aa);
    bb = fma(b, b, bb);
  }
};

// sums: squared error of the frame; of the differences a, b to the frame before: a.b, a.a, b.b.
template <class P, class Q>
void motion_sums(float* sums, const P* p, const Q* q, const P* p_before, const Q* q_before, int64_t pixels) {
  constexpr bool pairs = as_pairs<P, Q>;
  MotionSums one, two;
  int64_t i = 0;
  for (; i + 2 * Vec::width <= pixels; i += 2 * Vec::width) {
    prefetch_two<0>(p + i + ahead), prefetch_two<0>(q + i + ahead);
    const Pairs pv = load_two<pairs>(p + i), qv = load_two<pairs>(q + i);
    const Pairs pb = load_two<pairs>(p_before + i), qb = load_two<pairs>(q_before + i);
    one.add(pv.first, qv.first, pb.first, qb.first);
    two.add(pv.second, qv.second, pb.second, qb.second);
  }
  p += i, q += i, p_before += i, q_before += i;
  each_vec(pixels - i, [&](int64_t j, auto n) {
    one.add(load(p + j, n), load(q + j, n), load(p_before + j, n), load(q_before + j, n));
  });
  sums[0] = sum(one.error + two.error), sums[1] = sum(one.ab + two.ab);
  sums[2] = sum(one.aa + two.aa), sums[3] = sum(one.bb + two.bb);
}

// With the pair gradient g_t = own_t (p_t - p_t-1) + other_t (q_t - q_t-1), frame t gets
// error_scale (p_t - q_t) + g_t - g_t+1. `pair` holds g_t and is left with g_t+1, in an order of its own.
template <class P, class Q>
void motion_gradient(
    P* grad, float* pair, const P* p, const Q* q, const P* p_after, const Q* q_after, float error_scale,
    float own, float other, int64_t pixels) {
  constexpr bool pairs = as_pairs<P, Q>;
  const Vec scale = Vec::all(error_scale), own_factor = Vec::all(own), other_factor = Vec::all(other);
  const auto step = [&](Vec& g, Vec pv, Vec qv, Vec pa, Vec qa) {
    const Vec next = fma(own_factor, pa - pv, other_factor * (qa - qv));
    const Vec out = fma(scale, pv - qv, g) - next;
    g = next;
    return out;
  };
  int64_t i = 0;
  for (; i + 2 * Vec::width <= pixels; i += 2 * Vec::width) {
    const Pairs pv = load_two<pairs>(p + i), qv = load_two<pairs>(q + i);
    prefetch_two<0>(p_after + i + ahead), prefetch_two<0>(q_after + i + ahead);
    prefetch_two<1>(grad + i + ahead);
    const Pairs pa = load_two<pairs>(p_after + i), qa = load_two<pairs>(q_after + i);
    Vec one = Vec::load(pair + i), two = Vec::load(pair + i + Vec::width);
    const Vec first = step(one, pv.first, qv.first, pa.first, qa.first);
    const Vec second = step(two, pv.second, qv.second, pa.second, qa.second);
    one.store(pair + i), two.store(pair + i + Vec::width);
    store_two<pairs>({first, second}, grad + i);
  }
  grad += i, pair += i, p += i, q += i, p_after += i, q_after += i;
  each_vec(pixels - i, [&](int64_t j, auto n) {
    Vec g = load(pair + j, n);
    store(step(g, load(p + j, n), load(q + j, n), load(p_after + j, n), load(q_after + j, n)), grad + j, n);
    store(g, pair + j, n);
  });
}

}  // namespace fym::FYM_ISA

#else

#include <type_traits>

#define FYM_KERNEL_FILE "motion_loss.cpp"
#include "vec.h"

#include <cmath>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "binding.h"

namespace fym {
namespace {

constexpr double smallest_norm = 1e-8;     // as in the reference: a pair of equal frames has no direction
constexpr int64_t pixels_per_block = 8192;  // of one frame: two of them, of both tensors, stay in the L2 cache

// The frames of (B,C,T,h,w) with dense pixels.
template <class T>
struct Frames {
  T* data;
  int64_t stride_b, stride_c, stride_t;

  explicit Frames(const Tensor& tensor)
      : data(data_of<T>(tensor)),
        stride_b(tensor.stride(0)),
        stride_c(tensor.stride(1)),
        stride_t(tensor.stride(2)) {}

  T* operator()(int64_t b, int64_t c, int64_t t) const {
    return data + b * stride_b + c * stride_c + t * stride_t;
  }
};

struct Latents {
  int64_t batch, channels, frames, pixels, blocks;

  explicit Latents(const Tensor& x)
      : batch(x.size(0)),
        channels(x.size(1)),
        frames(x.size(2)),
        pixels(x.size(3) * x.size(4)),
        blocks((pixels + pixels_per_block - 1) / pixels_per_block) {}

  // f(b, c, first pixel, pixels) for every block of every channel; unit: the number of the block
  template <class F>
  void each_block(F f) const {
    torch::stable::parallel_for(0, batch * channels * blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t first = unit % blocks * pixels_per_block;
        f(unit, unit / blocks / channels, unit / blocks % channels, first,
          std::min(pixels_per_block, pixels - first));
      }
    });
  }
};

// The tensor itself when the pixels of a frame are dense and in order, else a contiguous copy.
Tensor with_dense_frames(const Tensor& x) {
  const int64_t height = x.size(3), width = x.size(4);
  const bool dense = (width <= 1 || x.stride(4) == 1) && (height <= 1 || x.stride(3) == width);
  return dense ? x : torch::stable::contiguous(x);
}

void check(const Tensor& pred, const Tensor& target) {
  STD_TORCH_CHECK(pred.dim() == 5 && pred.numel() > 0, "pred must be (B,C,T,h,w) and not empty");
  bool same = target.dim() == 5;
  for (int64_t i = 0; same && i < 5; ++i) same = target.size(i) == pred.size(i);
  STD_TORCH_CHECK(same, "target must have the shape of pred");
}

void check_numbers(const char* name, const Tensor& tensor, std::vector<int64_t> shape) {
  bool same = tensor.dim() == static_cast<int64_t>(shape.size()) && tensor.scalar_type() == ScalarType::Float;
  for (size_t i = 0; same && i < shape.size(); ++i) same = tensor.size(i) == shape[i];
  STD_TORCH_CHECK(same, name, " must be float32 of the right shape");
}

}  // namespace

// The loss; coefficients (B,3,T): what a pair's own, the other tensor's and, for the target, its own difference is
// multiplied with in the gradient; error_scale (B,): 2 weight / (N B).
std::tuple<Tensor, Tensor, Tensor> motion_loss(
    Tensor pred, Tensor target, std::optional<Tensor> weight, double motion_weight) {
  check(pred, target);
  pred = with_dense_frames(pred), target = with_dense_frames(target);
  const Latents latents(pred);
  const int64_t batch = latents.batch, frames = latents.frames;
  if (weight) check_numbers("weight", *weight, {batch});
  Tensor loss = torch::stable::new_empty(pred, {}, ScalarType::Float);
  Tensor coefficients = torch::stable::new_empty(pred, {batch, 3, frames}, ScalarType::Float);
  Tensor error_scale = torch::stable::new_empty(pred, {batch}, ScalarType::Float);

  std::vector<float> sums(batch * latents.channels * latents.blocks * frames * 4);
  with_storage_type("pred", pred, [&](auto pred_storage) {
    with_storage_type("target", target, [&](auto target_storage) {
      using P = decltype(pred_storage);
      using Q = decltype(target_storage);
      const Frames<P> p(pred);
      const Frames<Q> q(target);
      const auto run = FYM_DISPATCH(motion_sums<P, Q>);
      latents.each_block([&](int64_t unit, int64_t b, int64_t c, int64_t first, int64_t pixels) {
        for (int64_t t = 0; t < frames; ++t) {
          const int64_t before = std::max<int64_t>(0, t - 1);  // the first frame's differences are not looked at
          run(sums.data() + (unit * frames + t) * 4, p(b, c, t) + first, q(b, c, t) + first,
              p(b, c, before) + first, q(b, c, before) + first, pixels);
        }
      });
    });
  });

  const double pair_weight = frames > 1 ? motion_weight / (batch * (frames - 1)) : 0;
  const double elements = static_cast<double>(pred.numel());
  const int64_t units = latents.channels * latents.blocks;
  double total = 0;
  for (int64_t b = 0; b < batch; ++b) {
    const double w = weight ? data_of<float>(*weight)[b * weight->stride(0)] : 1;
    data_of<float>(error_scale)[b] = static_cast<float>(2 * w / elements);
    float* out = data_of<float>(coefficients) + b * 3 * frames;
    for (int64_t t = 0; t < frames; ++t) {
      double sum[4] = {};
      for (int64_t unit = b * units; unit < (b + 1) * units; ++unit)
        for (int i = 0; i < 4; ++i) sum[i] += sums[(unit * frames + t) * 4 + i];
      total += w / elements * sum[0];
      out[t] = out[frames + t] = out[2 * frames + t] = 0;
      if (t == 0 || motion_weight == 0) continue;
      const double norm_p = std::max(std::sqrt(sum[2]), smallest_norm);
      const double norm_q = std::max(std::sqrt(sum[3]), smallest_norm);
      const double cosine = sum[1] / (norm_p * norm_q);
      total += pair_weight * (1 - cosine);
      // d(-cosine)/da = cosine a / |a|^2 - b / (|a| |b|); a clamped norm is a constant
      if (norm_p > smallest_norm) out[t] = static_cast<float>(pair_weight * cosine / (norm_p * norm_p));
      out[frames + t] = static_cast<float>(-pair_weight / (norm_p * norm_q));
      if (norm_q > smallest_norm)
        out[2 * frames + t] = static_cast<float>(pair_weight * cosine / (norm_q * norm_q));
    }
  }
  *data_of<float>(loss) = static_cast<float>(total);
  return {loss, coefficients, error_scale};
}

// The gradient of pred or of target; the loss is symmetric in them but for the weight of each one's own difference.
Tensor motion_loss_backward(
    Tensor grad_loss, Tensor pred, Tensor target, Tensor coefficients, Tensor error_scale, std::string side) {
  check(pred, target);
  STD_TORCH_CHECK(side == "pred" || side == "target", "side must be pred or target");
  const bool of_pred = side == "pred";
  const Tensor own = with_dense_frames(of_pred ? pred : target);
  const Tensor other = with_dense_frames(of_pred ? target : pred);
  const Latents latents(own);
  const int64_t frames = latents.frames;
  check_numbers("grad_loss", grad_loss, {});
  check_numbers("coefficients", coefficients, {latents.batch, 3, frames});
  check_numbers("error_scale", error_scale, {latents.batch});
  coefficients = torch::stable::contiguous(coefficients), error_scale = torch::stable::contiguous(error_scale);
  Tensor grad = torch::stable::new_empty(own, own.sizes());
  with_storage_type("own", own, [&](auto own_storage) {
    with_storage_type("other", other, [&](auto other_storage) {
      using P = decltype(own_storage);
      using Q = decltype(other_storage);
      const Frames<P> out(grad), p(own);
      const Frames<Q> q(other);
      const float factor = *data_of<float>(grad_loss);
      const auto run = FYM_DISPATCH(motion_gradient<P, Q>);
      latents.each_block([&](int64_t, int64_t b, int64_t c, int64_t first, int64_t pixels) {
        const float* numbers = data_of<float>(coefficients) + b * 3 * frames;
        const float *own_factor = numbers + (of_pred ? 0 : 2 * frames), *other_factor = numbers + frames;
        float pair[pixels_per_block] = {};
        for (int64_t t = 0; t < frames; ++t) {
          const bool last = t + 1 == frames;
          const int64_t after = last ? t : t + 1;
          run(out(b, c, t) + first, pair, p(b, c, t) + first, q(b, c, t) + first, p(b, c, after) + first,
              q(b, c, after) + first, factor * data_of<float>(error_scale)[b],
              last ? 0 : factor * own_factor[after], last ? 0 : factor * other_factor[after], pixels);
        }
      });
    });
  });
  return grad;
}

}  // namespace fym

STABLE_TORCH_LIBRARY_IMPL(fym_kernels, CPU, library) {
  library.impl("motion_loss", TORCH_BOX(&fym::motion_loss));
  library.impl("motion_loss_backward", TORCH_BOX(&fym::motion_loss_backward));
}

#endif
