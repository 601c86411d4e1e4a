"""Embeddings of frames and prompts: CLIP from a local folder, and one that needs no weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from fym.errors import UserError

CELLS = 12  # of the layout, along each side


@dataclass(frozen=True)
class Embedder:
    """`images` takes frames (F,H,W,3) uint8 to unit vectors (F,D); `text`, where there is one, a prompt to
    (D,). The name holds the model, because scores of different embeddings do not compare.
    """

    name: str
    images: Callable[[Tensor], Tensor]
    text: Callable[[str], Tensor] | None = None


def _layout(frames: Tensor) -> Tensor:
    """CIELAB colours of a 12 x 12 picture: (F, 432), unit length."""
    small = [cv2.resize(frame, (CELLS, CELLS), interpolation=cv2.INTER_AREA) for frame in frames.numpy()]
    lab = np.stack([cv2.cvtColor(picture.astype(np.float32) / 255, cv2.COLOR_RGB2LAB) for picture in small])
    return torch.nn.functional.normalize(torch.from_numpy(lab).flatten(1), dim=-1)


LAYOUT = Embedder("colour layout, 12 x 12 CIELAB", _layout)


def load_clip(folder: str | Path) -> Embedder:
    """CLIP as transformers saves it, from a local folder; nothing is downloaded.

    Raises UserError if there is no such folder or no CLIP in it.
    """
    from transformers import CLIPModel, CLIPProcessor

    path = Path(folder)
    fix = "Give the folder of a CLIP model with its processor, as save_pretrained writes it"
    if not (path / "config.json").is_file():
        raise UserError(f"{path} is no CLIP model", "it has no config.json", fix)
    try:
        model = CLIPModel.from_pretrained(path, local_files_only=True).eval()
        processor = CLIPProcessor.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read as CLIP", str(error).splitlines()[0], fix) from error
    longest = model.config.text_config.max_position_embeddings

    @torch.inference_mode()
    def images(frames: Tensor) -> Tensor:
        batches = [processor(images=list(part.numpy()), return_tensors="pt") for part in frames.split(16)]
        seen = [model.vision_model(pixel_values=batch["pixel_values"]).pooler_output for batch in batches]
        return torch.nn.functional.normalize(model.visual_projection(torch.cat(seen)), dim=-1)

    @torch.inference_mode()
    def text(prompt: str) -> Tensor:
        tokens = processor(text=[prompt], return_tensors="pt", truncation=True, max_length=longest)
        pooled = model.text_model(**tokens).pooler_output
        return torch.nn.functional.normalize(model.text_projection(pooled), dim=-1)[0]

    return Embedder(f"CLIP {path.name}", images, text)
