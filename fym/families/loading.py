"""From a name to a loaded model: the embedded one, a local diffusers folder, or an id of the hub."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch

from fym.errors import UserError
from fym.families.base import Family
from fym.families.cogvideox import CogVideoXFamily
from fym.families.hunyuan_video import HunyuanVideoFamily
from fym.families.pipeline import PipelineFamily
from fym.families.wan import WanFamily

FAMILIES: tuple[type[PipelineFamily], ...] = (WanFamily, HunyuanVideoFamily, CogVideoXFamily)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def load_family(
    model: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    vae: str = "whole",
    quantise: str = "none",
    offload: int = 0,
) -> Family:
    """The model of `model.path`: "embedded", a folder or a hub id; the rest as in fym.config.

    "auto" is bfloat16 on a GPU and float32 on the CPU, where it is exact and no slower. Raises UserError:
    no such model, not reachable, another kind of model, an incomplete folder, no such device, no tiles,
    no library to quantise with.
    """
    where = pick_device(device)
    number_format = DTYPES[default_dtype(device) if dtype == "auto" else dtype]
    folder, model_id = find_model(model)
    family = family_class(folder, model).load(
        folder, model_id, dtype=number_format, device=where, quantise=quantise
    )
    family.offload_blocks(offload)
    if vae == "tiled":
        family.tile_vae()
    return family


def find_model(model: str, *, weights: bool = True) -> tuple[Path, str]:
    """The model's folder (downloaded where it is a hub id, without its weights if they are not wanted) and
    its name, which is free of local paths."""
    if model == "embedded":
        from fym.embedded import model_path

        return Path(model_path()), "embedded"
    folder = Path(model)
    if folder.is_dir():
        if not (folder / "model_index.json").is_file():
            raise UserError(
                f"{model} is not a model",
                "there is no model_index.json in the folder",
                "Give a folder in the diffusers format, as save_pretrained writes it",
            )
        return folder, folder.resolve().name
    if folder.exists() or not HUB_ID.fullmatch(model):
        raise UserError(
            f"{model} is not a model",
            "it is a file" if folder.exists() else "there is no such folder",
            'Give a diffusers folder, a hub id such as Wan-AI/Wan2.1-T2V-1.3B-Diffusers, or "embedded"',
        )
    return _download(model, weights), model


def family_class(folder: Path, model: str) -> type[PipelineFamily]:
    """The class that can drive the pipeline in `folder`; UserError for a kind that none can."""
    families = {family.pipeline_class: family for family in FAMILIES}
    try:
        index = json.loads((folder / "model_index.json").read_text("utf-8"))
        kind = index["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{model} is not a model", f"its model_index.json cannot be read ({error})", "Download it again"
        ) from error
    if kind not in families:
        raise UserError(
            f"{model} is a {kind}", f"only {', '.join(families)} are supported", "Choose such a model"
        )
    missing = [
        name
        for name, value in index.items()
        if isinstance(value, list) and value[0] is not None and not (folder / name).is_dir()
    ]
    if missing:
        raise UserError(
            f"{model} is incomplete", f"there is no folder {', '.join(missing)} in it", "Download it again"
        )
    return families[kind]


def pick_device(device: str) -> torch.device:
    """The torch device of a name; "auto" is the GPU if torch sees one."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise UserError(
            f"{device} is no device", str(error).splitlines()[0], "Use cpu, cuda or cuda:0"
        ) from error
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        seen = torch.cuda.device_count()
        raise UserError(f"{device} cannot be used", f"torch sees {seen} GPUs", "Use --device cpu or auto")
    return found


def default_dtype(device: str) -> str:
    """What model.dtype "auto" stands for on a device."""
    return "float32" if pick_device(device).type == "cpu" else "bfloat16"


def _download(model: str, weights: bool) -> Path:
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.txt", "*.model", *(["*.safetensors"] if weights else [])]
    try:
        return Path(snapshot_download(model, allow_patterns=wanted))
    except Exception as error:  # many kinds, from the hub's, the proxy's and the socket's libraries
        raise UserError(
            f"{model} cannot be fetched",
            (str(error).strip() or type(error).__name__).splitlines()[0],
            "Check the name and the network, or give a local folder",
        ) from error
