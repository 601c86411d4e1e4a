"""Wan 2.1 and 2.2 text-to-video models, through diffusers' WanPipeline.

Wan 2.2's A14B is two transformers, experts for high and low noise, which share nothing but their form. Motion
is decided at high noise, so adapters act in that expert alone; the other one is needed only to make a clip.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fym.adapters import AdapterStack, HeadLora
from fym.errors import UserError
from fym.families.base import AttentionControl, BeforeStep, Defaults
from fym.families.pipeline import PipelineFamily
from fym.families.projections import LOG, attending, project
from fym.families.wan_block import WanBlockForward, WanSelfAttention, normalise_rotate, why_stock
from fym.flow import FlowMatching

# Of Wan 2.1, and what 2.2 has otherwise: the makers' wan/configs, whose sampling shift is the training shift.
WAN_DEFAULTS = Defaults(
    num_frames=81,
    height=480,
    width=832,
    fps=16,
    num_inference_steps=50,
    guidance_scale=5.0,
    max_sequence_length=512,
    training_shift=5.0,
)


TI2V_5B = replace(WAN_DEFAULTS, num_frames=121, height=704, width=1280, fps=24)
A14B = replace(
    WAN_DEFAULTS, height=720, width=1280, num_inference_steps=40, guidance_scale=4.0, training_shift=12.0
)


class WanFamily(PipelineFamily):
    """Wan 2.1 and 2.2. All heads of query and key share one norm."""

    name = "wan"
    pipeline_class = "WanPipeline"
    fused_block = True
    block_lists = ("blocks",)

    def refuse(self) -> None:
        transformer, config = self.transformer, self.pipeline.config
        if transformer is None or (self.pipeline.transformer_2 is None) != (config.boundary_ratio is None):
            raise UserError(
                f"{self.model_id} is incomplete",
                "a Wan pipeline has one transformer, or two and the boundary_ratio between them",
                "Download it again",
            )
        self.lowest_noise = config.boundary_ratio or 0.0
        if transformer.config.image_dim is not None or transformer.config.added_kv_proj_dim is not None:
            raise UserError(
                f"{self.model_id} animates pictures",
                "motion is learned by text-to-video models",
                "Choose a T2V model",
            )

    def published(self) -> Defaults:
        if self.pipeline.config.expand_timesteps:
            return TI2V_5B
        return A14B if self.lowest_noise else WAN_DEFAULTS

    def make_schedule(self) -> FlowMatching:
        return FlowMatching(self.defaults.training_shift, self.pipeline.scheduler.config.num_train_timesteps)

    def patch(self) -> tuple[int, int, int]:
        return tuple(self.transformer.config.patch_size)

    def rebuild(self, parts: dict[str, Any]) -> Any:
        config = self.pipeline.config
        return type(self.pipeline)(
            **parts, boundary_ratio=config.boundary_ratio, expand_timesteps=config.expand_timesteps
        )

    def predict(self, latents: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        batch, dtype = len(latents), self.dtype
        if self.lowest_noise:
            self._check_noise(float(timestep.min()) / self.schedule.num_timesteps)
        if self.pipeline.config.expand_timesteps:  # Wan 2.2 TI2V: a timestep for every token
            frames, rows, columns = self.grid(latents)
            timestep = timestep[:, None].expand(batch, frames * rows * columns)
        return self.transformer(
            hidden_states=latents.to(self.device, dtype),
            timestep=timestep.to(self.device),
            encoder_hidden_states=text.to(self.device, dtype).expand(batch, -1, -1),
            return_dict=False,
        )[0].float()

    def _check_noise(self, level: float) -> None:
        if level < self.lowest_noise - 1e-6:
            raise UserError(
                f"{self.model_id} is not tuned at the noise level {level:.3g}",
                f"below {self.lowest_noise:g} it has another transformer, which takes no adapter",
                f"Use heads.sigmas from {self.lowest_noise:g} up",
            )

    def run(self, sampler: Any, text: Tensor, negative: Tensor | None, **options: Any) -> Tensor:
        with self._experts():
            return super().run(sampler, text, negative, **options)

    @contextmanager
    def _experts(self) -> Iterator[None]:
        """One expert at a time on the device: the second comes when it is first called, the first goes."""
        second = self.pipeline.transformer_2
        if second is None or self.device.type == "cpu":
            yield
            return

        def change(*_: Any) -> None:
            if second.device != self.device:
                self.transformer.to("cpu")
                second.to(self.device)

        hook = second.register_forward_pre_hook(change)
        try:
            yield
        finally:
            hook.remove()
            second.to("cpu")
            self.transformer.to(self.device)

    @contextmanager
    def acting(self, control: AttentionControl) -> Iterator[None]:
        blocks, rope = self.transformer.blocks, self.transformer.rope
        attentions = [block.attn1 for block in blocks]
        originals = self.transformer.attn_processors
        names = [f"blocks.{layer}.attn1.processor" for layer in range(self.num_layers)]
        processors = {
            name: WanSelfAttention(layer, control, self._axes_dim, originals[name], attn)
            for layer, (name, attn) in enumerate(zip(names, attentions, strict=True))
        }

        def grid(inputs: tuple[Any, ...]) -> tuple[int, int, int]:
            return self.grid(inputs[0])

        with (
            attending(self.transformer, control, attentions, processors, rope, grid),
            _fused(blocks, self.recompute == "ffn"),
        ):
            yield

    def stepwise(
        self,
        sampler: Any,
        before_step: BeforeStep,
        *,
        num_inference_steps: int,
        generator: torch.Generator,
        **size: int,
    ) -> dict[str, Any]:
        scheduler = sampler.scheduler
        scheduler.set_timesteps(num_inference_steps, device=self.device)
        noise = sampler.prepare_latents(
            1,
            num_channels_latents=self.transformer.config.in_channels,
            **size,
            dtype=torch.float32,
            device=self.device,
            generator=generator,
        )

        def after_step(pipeline: Any, step: int, timestep: Tensor, given: dict[str, Any]) -> dict[str, Any]:
            following = scheduler.timesteps[step + 1 : step + 2]
            return {"latents": before_step(given["latents"], following[0])} if len(following) else given

        return {"latents": before_step(noise, scheduler.timesteps[0]), "callback_on_step_end": after_step}

    @property
    def _axes_dim(self) -> tuple[int, int, int]:
        rope = self.transformer.rope
        return rope.t_dim, rope.h_dim, rope.w_dim

    @torch.no_grad()
    def norm_leak(
        self, adapters: Sequence[tuple[HeadLora, float]], latents: Tensor, timestep: Tensor, text: Tensor
    ) -> list[tuple[float, float]]:
        leaks = [(0.0, 0.0)] * self.num_layers

        def measure(layer: int, attn: Any, hidden: Tensor, stack: AdapterStack) -> None:
            inactive = torch.ones(self.num_heads, dtype=torch.bool)
            for adapter, _ in stack.adapters:
                inactive[adapter.heads[layer]] = False
            if stack.qkv(layer) is None or not inactive.any():
                return
            # Rotation changes no norm, so any positions give the same figure.
            positions = AttentionControl(grid=(hidden.shape[1], 1, 1)).positions()
            base, changed = (
                normalise_rotate(attn, *project(attn, hidden, used, layer)[:2], positions, self._axes_dim)
                for used in (AdapterStack(), stack)
            )
            query, key = (
                float(
                    (new[:, :, inactive].float() - old[:, :, inactive].float()).norm()
                    / old[:, :, inactive].float().norm()
                )
                for old, new in zip(base, changed, strict=True)
            )
            leaks[layer] = (query, key)

        with self.attention(adapters=adapters) as control:
            hooks = [
                block.attn1.register_forward_pre_hook(
                    lambda attn, inputs, layer=layer: measure(layer, attn, inputs[0], control.stack)
                )
                for layer, block in enumerate(self.transformer.blocks)
            ]
            try:
                self.predict(latents, timestep, text)
            finally:
                for hook in hooks:
                    hook.remove()
        return leaks


@contextmanager
def _fused(blocks: Any, recompute_ffn: bool) -> Iterator[None]:
    """Our forward in every block; at the end the blocks' own again. All blocks keep theirs where one must."""
    reason = next(filter(None, map(why_stock, blocks)), "")
    if reason:
        LOG.warning("norms and gates run in the model's own blocks instead of fused: %s", reason)
        yield
        return
    before = [vars(block).get("forward") for block in blocks]
    try:
        for block in blocks:
            block.forward = WanBlockForward(block, recompute_ffn=recompute_ffn)
        yield
    finally:
        for block, forward in zip(blocks, before, strict=True):
            if forward is None:
                vars(block).pop("forward", None)
            else:
                block.forward = forward
