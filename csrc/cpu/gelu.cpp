// gelu, tanh approximation: x (1 + tanh u) / 2 = x / (1 + e) with e = exp(-2 u), u = sqrt(2/pi) (x + 0.044715 x^3).
// Backward: with s = 1 / (1 + e), the derivative is s + x s (1 - s) 2 u'; 1 - s = e s, which does not cancel.

#ifdef FYM_ISA

namespace fym::FYM_ISA {

constexpr float cubic = 0.044715f;
constexpr float slope = 1.5957691216f;      // 2 sqrt(2/pi)
constexpr float slope_log2 = 2.3022081933f;  // the same times log2(e)
// Beyond, GELU is x or 0 to within 1e-24, and its slope 1 or 0. Held to it, e stays finite, and the slope far from
// the subnormals, which a processor multiplies a hundred times more slowly.
constexpr float farthest = 8.5f;

// e for x held to [-farthest, farthest]; NaN for NaN.
inline Vec gelu_exp(Vec held) {
  const Vec inner = fma(held * held, Vec::all(slope_log2 * cubic), Vec::all(slope_log2));
  return exp2(Vec{} - held * inner);
}

inline Vec gelu_hold(Vec x) { return min(Vec::all(farthest), max(Vec::all(-farthest), x)); }

template <class T>
void gelu_row(T* out, const T* x, int64_t n) {
  each_vec(n, [&](int64_t i, auto count) {
    const Vec v = load(x + i, count);
    const Vec e = gelu_exp(gelu_hold(v));
    store(max(Vec::all(-farthest), v) / (Vec::all(1.0f) + e), out + i, count);
  });
}

template <class T>
void gelu_backward_row(T* grad_x, const T* grad, const T* x, int64_t n) {
  each_vec(n, [&](int64_t i, auto count) {
    const Vec v = gelu_hold(load(x + i, count));
    const Vec e = gelu_exp(v), s = Vec::all(1.0f) / (Vec::all(1.0f) + e);
    const Vec inner_slope = fma(v * v, Vec::all(3 * slope * cubic), Vec::all(slope));
    const Vec derivative = fma(v * inner_slope * (e * s), s, s);
    store(load(grad + i, count) * derivative, grad_x + i, count);
  });
}

}  // namespace fym::FYM_ISA

#else

#define FYM_KERNEL_FILE "gelu.cpp"
#include "vec.h"

#include "binding.h"

namespace fym {

Tensor gelu(Tensor x) {
  x = torch::stable::contiguous(x);
  Tensor out = torch::stable::new_empty(x, x.sizes());
  with_storage_type("x", x, [&](auto storage) {
    using T = decltype(storage);
    T* to = data_of<T>(out);
    const T* from = data_of<T>(x);
    const auto row = FYM_DISPATCH(gelu_row<T>);
    torch::stable::parallel_for(0, x.numel(), grain_elements, [&](int64_t begin, int64_t end) {
      row(to + begin, from + begin, end - begin);
    });
  });
  return out;
}

Tensor gelu_backward(Tensor grad, Tensor x) {
  check_like("grad", grad, "x", x);
  grad = torch::stable::contiguous(grad), x = torch::stable::contiguous(x);
  Tensor grad_x = torch::stable::new_empty(x, x.sizes());
  with_storage_type("x", x, [&](auto storage) {
    using T = decltype(storage);
    T* to = data_of<T>(grad_x);
    const T *from = data_of<T>(grad), *at = data_of<T>(x);
    const auto row = FYM_DISPATCH(gelu_backward_row<T>);
    torch::stable::parallel_for(0, x.numel(), grain_elements, [&](int64_t begin, int64_t end) {
      row(to + begin, from + begin, at + begin, end - begin);
    });
  });
  return grad_x;
}

}  // namespace fym

STABLE_TORCH_LIBRARY_IMPL(fym_kernels, CPU, library) {
  library.impl("gelu", TORCH_BOX(&fym::gelu));
  library.impl("gelu_backward", TORCH_BOX(&fym::gelu_backward));
}

#endif
