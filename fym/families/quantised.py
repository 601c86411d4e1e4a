"""Frozen linear layers whose weights stand in memory in 8 or 4 bits.

bitsandbytes packs them and unpacks them again just before each product, forward and backward; the product
itself is PyTorch's, in the input's dtype. For the backward pass the packed weights are kept, not the others.
int8: 255 even steps up to the largest weight of a piece. nf4: 16 quantiles of a normal distribution (Dettmers
et al., QLoRA, 2023). A piece has 256 or 64 weights and one float32 scale: 8.125 and 4.5 bits a weight.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable

from fym.errors import UserError

PIECE = {"int8": 256, "nf4": 64}  # weights that share a scale
WEIGHTS = "diffusion_pytorch_model.safetensors"


class QuantisedLinear(nn.Module):
    """`linear` with packed weights, which `store` fills in; its bias stays.

    Its results and gradients are those of a plain layer with the unpacked weights, bit for bit.
    """

    packed: Tensor  # uint8: (d_out, d_in), nf4 (ceil(d_out d_in / 2), 1)
    scales: Tensor  # float32

    def __init__(self, linear: nn.Linear, kind: str) -> None:
        super().__init__()
        self.kind, self.in_features, self.out_features = kind, linear.in_features, linear.out_features
        self.bias = linear.bias
        count, device = self.in_features * self.out_features, linear.weight.device
        shape = (self.out_features, self.in_features) if kind == "int8" else (-(-count // 2), 1)
        scales = torch.empty(-(-count // PIECE[kind]), dtype=torch.float32, device=device)
        self.register_buffer("packed", torch.empty(shape, dtype=torch.uint8, device=device))
        self.register_buffer("scales", scales)

    @torch.no_grad()
    def store(self, weight: Tensor) -> None:
        """Packs `weight` (d_out, d_in), of any float dtype, on the device it is on."""
        library = _library()
        if self.kind == "int8":
            code = _even_steps(weight.device)
            self.packed, state = library.quantize_blockwise(weight, code=code, blocksize=PIECE["int8"])
        else:
            self.packed, state = library.quantize_4bit(weight, blocksize=PIECE["nf4"], quant_type="nf4")
        self.scales = state.absmax

    def weight(self, dtype: torch.dtype) -> Tensor:
        """(d_out, d_in), unpacked."""
        return self.unpack(self.packed, self.scales, dtype)

    def unpack(self, packed: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
        shape = torch.Size((self.out_features, self.in_features))
        if packed.is_meta or isinstance(packed, FakeTensor):  # shapes only
            return torch.empty(shape, dtype=dtype, device=packed.device)
        library, about = _library(), {"absmax": scales, "dtype": dtype, "blocksize": PIECE[self.kind]}
        unpacked: Tensor
        if self.kind == "int8":
            state = library.QuantState(code=_even_steps(packed.device), **about)
            unpacked = library.dequantize_blockwise(packed, state)
        else:
            state = library.QuantState(shape=shape, quant_type="nf4", **about)
            unpacked = library.dequantize_4bit(packed, state)
        return unpacked

    def forward(self, x: Tensor) -> Tensor:
        # In rows: then what comes back is no view, so an update may be added in place.
        out: Tensor = _Product.apply(x.flatten(0, -2), self.packed, self.scales, self.bias, self)
        return out.unflatten(0, x.shape[:-1])

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self.kind}"


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, packed: Tensor, scales: Tensor, bias: Tensor | None, layer: QuantisedLinear
    ) -> Tensor:
        ctx.unpack = layer.unpack
        ctx.save_for_backward(packed, scales)
        return F.linear(x, layer.unpack(packed, scales, x.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        packed, scales = ctx.saved_tensors
        return grad @ ctx.unpack(packed, scales, grad.dtype), None, None, None, None


def quantise(transformer: nn.Module, lists: Sequence[str], kind: str) -> None:
    """Replaces every linear layer of the blocks in the module lists `lists` by an empty quantised one."""
    for name, module in list(transformer.named_modules()):
        inside = name.partition(".")[0] in lists
        if inside and type(module) is nn.Linear and not stays_float32(transformer, name):
            transformer.set_submodule(name, QuantisedLinear(module, kind))


def load_quantised(
    folder: Path, lists: Sequence[str], kind: str, *, dtype: torch.dtype, device: torch.device
) -> nn.Module:
    """The diffusers transformer in `folder`, on the CPU, with quantised blocks and all else in `dtype`.

    Tensors are read one at a time and packed on `device`, so the weights never stand whole in memory. Raises
    UserError: no bitsandbytes, no such class, weights that are missing, damaged or of other shapes.
    """
    import diffusers
    from accelerate import init_empty_weights
    from safetensors import SafetensorError

    _library()
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        with init_empty_weights():
            transformer: nn.Module = getattr(diffusers, config["_class_name"]).from_config(config)
        quantise(transformer, lists, kind)
        _fill(transformer, folder, dtype, device)
    except (OSError, ValueError, LookupError, AttributeError, TypeError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{folder.name} cannot be loaded", reason, "Download it again") from error
    return transformer.requires_grad_(False).eval()


def _fill(transformer: nn.Module, folder: Path, dtype: torch.dtype, device: torch.device) -> None:
    from safetensors import safe_open

    packed = {f"{name}.weight": layer for name, layer in quantised_layers(transformer)}
    own = transformer.state_dict(keep_vars=True)
    missing = {name for name in own if not name.endswith((".packed", ".scales"))} | packed.keys()
    for path in _files(folder):
        with safe_open(path, "pt") as file:
            for name in missing.intersection(file.keys()):
                value = file.get_tensor(name)
                layer = packed.get(name)
                wanted = own[name].shape if layer is None else (layer.out_features, layer.in_features)
                if value.shape != wanted:
                    raise ValueError(f"{name} has shape {tuple(value.shape)}, the model {tuple(wanted)}")
                if layer is not None:
                    layer.store(value.to(device))
                    layer.packed, layer.scales = layer.packed.cpu(), layer.scales.cpu()
                    continue
                where, _, leaf = name.rpartition(".")
                parts = transformer.get_submodule(where)
                if leaf in parts._buffers:
                    parts._buffers[leaf] = value.clone()
                else:
                    number_format = torch.float32 if stays_float32(transformer, name) else dtype
                    parts._parameters[leaf] = nn.Parameter(value.to(number_format, copy=True))
            missing.difference_update(file.keys())
    if missing:
        raise ValueError(f"{min(missing)} is missing")


def stays_float32(transformer: nn.Module, name: str) -> bool:
    """Whether diffusers loads the parameter or module `name` in float32, whatever the rest has."""
    kept = getattr(transformer, "_keep_in_fp32_modules", None) or ()
    return any(part in kept for part in name.split("."))


def _files(folder: Path) -> list[Path]:
    index = folder / f"{WEIGHTS}.index.json"
    if not index.is_file():
        return [folder / WEIGHTS]
    places: dict[str, str] = json.loads(index.read_text("utf-8"))["weight_map"]
    return [folder / name for name in sorted(set(places.values()))]


def quantised_layers(module: nn.Module) -> list[tuple[str, QuantisedLinear]]:
    """With their names."""
    return [(name, part) for name, part in module.named_modules() if isinstance(part, QuantisedLinear)]


def num_weights(module: nn.Module) -> int:
    """How many numbers a model has, packed and offloaded ones too."""
    count = sum(p.numel() for p in module.parameters())
    for part in module.modules():
        if isinstance(part, QuantisedLinear) or (isinstance(part, nn.Linear) and part.weight is None):
            count += part.in_features * part.out_features
    return count


@lru_cache
def _library() -> Any:
    """bitsandbytes, which takes seconds to import; UserError where it is not installed."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            "The model cannot be quantised",
            "the package bitsandbytes is not installed",
            "pip install 'fym[quantise]', or leave model.quantise at none",
        )
    import bitsandbytes.functional

    return bitsandbytes.functional


@lru_cache
def _even_steps(device: torch.device) -> Tensor:
    """(256,) float32 from -1 to 1: what the bytes of int8 stand for."""
    return _library().create_linear_map(signed=True).to(device)  # type: ignore[no-any-return]
