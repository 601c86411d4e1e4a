// modulated_norm: out = n (1 + scale) + shift with n = (x - mean) rstd over the row. Backward in one pass over grad
// and x: with g = grad (1 + scale), grad_x = rstd (g - mean(g) - n mean(g n)), grad_scale = grad n and grad_shift =
// grad (both summed over the tokens that share them). A row is read again from the L1 cache.

#ifdef FYM_ISA

namespace fym::FYM_ISA {

template <class T, class M>
void modulated_norm_row(
    T* out, float* mean_out, float* rstd_out, const T* x, const M* scale, const M* shift, int64_t d, float eps) {
  Vec total{}, more{};
  int64_t i = 0;
  for (; i + 2 * Vec::width <= d; i += 2 * Vec::width) {
    total = total + Vec::load(x + i);
    more = more + Vec::load(x + i + Vec::width);
  }
  each_vec(d - i, [&](int64_t j, auto n) { total = total + load(x + i + j, n); });
  const float mean = sum(total + more) / static_cast<float>(d);
  const Vec centre = Vec::all(mean);
  Vec square{}, other{};
  for (i = 0; i + 2 * Vec::width <= d; i += 2 * Vec::width) {
    const Vec off = Vec::load(x + i) - centre, next = Vec::load(x + i + Vec::width) - centre;
    square = fma(off, off, square);
    other = fma(next, next, other);
  }
  float squares = sum(square + other);
  for (; i < d; ++i) {  // the lanes beyond the row must not count
    const float off = portable::to_float(x[i]) - mean;
    squares += off * off;
  }
  const float rstd = 1 / std::sqrt(squares / static_cast<float>(d) + eps);
  *mean_out = mean, *rstd_out = rstd;
  const Vec factor = Vec::all(rstd), one = Vec::all(1);
  each_vec(d, [&](int64_t i, auto k) {
    const Vec n = (load(x + i, k) - centre) * factor;
    store(fma(n, one + load(scale + i, k), load(shift + i, k)), out + i, k);
  });
}

// Outputs that are null are not wanted; scale_sum and shift_sum are added to.
template <class T, class M>
void modulated_norm_backward_row(
    T* grad_x, M* grad_scale, float* grad_shift, float* scale_sum, float* shift_sum, const T* grad, const T* x,
    const M* scale, float mean, float rstd, int64_t d) {
  const Vec centre = Vec::all(mean), factor = Vec::all(rstd), one = Vec::all(1);
  Vec sum_g{}, sum_gn{};
  each_vec(d, [&](int64_t i, auto k) {
    const Vec dy = load(grad + i, k), n = (load(x + i, k) - centre) * factor;
    if (grad_x) {
      const Vec g = dy * (one + load(scale + i, k));  // zero beyond the row
      sum_g = sum_g + g;
      sum_gn = fma(g, n, sum_gn);
      __builtin_prefetch(grad_x + i, 1);  // else the sums wait behind its stores, which miss the cache
    }
    if (grad_scale) store(dy * n, grad_scale + i, k);
    if (grad_shift) store(dy, grad_shift + i, k);
    if (scale_sum) store(fma(dy, n, load(scale_sum + i, k)), scale_sum + i, k);
    if (shift_sum) store(dy + load(shift_sum + i, k), shift_sum + i, k);
  });
  if (!grad_x) return;
  const Vec mean_g = Vec::all(sum(sum_g) / static_cast<float>(d));
  const Vec mean_gn = Vec::all(sum(sum_gn) / static_cast<float>(d));
  each_vec(d, [&](int64_t i, auto k) {
    const Vec g = load(grad + i, k) * (one + load(scale + i, k)), n = (load(x + i, k) - centre) * factor;
    store(factor * fnma(n, mean_gn, g - mean_g), grad_x + i, k);
  });
}

}  // namespace fym::FYM_ISA

#else

#include <cmath>

#define FYM_KERNEL_FILE "modulated_norm.cpp"
#include "vec.h"

#include <tuple>
#include <vector>

#include "binding.h"

