"""A model without its weights: the shapes of all its parts, from the folder's configurations alone."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fym.errors import UserError
from fym.families.loading import DTYPES, family_class, find_model
from fym.families.pipeline import PipelineFamily, given_defaults
from fym.families.quantised import quantise, stays_float32


def skeleton(model: str, dtype: str, packed: str = "none") -> PipelineFamily:
    """The family of `model`, "embedded", a folder or a hub id, with every weight on the meta device.

    dtype: of the transformer and the text encoders; the VAE has float32, as when it is loaded. packed: as
    `model.quantise`. Reads no weight file; of a hub id it fetches the configurations only. UserError as
    `load_family`.
    """
    folder, model_id = find_model(model, weights=False)
    kind = family_class(folder, model)
    try:
        family = _build(folder, model_id, kind, DTYPES[dtype])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{model} cannot be planned for", reason, "Download its folder again") from error
    family.quantise = packed
    for name in ("transformer", "transformer_2"):
        if packed != "none" and getattr(family.pipeline, name, None) is not None:
            quantise(getattr(family.pipeline, name), kind.block_lists, packed)
    return family


def _build(folder: Path, model_id: str, kind: type[PipelineFamily], dtype: torch.dtype) -> PipelineFamily:
    import diffusers

    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    parts: dict[str, Any] = {}
    options: dict[str, Any] = {}
    for name, value in index.items():
        if not isinstance(value, list):
            options |= {} if name.startswith("_") else {name: value}
        elif value[0] is None or name in kind.tokenizers:
            parts[name] = None
        else:
            library, cls = value
            parts[name] = _part(folder / name, library, cls, torch.float32 if name == "vae" else dtype)
    pipeline = getattr(diffusers, kind.pipeline_class)(**parts, **options)
    return kind(pipeline, model_id, device=torch.device("cpu"), given=given_defaults(folder))


def _part(folder: Path, library: str, name: str, dtype: torch.dtype) -> Any:
    cls = getattr(importlib.import_module(library), name)
    if library == "transformers":
        config = cls.config_class.from_pretrained(str(folder))
        with torch.device("meta"):
            return cls(config).to(dtype)
    config = cls.load_config(str(folder))
    if not issubclass(cls, nn.Module):  # a scheduler, whose tables are read
        return cls.from_config(config)
    with torch.device("meta"):
        return _to_dtype(cls.from_config(config), dtype)


def _to_dtype(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """As diffusers loads."""
    for name, parameter in module.named_parameters():
        parameter.data = parameter.data.to(torch.float32 if stays_float32(module, name) else dtype)
    return module
