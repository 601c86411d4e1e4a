"""The linear layers of a self-attention with low-rank updates: fym's adapters, or a LoRA that PEFT added.

Works for every attention module of diffusers with to_q, to_k, to_v, to_out, heads and inner_dim. The kernels
read the layers' weights directly, so that must mean what calling the layers means; where it does not, the
layers are called (no adapters of ours) or the adapters are refused. Layers that fym quantised have no weight
to read: they are called, and PyTorch adds the update.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor  # shapes only
from torch.distributed.tensor import DTensor

import fym_kernels
from fym.adapters import AdapterStack, Update
from fym.errors import UserError
from fym.families import lean
from fym.families.activations import native_gelu
from fym.families.base import AttentionControl
from fym.families.quantised import QuantisedLinear
from fym_kernels.reference.lora_linear import add_low_rank

LOG = logging.getLogger("fym")
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


@contextmanager
def installed(transformer: Any, processors: Mapping[str, Any]) -> Iterator[None]:
    """Puts `processors` (by diffusers' names) into the transformer and at the end the very old ones back."""
    originals = dict(transformer.attn_processors)
    transformer.set_attn_processor({**originals, **processors})  # empties the dict it is given
    try:
        yield
    finally:
        transformer.set_attn_processor(dict(originals))


@contextmanager
def attending(
    transformer: Any,
    control: AttentionControl,
    attentions: Sequence[Any],
    processors: Mapping[str, Any],
    seen_by: Any,
    grid: Callable[[tuple[Any, ...]], tuple[int, int, int]],
) -> Iterator[None]:
    """Installs `processors`, which follow `control`, for the layers `attentions`, and GELU on fym_kernels.

    A processor sees tokens only: `grid` tells theirs from the inputs of `seen_by`, a module that every
    forward pass calls before its blocks. Raises UserError for layers that cannot take the adapters.
    """
    if control.stack.adapters:
        check_plain(attentions)
    else:
        report_fallbacks(attentions)

    def note(module: Any, inputs: tuple[Any, ...]) -> None:
        control.grid = grid(inputs)

    hook = seen_by.register_forward_pre_hook(note)
    try:
        with installed(transformer, processors), native_gelu(transformer):
            yield
    finally:
        hook.remove()


def project(
    attn: Any, hidden: Tensor, stack: AdapterStack, layer: int, recipe: lean.Normed | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v (B,S,d) before the norm, with the stack's update. recipe: how to make `hidden` again."""
    linears = (attn.to_q, attn.to_k, attn.to_v)
    update = stack.qkv(layer) or peft_update(attn, linears, "qkv")
    if update is None:
        if getattr(attn, "fused_projections", False):
            q, k, v = attn.to_qkv(hidden).chunk(3, dim=-1)
        else:
            q, k, v = (linear(hidden) for linear in linears)
        return q, k, v
    head_dim = attn.inner_dim // attn.heads
    if any(isinstance(linear, QuantisedLinear) for linear in linears):
        wide = hidden.to(update.lora_a["q"].dtype)  # once for all three
        q, k, v = (
            _called(linear, hidden, wide, update, p, head_dim)
            for linear, p in zip(linears, "qkv", strict=True)
        )
        return q, k, v
    bases = [base_of(linear) for linear in linears]
    weights = [_weight(base, update, p) for base, p in zip(bases, "qkv", strict=True)]
    biases = [base.bias for base in bases]
    return lean.lora_qkv(hidden, recipe, weights, biases, update, head_dim)


def project_out(attn: Any, attended: Tensor, stack: AdapterStack, layer: int) -> Tensor:
    """The output projection (B,S,d) with the stack's update."""
    linear = attn.to_out[0]
    update = stack.out(layer) or peft_update(attn, (linear,), "o")
    if update is None:
        out: Tensor = linear(attended)
        return out
    head_dim = attn.inner_dim // attn.heads
    if isinstance(linear, QuantisedLinear):
        return _called(linear, attended, attended, update, "o", head_dim)
    base = base_of(linear)
    return fym_kernels.lora_linear(
        attended,
        _weight(base, update, "o"),
        base.bias,
        update.lora_a["o"],
        update.lora_b["o"],
        scale=update.scale,
        active_heads=update.heads,
        head_dim=head_dim,
        side="in",
    )


def _called(linear: Any, x: Tensor, wide: Tensor, update: Update, projection: str, head_dim: int) -> Tensor:
    """linear(x) with an update; wide: x in a dtype as wide as the update's."""
    return add_low_rank(
        linear(x),
        wide,
        update.lora_a[projection],
        update.lora_b[projection],
        scale=update.scale,
        active_heads=update.heads,
        head_dim=head_dim,
        side="in" if projection == "o" else "out",
    )


def _weight(base: Any, update: Update, projection: str) -> Tensor:
    weight: Tensor = base.weight
    return weight + update.folded[projection] if update.folded else weight


def base_of(linear: Any) -> Any:
    """The plain layer inside a PEFT layer, or the layer itself."""
    return getattr(linear, "base_layer", linear)


def peft_update(attn: Any, linears: Sequence[Any], names: str) -> Update | None:
    """The LoRA that PEFT added to all `linears`, for the kernels; None where calling the layers is right."""
    if not _is_peft(linears[0]) or why_not_fused(linears):
        return None
    active = {name: _active(linear) for name, linear in zip(names, linears, strict=True)}
    first = linears[0]
    return Update(
        torch.arange(attn.heads, device=first.lora_A[active[names[0]][0]].weight.device),
        {name: linear.lora_A[active[name][0]].weight for name, linear in zip(names, linears, strict=True)},
        {name: linear.lora_B[active[name][0]].weight for name, linear in zip(names, linears, strict=True)},
        first.scaling[active[names[0]][0]],
    )


def why_not_fused(linears: Sequence[Any]) -> str:
    """Why layers with a PEFT LoRA have to be called rather than fused; empty where they can be fused."""
    for linear in linears:
        odd = _why_not_peft(linear) if _is_peft(linear) else "some of q, k and v have no LoRA"
        odd = odd or not_plain(base_of(linear))
        if odd:
            return odd
    settings = {
        (linear.scaling[name], linear.lora_A[name].weight.shape[0])
        for linear in linears
        for name in _active(linear)
    }
    return "" if len(settings) == 1 else "the LoRAs of q, k and v differ in rank or scaling"


def _is_peft(linear: Any) -> bool:
    return hasattr(linear, "base_layer") and hasattr(linear, "lora_A")


def _active(linear: Any) -> list[str]:
    return [name for name in linear.active_adapters if name in linear.lora_A]


def _why_not_peft(linear: Any) -> str:
    from peft.tuners.lora.layer import Linear

    if type(linear) is not Linear:
        return f"a LoRA layer is a {type(linear).__name__}"
    if linear.disable_adapters:
        return "the LoRA is disabled"
    if linear.merged:
        return "the LoRA is merged"
    if hooked(linear):
        return "another library hooks into the layers"
    active = _active(linear)
    if len(active) != 1:
        return f"{len(active)} LoRAs are active"
    name = active[0]
    if name in linear.lora_variant:
        return f"the LoRA is a {type(linear.lora_variant[name]).__name__}, such as DoRA"
    dropout = linear.lora_dropout[name]
    if not isinstance(dropout, torch.nn.Identity) and dropout.p > 0:
        return "the LoRA has dropout"
    factors = linear.lora_A[name], linear.lora_B[name]
    for factor in factors:
        if not_plain(factor) or factor.bias is not None:
            return not_plain(factor) or "the LoRA has a bias"
        wider = torch.promote_types(factor.weight.dtype, base_of(linear).weight.dtype)
        if wider != factor.weight.dtype:
            return "the LoRA's dtype is narrower than the model's"
    return ""


def hooked(module: Any) -> bool:
    """Whether a library runs code around the module's forward (offloading, layerwise casting, caching)."""
    return any(hasattr(module, name) for name in ("_diffusers_hook", "_hf_hook")) or "forward" in vars(module)


def report_fallbacks(attentions: Sequence[Any]) -> None:
    """One log line where a LoRA of PEFT or fused projections keep a model from the fused path."""
    for attn in attentions:
        linears = (attn.to_q, attn.to_k, attn.to_v)
        reason = ""
        if getattr(attn, "fused_projections", False):
            reason = "q, k and v are fused into one layer"
        else:
            for group in (linears, (attn.to_out[0],) if getattr(attn, "to_out", None) is not None else ()):
                if any(map(_is_peft, group)):
                    reason = reason or why_not_fused(group)
        if reason:
            LOG.warning("attention calls the model's own linear layers instead of fused ones: %s", reason)
            return


def check_plain(attentions: Sequence[Any]) -> None:
    """UserError unless every self-attention has linear layers to which adapters can be added: plain ones, or
    those that fym quantised."""
    for number, attn in enumerate(attentions):
        if getattr(attn, "fused_projections", False):
            raise UserError(
                "The model's q, k and v are fused",
                "diffusers drops adapters on fused projections without a word",
                "Call transformer.unfuse_qkv_projections() first",
            )
        linears = {"to_q": attn.to_q, "to_k": attn.to_k, "to_v": attn.to_v}
        if getattr(attn, "to_out", None) is not None:
            linears["to_out.0"] = attn.to_out[0]
        for name, linear in linears.items():
            odd = "" if isinstance(linear, QuantisedLinear) else not_plain(linear)
            if odd:
                raise UserError(
                    f"Adapters cannot be added to {name} of block {number}",
                    f"it is a {odd}, not a plain linear layer",
                    "Unload other adapters with unload_lora_weights(); let fym quantise, by model.quantise",
                )


def not_plain(linear: Any) -> str:
    """What a layer is instead of a linear layer with float weights; empty for such a one."""
    if type(linear) is not torch.nn.Linear:
        return f"{type(linear).__module__.split('.')[0]} {type(linear).__name__}"
    if linear.weight is None:  # offloaded: it is there when the layer runs
        return ""
    # torchao keeps the layer and wraps its weight; a DTensor is a plain one again while its block computes
    if type(linear.weight) not in (torch.nn.Parameter, FakeTensor, DTensor):
        return f"layer with a {type(linear.weight).__name__} weight"
    if linear.weight.dtype not in FLOATS:
        return f"layer of {str(linear.weight.dtype).removeprefix('torch.')} weights"
    if hooked(linear):
        return "layer that another library hooks into (offloading or layerwise casting)"
    return ""