namespace fym {
namespace {

// Tokens whose modulation gradients are summed together: fixed, so that the result does not depend on the threads.
constexpr int64_t tokens_per_part = 32;

void check(const Tensor& x, const char* name, const Tensor& modulation) {
  STD_TORCH_CHECK(x.dim() == 3, "x must be (B,S,d)");
  const bool per_token = modulation.dim() == 3 && modulation.size(1) == x.size(1);
  STD_TORCH_CHECK(
      (modulation.dim() == 2 || per_token) && modulation.size(0) == x.size(0) &&
          modulation.size(modulation.dim() - 1) == x.size(2),
      name, " must be (B,d) or (B,S,d)");
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> modulated_norm(Tensor x, Tensor scale, Tensor shift, double eps) {
  check(x, "scale", scale), check(x, "shift", shift);
  const int64_t tokens = x.size(1), d = x.size(2), rows = x.size(0) * tokens;
  if (scale.scalar_type() != shift.scalar_type())  // one of them small, as a rule
    scale = torch::stable::to(scale, ScalarType::Float), shift = torch::stable::to(shift, ScalarType::Float);
  x = with_dense_rows(x), scale = with_dense_rows(scale), shift = with_dense_rows(shift);
  Tensor out = torch::stable::new_empty(x, x.sizes());
  Tensor mean = torch::stable::new_empty(x, {x.size(0), tokens}, ScalarType::Float);
  Tensor rstd = torch::stable::new_empty(x, {x.size(0), tokens}, ScalarType::Float);
  with_storage_type("x", x, [&](auto storage) {
    with_storage_type("scale", scale, [&](auto modulation) {
      using T = decltype(storage);
      using M = decltype(modulation);
      const Rows<T> out_rows(out), x_rows(x);
      const Rows<M> scale_rows(scale), shift_rows(shift);
      float *means = data_of<float>(mean), *rstds = data_of<float>(rstd);
      const auto row = FYM_DISPATCH(modulated_norm_row<T, M>);
      torch::stable::parallel_for(0, rows, grain_rows(d), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t b = i / tokens, s = i % tokens;
          row(out_rows(b, s), means + i, rstds + i, x_rows(b, s), scale_rows(b, s), shift_rows(b, s), d,
              static_cast<float>(eps));
        }
      });
    });
  });
  return {out, mean, rstd};
}

// The gradients of x, scale and, in float32, shift; one that is not wanted comes back empty.
std::tuple<Tensor, Tensor, Tensor> modulated_norm_backward(
    Tensor grad, Tensor x, Tensor scale, Tensor mean, Tensor rstd, bool shift_per_token, bool want_x,
    bool want_scale, bool want_shift) {
  check(x, "scale", scale);
  check_like("grad", grad, "x", x);
  const int64_t batch = x.size(0), tokens = x.size(1), d = x.size(2);
  grad = with_dense_rows(grad), x = with_dense_rows(x), scale = with_dense_rows(scale);
  mean = torch::stable::contiguous(mean), rstd = torch::stable::contiguous(rstd);
  const auto make = [](const Tensor& like, bool wanted, std::vector<int64_t> shape, ScalarType type) {
    return torch::stable::new_empty(like, wanted ? shape : std::vector<int64_t>{0}, type);
  };
  const bool scale_per_token = scale.dim() == 3;
  const std::vector<int64_t> per_token{batch, tokens, d}, per_sample{batch, d};
  Tensor grad_x = make(x, want_x, per_token, x.scalar_type());
  Tensor grad_scale = make(x, want_scale, scale_per_token ? per_token : per_sample, scale.scalar_type());
  Tensor grad_shift = make(x, want_shift, shift_per_token ? per_token : per_sample, ScalarType::Float);
  const bool sum_scale = want_scale && !scale_per_token, sum_shift = want_shift && !shift_per_token;
  const int64_t parts = (tokens + tokens_per_part - 1) / tokens_per_part;
  std::vector<float> scale_sums(sum_scale ? batch * parts * d : 0), shift_sums(sum_shift ? batch * parts * d : 0);

  with_storage_type("x", x, [&](auto storage) {
    with_storage_type("scale", scale, [&](auto modulation) {
      using T = decltype(storage);
      using M = decltype(modulation);
      const Rows<T> grad_rows(grad), x_rows(x), grad_x_rows = want_x ? Rows<T>(grad_x) : Rows<T>();
      const Rows<M> scale_rows(scale);
      const Rows<M> grad_scale_rows = want_scale && scale_per_token ? Rows<M>(grad_scale) : Rows<M>();
      const Rows<float> grad_shift_rows =
          want_shift && shift_per_token ? Rows<float>(grad_shift) : Rows<float>();
      const float *means = data_of<float>(mean), *rstds = data_of<float>(rstd);
      const auto row = FYM_DISPATCH(modulated_norm_backward_row<T, M>);
      torch::stable::parallel_for(0, batch * parts, 1, [&](int64_t begin, int64_t end) {
        for (int64_t part = begin; part < end; ++part) {
          const int64_t b = part / parts, first = part % parts * tokens_per_part;
          float* scale_sum = sum_scale ? scale_sums.data() + part * d : nullptr;
          float* shift_sum = sum_shift ? shift_sums.data() + part * d : nullptr;
          for (int64_t s = first; s < std::min(tokens, first + tokens_per_part); ++s)
            row(grad_x_rows(b, s), grad_scale_rows(b, s), grad_shift_rows(b, s), scale_sum, shift_sum,
                grad_rows(b, s), x_rows(b, s), scale_rows(b, s), means[b * tokens + s], rstds[b * tokens + s],
                d);
        }
      });
      for (int64_t b = 0; b < batch; ++b) {
        const int64_t at = b * parts * d;
        if (sum_scale)
          FYM_DISPATCH(sum_rows<M>)(data_of<M>(grad_scale) + b * d, scale_sums.data() + at, parts, d);
        if (sum_shift)
          FYM_DISPATCH(sum_rows<float>)(data_of<float>(grad_shift) + b * d, shift_sums.data() + at, parts, d);
      }
    });
  });
  return {grad_x, grad_scale, grad_shift};
}

}  // namespace fym

STABLE_TORCH_LIBRARY_IMPL(fym_kernels, CPU, library) {
  library.impl("modulated_norm", TORCH_BOX(&fym::modulated_norm));
  library.impl("modulated_norm_backward", TORCH_BOX(&fym::modulated_norm_backward));
}

#endif
