"""Motion transfer without training: DiTFlow's guidance by attention motion flow.

Source: Pondaven et al., "Video Motion Transfer with Diffusion Transformers", CVPR 2025 (arXiv 2412.07776),
the variant that optimises the latents. In one layer of the transformer, Q and K of the tokens of frames i and
j give A_ij = softmax(t Q_i K_j^T / sqrt(D)), the heads' similarities averaged, t a temperature. A token's
motion from frame i to j is the way to where it attends: for the reference to the place of the largest entry
(its clean latents at noise level 0, empty prompt), for the clip in the making to the mean place, which has a
gradient. In the first steps of sampling the latents follow the gradient of the mean squared distance of the
two motions over all tokens and pairs of frames, by a few steps of Adam each.

The defaults are the paper's: a fifth of the steps, 5 steps of Adam in each, a rate of 0.002 falling to half,
temperature 2, the layer in the middle. What differs: the models, and the paper's code counts only tokens that
move in the reference, here all do. The maps of a layer are kept whole, (F'P)^2 numbers: this is for small
models. A sampler that remembers former samples (UniPC's corrector) sees the change only through the model's
output.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fym.config import ClipConfig
from fym.errors import UserError
from fym.families.base import AttentionControl, Family
from fym.material import read_references
from fym.motionbench.case import Case
from fym.motionbench.methods.base import Method, Model, Tuned
from fym.runlog import spent
from fym.video import write_clip

NUMBERS = ("share", "iterations", "rate", "temperature", "layer")


@dataclass(frozen=True, eq=False)
class Guidance(Method):
    """share: of the sampling steps, the first ones; layer: -1 is the one in the middle."""

    name: str = "guidance"
    help: str = "no tuning, guided by attention motion flow (DiTFlow)"
    share: float = 0.2
    iterations: int = 5
    rate: float = 0.002
    temperature: float = 2.0
    layer: int = -1

    def settings(self, model: Model, case: Case) -> str:
        return "guidance\n" + "".join(f"{name} = {getattr(self, name)}\n" for name in NUMBERS)

    def with_settings(self, given: Sequence[str]) -> Method:
        changes: dict[str, Any] = {}
        for text in given:
            name, _, value = text.partition("=")
            try:
                changes[name] = type(getattr(self, name))(value) if name in NUMBERS else float("nan")
            except ValueError:
                changes[name] = float("nan")
            if changes[name] != changes[name]:
                raise UserError(
                    f"{text!r} is no setting of {self.name}",
                    f"they are numbers: {', '.join(NUMBERS)}",
                    "Write, for example, rate=0.01",
                )
        return replace(self, name=f"{self.name} {','.join(given)}", **changes)

    def tune(self, model: Model, case: Case, folder: Path) -> Tuned:
        family = model.family
        with spent(family.device) as cost:
            write_clip(folder / "reference", *model.reference(case))
            clip = read_references(ClipConfig(path=[str(folder / "reference")]), family)[0]
            shutil.rmtree(folder / "reference")
            latents = family.encode_video(clip.frames)[None]
            text = family.encode_prompts([""])
            clean = torch.zeros(1, device=family.device)
            with torch.no_grad(), family.attention() as control:
                wanted = self.flow(family, control, latents, clean, text, soft=False)
        return Tuned(lambda prompt, seed: self._clip(family, wanted, prompt, seed), {"cache": cost})

    def flow(
        self,
        family: Family,
        control: AttentionControl,
        latents: Tensor,
        timestep: Tensor,
        text: Tensor,
        *,
        soft: bool,
    ) -> Tensor:
        """(F',F',P,2) where each token of a frame goes in every frame, in tokens (x, y).

        latents (1,C,F',h,w), timestep (1,), text (1,L,d_text). soft: to the mean of the places it attends to,
        which has a gradient, else to the place it attends to most.
        """
        frames, rows, columns = family.grid(latents)
        chosen = family.num_layers // 2 if self.layer < 0 else self.layer
        similarity = latents

        def look(layer: int, query: Tensor, key: Tensor) -> None:
            nonlocal similarity
            if layer == chosen:
                scale = self.temperature / (query.shape[2] * query.shape[3] ** 0.5)
                similarity = scale * torch.einsum("ihd,jhd->ij", query[0].float(), key[0].float())
                raise _FoundError

        control.on_qk = look
        try:
            family.predict(latents, timestep, text)
        except _FoundError:
            pass
        finally:
            control.on_qk = None
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        places = torch.stack([x, y], -1).flatten(0, 1).to(latents.device, torch.float32)  # (P,2)
        maps = similarity.unflatten(0, (frames, -1)).unflatten(2, (frames, -1)).transpose(1, 2)
        there = maps.softmax(-1) @ places if soft else places[maps.argmax(-1)]
        return there - places

    def _clip(self, family: Family, wanted: Tensor, prompt: str, seed: int) -> Tensor:
        made = family.defaults
        guided = round(self.share * made.num_inference_steps)
        text, empty = family.encode_prompts([prompt, ""]).split(1)
        done = 0

        def before_step(latents: Tensor, timestep: Tensor) -> Tensor:
            nonlocal done
            if done >= guided:
                return latents
            rate = self.rate * (1 - 0.5 * done / max(guided - 1, 1))
            done += 1
            free = latents.detach().clone().requires_grad_()
            optimizer = torch.optim.Adam([free], lr=rate)
            with torch.enable_grad():
                for _ in range(self.iterations):
                    flow = self.flow(family, control, free, timestep.reshape(1), text, soft=True)
                    loss = (flow - wanted).square().sum(-1).mean()
                    [free.grad] = torch.autograd.grad(loss, [free])
                    optimizer.step()
            return free.detach()

        with family.attention() as control:
            return family.sample(
                text,
                empty if made.guidance_scale > 1 else None,
                generator=torch.Generator().manual_seed(seed),
                num_frames=made.num_frames,
                height=made.height,
                width=made.width,
                steps=made.num_inference_steps,
                guidance_scale=made.guidance_scale,
                before_step=before_step,
            )


class _FoundError(Exception):
    """The layers after the one that was looked at are not needed."""
