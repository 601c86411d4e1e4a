"""Every op in plain PyTorch, differentiable, on any device: the oracle the kernels are tested against."""

from fym_kernels.reference.gated_residual import gated_residual
from fym_kernels.reference.gelu import gelu
from fym_kernels.reference.head_attention import head_attention
from fym_kernels.reference.head_scores import HeadScores, head_scores
from fym_kernels.reference.lora_linear import lora_linear
from fym_kernels.reference.lora_qkv import lora_qkv
from fym_kernels.reference.modulated_norm import modulated_norm
from fym_kernels.reference.motion_loss import motion_loss
from fym_kernels.reference.qk_norm_rope import qk_norm_rope

__all__ = [
    "HeadScores",
    "gated_residual",
    "gelu",
    "head_attention",
    "head_scores",
    "lora_linear",
    "lora_qkv",
    "modulated_norm",
    "motion_loss",
    "qk_norm_rope",
]
