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
  library.def("gelu(Tensor x) -> Tensor");
  library.def("gelu_backward(Tensor grad, Tensor x) -> Tensor");
  library.def("gated_residual(Tensor x, Tensor y, Tensor gate) -> Tensor");
  library.def(
      "gated_residual_backward(Tensor grad, Tensor y, Tensor gate, bool want_y, bool want_gate)"
      " -> (Tensor, Tensor)");
  library.def(
      "modulated_norm(Tensor x, Tensor scale, Tensor shift, float eps) -> (Tensor, Tensor, Tensor)");
  library.def(
      "modulated_norm_backward(Tensor grad, Tensor x, Tensor scale, Tensor mean, Tensor rstd,"
      " bool shift_per_token, bool want_x, bool want_scale, bool want_shift) -> (Tensor, Tensor, Tensor)");
  library.def(
      "qk_norm_rope(Tensor query, Tensor key, Tensor? query_weight, Tensor? key_weight, Tensor table,"
      " int[] grid, int[] axes_dim, bool time_per_sample, float eps, str norm, int rotate_from,"
      " bool interleaved) -> (Tensor, Tensor, Tensor, Tensor)");
  library.def(
      "qk_norm_rope_backward(Tensor grad_query, Tensor grad_key, Tensor query, Tensor key,"
      " Tensor? query_weight, Tensor? key_weight, Tensor query_rstd, Tensor key_rstd, Tensor table,"
      " int[] grid, int[] axes_dim, bool time_per_sample, str norm, int rotate_from, bool interleaved,"
      " bool want_query_weight, bool want_key_weight) -> (Tensor, Tensor, Tensor, Tensor)");
  library.def(
      "motion_loss(Tensor pred, Tensor target, Tensor? weight, float motion_weight)"
      " -> (Tensor, Tensor, Tensor)");
  library.def(
      "motion_loss_backward(Tensor grad_loss, Tensor pred, Tensor target, Tensor coefficients,"
      " Tensor error_scale, str side) -> Tensor");
  library.def(
      "lora_qkv(Tensor x, Tensor query_weight, Tensor key_weight, Tensor value_weight, Tensor? query_bias,"
      " Tensor? key_bias, Tensor? value_bias, Tensor query_a, Tensor key_a, Tensor value_a, Tensor query_b,"
      " Tensor key_b, Tensor value_b, Tensor active_heads, int head_dim, float scale)"
      " -> (Tensor, Tensor, Tensor, Tensor)");
  library.def(
      "lora_qkv_backward(Tensor[] grads, Tensor x, Tensor[] weights, Tensor[] lora_a, Tensor[] lora_b,"
      " Tensor active_heads, Tensor s, int head_dim, float scale, bool want_x, bool want_factors)"
      " -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  library.def(
      "lora_linear(Tensor x, Tensor weight, Tensor? bias, Tensor lora_a, Tensor lora_b,"
      " Tensor? active_heads, int head_dim, float scale, str side) -> (Tensor, Tensor)");
  library.def(
      "lora_linear_backward(Tensor grad, Tensor x, Tensor weight, Tensor lora_a, Tensor lora_b,"
      " Tensor? active_heads, Tensor s, int head_dim, float scale, str side, bool want_x,"
      " bool want_factors) -> (Tensor, Tensor, Tensor)");
  library.def(
      "head_attention(Tensor query, Tensor key, Tensor value, Tensor head_kind, int[] grid,"
      " int frame_window, int location_window, bool first_frame_sink, float scale) -> (Tensor, Tensor)");
  library.def(
      "head_attention_backward(Tensor grad, Tensor query, Tensor key, Tensor value, Tensor out,"
      " Tensor logsumexp, Tensor head_kind, int[] grid, int frame_window, int location_window,"
      " bool first_frame_sink, float scale) -> (Tensor, Tensor, Tensor)");
  library.def(
      "temporal_attention_(Tensor(a!) out, Tensor(b!) logsumexp, Tensor query, Tensor key, Tensor value,"
      " int[] heads, int[] grid, int window, bool sink, float scale) -> ()");
  library.def(
      "temporal_attention_backward_(Tensor(a!) grad_query, Tensor(b!) grad_key, Tensor(c!) grad_value,"
      " Tensor grad, Tensor query, Tensor key, Tensor value, Tensor out, Tensor logsumexp, int[] heads,"
      " int[] grid, int window, bool sink, float scale) -> ()");
  library.def(
      "head_scores(Tensor query, Tensor key, int[] grid, float band, Tensor? rows)"
      " -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(fym_kernels, CompositeExplicitAutograd, library) {
  library.impl("cpu_isa", TORCH_BOX(&cpu_isa));
  library.impl("limit_cpu_isa", TORCH_BOX(&limit_cpu_isa));
}
