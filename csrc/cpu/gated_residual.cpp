// gated_residual: out = x + y * gate. Backward: grad_y = grad * gate, grad_gate = grad * y (summed over the
// tokens that share a gate), in one pass over grad and y. grad_x is grad itself and needs no kernel.

#ifdef FYM_ISA

namespace fym::FYM_ISA {

template <class T, class G>
void gated_residual_row(T* out, const T* x, const T* y, const G* gate, int64_t d) {
  each_vec(d, [&](int64_t i, auto n) {
    store(fma(load(y + i, n), load(gate + i, n), load(x + i, n)), out + i, n);
  });
}

// Each of grad_y, grad_gate and gate_sum (which is added to) may be null: then it is not wanted.
template <class T, class G>
void gated_residual_backward_row(
    T* grad_y, G* grad_gate, float* gate_sum, const T* grad, const T* y, const G* gate, int64_t d) {
  each_vec(d, [&](int64_t i, auto n) {
    const Vec g = load(grad + i, n);
    if (grad_y) store(g * load(gate + i, n), grad_y + i, n);
    if (grad_gate) store(g * load(y + i, n), grad_gate + i, n);
    if (gate_sum) store(fma(g, load(y + i, n), load(gate_sum + i, n)), gate_sum + i, n);
  });
}

}  // namespace fym::FYM_ISA

#else

#define FYM_KERNEL_FILE "gated_residual.cpp"
#include "vec.h"

#include <tuple>
#include <vector>

#include "binding.h"

namespace fym {

// Tokens whose gate gradients are summed together: fixed, so that the result does not depend on the threads.
constexpr int64_t tokens_per_part = 32;

void check(const Tensor& like, const char* name, const Tensor& y, const Tensor& gate) {
  STD_TORCH_CHECK(like.dim() == 3, name, " must be (B,S,d)");
  STD_TORCH_CHECK(y.dim() == 3 && y.scalar_type() == like.scalar_type(), "y must be like ", name);
  for (int64_t i = 0; i < 3; ++i) STD_TORCH_CHECK(y.size(i) == like.size(i), "y must be like ", name);
  const bool per_token = gate.dim() == 3 && gate.size(1) == like.size(1);
  STD_TORCH_CHECK(
      (gate.dim() == 2 || per_token) && gate.size(0) == like.size(0) &&
          gate.size(gate.dim() - 1) == like.size(2),
      "gate must be (B,d) or (B,S,d)");
}

Tensor gated_residual(Tensor x, Tensor y, Tensor gate) {
  check(x, "x", y, gate);
  const int64_t tokens = x.size(1), d = x.size(2), rows = x.size(0) * tokens;
  x = with_dense_rows(x), y = with_dense_rows(y), gate = with_dense_rows(gate);
  Tensor out = torch::stable::new_empty(x, x.sizes());
  with_storage_type("x", x, [&](auto storage) {
    with_storage_type("gate", gate, [&](auto gate_storage) {
      using T = decltype(storage);
      using G = decltype(gate_storage);
      const Rows<T> out_rows(out), x_rows(x), y_rows(y);
      const Rows<G> gate_rows(gate);
      const auto row = FYM_DISPATCH(gated_residual_row<T, G>);
      torch::stable::parallel_for(0, rows, grain_rows(d), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t b = i / tokens, s = i % tokens;
          row(out_rows(b, s), x_rows(b, s), y_rows(b, s), gate_rows(b, s), d);
        }
      });
    });
  });
  return out;
}

// The gradients of y and gate; one that is not wanted comes back empty.
std::tuple<Tensor, Tensor> gated_residual_backward(
    Tensor grad, Tensor y, Tensor gate, bool want_y, bool want_gate) {
  check(grad, "grad", y, gate);
  const int64_t batch = grad.size(0), tokens = grad.size(1), d = grad.size(2);
  grad = with_dense_rows(grad), y = with_dense_rows(y), gate = with_dense_rows(gate);
  const bool shared_gate = gate.dim() == 2;
  Tensor grad_y = want_y ? torch::stable::new_empty(y, y.sizes()) : torch::stable::new_empty(y, {0});
  Tensor grad_gate =
      want_gate ? torch::stable::new_empty(gate, gate.sizes()) : torch::stable::new_empty(gate, {0});
  const int64_t parts = (tokens + tokens_per_part - 1) / tokens_per_part;
  std::vector<float> part_sums(want_gate && shared_gate ? batch * parts * d : 0);

  with_storage_type("grad", grad, [&](auto storage) {
    with_storage_type("gate", gate, [&](auto gate_storage) {
      using T = decltype(storage);
      using G = decltype(gate_storage);
      const Rows<T> grad_rows(grad), y_rows(y);
      const Rows<G> gate_rows(gate);
      const Rows<T> grad_y_rows = want_y ? Rows<T>(grad_y) : Rows<T>();
      const Rows<G> grad_gate_rows = want_gate && !shared_gate ? Rows<G>(grad_gate) : Rows<G>();
      const auto row = FYM_DISPATCH(gated_residual_backward_row<T, G>);
      torch::stable::parallel_for(0, batch * parts, 1, [&](int64_t begin, int64_t end) {
        for (int64_t part = begin; part < end; ++part) {
          const int64_t b = part / parts, first = part % parts * tokens_per_part;
          float* sum = part_sums.empty() ? nullptr : part_sums.data() + part * d;
          for (int64_t s = first; s < std::min(tokens, first + tokens_per_part); ++s)
            row(grad_y_rows(b, s), grad_gate_rows(b, s), sum, grad_rows(b, s), y_rows(b, s),
                gate_rows(b, s), d);
        }
      });
      if (want_gate && shared_gate) {
        const auto sum_up = FYM_DISPATCH(sum_rows<G>);
        const Rows<G> sums(grad_gate);
        for (int64_t b = 0; b < batch; ++b) sum_up(sums(b, 0), part_sums.data() + b * parts * d, parts, d);
      }
    });
  });
  return {grad_y, grad_gate};
}

}  // namespace fym

STABLE_TORCH_LIBRARY_IMPL(fym_kernels, CPU, library) {
  library.impl("gated_residual", TORCH_BOX(&fym::gated_residual));
  library.impl("gated_residual_backward", TORCH_BOX(&fym::gated_residual_backward));
}

#endif
