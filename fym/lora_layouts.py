"""How other programs name an adapter's tensors, and lay them out, for the models of each family.

d channels, r rank. Sources: diffusers' loaders; ComfyUI's `model_lora_keys_unet`, whose generic rule is the
name of a module of its own model, with underscores in kohya's files; musubi-tuner's names of modules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Names of a layer's tensors: stem with {layer} and {p}, then the endings of A and B.

    stems: one for each kind of layers, in the order of the record's layer_groups; each counts its own layers.
    alpha: whether a tensor STEM.alpha holds it; where not, it is in the header as PEFT's configuration.
    after: of models in which q, k and v are one layer, for each kind of layers: how many times d rows that
    layer has after theirs. Their adapter is then one of rank 3 r, see `fuse`.
    """

    stems: tuple[str, ...]
    projections: Mapping[str, str]
    ends: tuple[str, str]
    alpha: bool
    after: tuple[int, ...] = ()

    def stem_of(self, layer: int, projection: str, groups: Sequence[int]) -> str:
        """groups: the number of layers of each kind."""
        kind, number = _place(layer, groups)
        return self.stems[kind].format(layer=number, p=self.projections[projection])

    def parts(self, targets: str) -> Sequence[str]:
        """The projections that have tensors of their own."""
        return ("qkv",) if self.after else tuple(targets)

    def rows_after(self, layer: int, groups: Sequence[int]) -> int:
        return self.after[_place(layer, groups)[0]] if self.after else 0


def _place(layer: int, groups: Sequence[int]) -> tuple[int, int]:
    """(kind, number within the kind) of a layer."""
    for kind, count in enumerate(groups):
        if layer < count:
            return kind, layer
        layer -= count
    raise ValueError(f"there are only {sum(groups)} layers")


def fuse(full: Mapping[str, Tensor], layout: Layout, groups: Sequence[int]) -> dict[str, Tensor]:
    """blocks.N.{q,k,v} as blocks.N.qkv: A (3r, d) one below the other, B ((3 + after) d, 3r) along the
    diagonal. The product holds those of q, k and v, one below the other, and zeros after them.
    """
    fused = {}
    for layer in sorted({int(name.split(".")[1]) for name in full}):
        down, up = ([full[f"blocks.{layer}.{p}.{m}"] for p in "qkv"] for m in ("lora_A", "lora_B"))
        rows = layout.rows_after(layer, groups) * down[0].shape[1]
        fused[f"blocks.{layer}.qkv.lora_A"] = torch.cat(down)
        fused[f"blocks.{layer}.qkv.lora_B"] = F.pad(torch.block_diag(*up), (0, 0, 0, rows))
    return fused


def split(fused: Mapping[str, Tensor], rank: int) -> dict[str, Tensor]:
    """The reverse of `fuse`; ValueError where B has other values than along its diagonal."""
    full = {}
    for name, tensor in fused.items():
        stem, _, matrix = name.rpartition(".qkv.")
        for number, p in enumerate("qkv"):
            ranks = slice(number * rank, (number + 1) * rank)
            if matrix == "lora_B":
                width = fused[f"{stem}.qkv.lora_A"].shape[1]
                full[f"{stem}.{p}.{matrix}"] = tensor[number * width : (number + 1) * width, ranks]
            else:
                full[f"{stem}.{p}.{matrix}"] = tensor[ranks]
        parts = [full[f"{stem}.{p}.{matrix}"] for p in "qkv"]
        if int(tensor.count_nonzero()) != sum(int(part.count_nonzero()) for part in parts):
            raise ValueError(f"{stem} changes more than q, k and v of its heads")
    return full


def _diffusers(*stems: str) -> Layout:
    names = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0"}
    return Layout(stems, names, ("lora_A.weight", "lora_B.weight"), False)


def _comfyui(stem: str, o: str) -> Layout:
    return Layout((stem,), {"q": "q", "k": "k", "v": "v", "o": o}, ("lora_A.weight", "lora_B.weight"), True)


def _hunyuan(dual: str, single: str, ends: tuple[str, str]) -> Layout:
    """In its makers' model the single layers' q, k and v come before 4 d rows of the feed-forward branch."""
    return Layout((dual, single), {"qkv": ""}, ends, True, after=(0, 4))


WAN = _comfyui("diffusion_model.blocks.{layer}.self_attn.{p}", "o")
HUNYUAN_VIDEO = _diffusers(
    "transformer.transformer_blocks.{layer}.attn.{p}",
    "transformer.single_transformer_blocks.{layer}.attn.{p}",
)
COGVIDEOX = _diffusers("transformer.transformer_blocks.{layer}.attn1.{p}")
# By family. "fym" is what the motion file itself has: the layout that most programs read.
LAYOUTS: dict[str, dict[str, Layout]] = {
    "wan": {
        "fym": WAN,
        "comfyui": WAN,
        "diffusers": _diffusers("transformer.blocks.{layer}.attn1.{p}"),
        "kohya": Layout(
            ("lora_unet_blocks_{layer}_self_attn_{p}",),
            WAN.projections,
            ("lora_down.weight", "lora_up.weight"),
            True,
        ),
    },
    "hunyuan_video": {
        "fym": HUNYUAN_VIDEO,
        "diffusers": HUNYUAN_VIDEO,
        "comfyui": _hunyuan(
            "diffusion_model.double_blocks.{layer}.img_attn.qkv",
            "diffusion_model.single_blocks.{layer}.linear1",
            WAN.ends,
        ),
        "kohya": _hunyuan(
            "lora_unet_double_blocks_{layer}_img_attn_qkv",
            "lora_unet_single_blocks_{layer}_linear1",
            ("lora_down.weight", "lora_up.weight"),
        ),
    },
    "cogvideox": {
        "fym": COGVIDEOX,
        "diffusers": COGVIDEOX,
        "comfyui": _comfyui("diffusion_model.blocks.{layer}.{p}", "attn_out"),
    },
}
