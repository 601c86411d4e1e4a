"""Kernels for motion tuning of video diffusion transformers, each with a plain-PyTorch reference.

Shapes: B batch, S = F'H'W' tokens (latent frames, rows, columns; frames slowest), H heads, D head dim, d =
H*D, r rank.
"""

from fym_kernels import reference
from fym_kernels.backend import BACKENDS, BackendError, explain, use_backend
from fym_kernels.ops.gated_residual import gated_residual
from fym_kernels.ops.gelu import gelu
from fym_kernels.ops.head_attention import head_attention
from fym_kernels.ops.head_scores import HeadScores, head_scores
from fym_kernels.ops.lora_linear import lora_linear
from fym_kernels.ops.lora_qkv import lora_qkv
from fym_kernels.ops.modulated_norm import modulated_norm
from fym_kernels.ops.motion_loss import motion_loss
from fym_kernels.ops.qk_norm_rope import qk_norm_rope

__all__ = [
    "BACKENDS",
    "BackendError",
    "HeadScores",
    "explain",
    "gated_residual",
    "gelu",
    "head_attention",
    "head_scores",
    "lora_linear",
    "lora_qkv",
    "modulated_norm",
    "motion_loss",
    "qk_norm_rope",
    "reference",
    "use_backend",
]
