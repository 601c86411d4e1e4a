"""The Triton launchers as torch ops: namespace `fym_triton`, with the schemas of csrc/library.cpp.

`torch.ops.fym_triton.<op>` is `forward` of fym_kernels/triton/<op>.py, `<op>_backward` its `backward`,
argument by argument. They run on CUDA tensors, and on CPU tensors in a process with TRITON_INTERPRET=1.
Triton is imported by the first call, not here. Fake kernels and gradients are in fym_kernels/ops, with those
of the C++ ops.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch

from fym_kernels import backend
from fym_kernels.triton import load, problem

NAMESPACE = "fym_triton"
INTERPRETED = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")
DEVICES = ("cuda", "cpu") if INTERPRETED else ("cuda",)
# float64 is for gradient checks under the interpreter: its tiles fit no device
DTYPES = (torch.float32, torch.bfloat16, torch.float16, *((torch.float64,) if INTERPRETED else ()))

SCHEMAS = {
    "gated_residual": "(Tensor x, Tensor y, Tensor gate) -> Tensor",
    "gated_residual_backward": (
        "(Tensor grad, Tensor y, Tensor gate, bool want_y, bool want_gate) -> (Tensor, Tensor)"
    ),
    "gelu": "(Tensor x) -> Tensor",
    "gelu_backward": "(Tensor grad, Tensor x) -> Tensor",
    "modulated_norm": "(Tensor x, Tensor scale, Tensor shift, float eps) -> (Tensor, Tensor, Tensor)",
    "modulated_norm_backward": (
        "(Tensor grad, Tensor x, Tensor scale, Tensor mean, Tensor rstd, bool shift_per_token, bool want_x,"
        " bool want_scale, bool want_shift) -> (Tensor, Tensor, Tensor)"
    ),
    "qk_norm_rope": (
        "(Tensor query, Tensor key, Tensor? query_weight, Tensor? key_weight, Tensor table, int[] grid,"
        " int[] axes_dim, bool time_per_sample, float eps, str norm, int rotate_from, bool interleaved)"
        " -> (Tensor, Tensor, Tensor, Tensor)"
    ),
    "qk_norm_rope_backward": (
        "(Tensor grad_query, Tensor grad_key, Tensor query, Tensor key, Tensor? query_weight,"
        " Tensor? key_weight, Tensor query_rstd, Tensor key_rstd, Tensor table, int[] grid, int[] axes_dim,"
        " bool time_per_sample, str norm, int rotate_from, bool interleaved, bool want_query_weight,"
        " bool want_key_weight) -> (Tensor, Tensor, Tensor, Tensor)"
    ),
    "motion_loss": (
        "(Tensor pred, Tensor target, Tensor? weight, float motion_weight) -> (Tensor, Tensor, Tensor)"
    ),
    "motion_loss_backward": (
        "(Tensor grad_loss, Tensor pred, Tensor target, Tensor coefficients, Tensor error_scale, str side)"
        " -> Tensor"
    ),
    "lora_qkv": (
        "(Tensor x, Tensor query_weight, Tensor key_weight, Tensor value_weight, Tensor? query_bias,"
        " Tensor? key_bias, Tensor? value_bias, Tensor query_a, Tensor key_a, Tensor value_a, Tensor query_b,"
        " Tensor key_b, Tensor value_b, Tensor active_heads, int head_dim, float scale)"
        " -> (Tensor, Tensor, Tensor, Tensor)"
    ),
    "lora_qkv_backward": (
        "(Tensor[] grads, Tensor x, Tensor[] weights, Tensor[] lora_a, Tensor[] lora_b, Tensor active_heads,"
        " Tensor s, int head_dim, float scale, bool want_x, bool want_factors)"
        " -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
    ),
    "lora_linear": (
        "(Tensor x, Tensor weight, Tensor? bias, Tensor lora_a, Tensor lora_b, Tensor? active_heads,"
        " int head_dim, float scale, str side) -> (Tensor, Tensor)"
    ),
    "lora_linear_backward": (
        "(Tensor grad, Tensor x, Tensor weight, Tensor lora_a, Tensor lora_b, Tensor? active_heads, Tensor s,"
        " int head_dim, float scale, str side, bool want_x, bool want_factors) -> (Tensor, Tensor, Tensor)"
    ),
    "head_attention": (
        "(Tensor query, Tensor key, Tensor value, Tensor head_kind, int[] grid, int frame_window,"
        " int location_window, bool first_frame_sink, float scale) -> (Tensor, Tensor)"
    ),
    "head_attention_backward": (
        "(Tensor grad, Tensor query, Tensor key, Tensor value, Tensor out, Tensor logsumexp,"
        " Tensor head_kind, int[] grid, int frame_window, int location_window, bool first_frame_sink,"
        " float scale) -> (Tensor, Tensor, Tensor)"
    ),
    "head_scores": (
        "(Tensor query, Tensor key, int[] grid, float band, Tensor? rows) -> (Tensor, Tensor, Tensor)"
    ),
}


def _launcher(name: str) -> Callable[..., Any]:
    op, part = (name.removesuffix("_backward"), "backward" if name.endswith("_backward") else "forward")

    def run(*arguments: Any) -> Any:
        return getattr(load(op), part)(*arguments)

    return run


_library = torch.library.Library(NAMESPACE, "DEF")
_problem = problem()
LOADED = not _problem
if _problem:
    backend.mark_absent("triton", _problem)
else:
    for _name, _schema in SCHEMAS.items():
        _library.define(_name + _schema)
        for _device in DEVICES:
            _library.impl(_name, _launcher(_name), _device.upper())
