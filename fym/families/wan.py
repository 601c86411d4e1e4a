"""Wan 2.1 and 2.2 text-to-video models with one transformer, through diffusers' WanPipeline."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fym.adapters import AdapterStack, HeadLora
from fym.errors import UserError
from fym.families.base import AttentionControl, Defaults, Family, OnQK
from fym.families.fingerprint import fingerprint
from fym.families.projections import LOG, check_plain, installed, project, report_fallbacks
from fym.families.wan_block import WanBlockForward, WanSelfAttention, normalise_rotate, why_stock
from fym.flow import FlowMatching
from fym.positions import latent_frames

# Of the published models; a folder's fym.json may replace any of them.
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


class WanFamily(Family):
    """A WanPipeline folder. The VAE runs in fp32, as its makers advise; everything else in `dtype`."""

    name = "wan"

    def __init__(self, folder: Path, model_id: str, *, dtype: torch.dtype, device: torch.device) -> None:
        from diffusers import WanPipeline

        try:
            with _no_progress_bars():
                pipeline = WanPipeline.from_pretrained(
                    str(folder),
                    dtype={"default": dtype, "vae": torch.float32},
                    local_files_only=True,
                    use_safetensors=True,  # a pickle is never opened
                )
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"{folder.name} cannot be loaded", reason, "Download it again") from error
        transformer = pipeline.transformer
        if transformer is None or pipeline.transformer_2 is not None:
            raise UserError(
                f"{model_id} has two transformers or none",
                "an adapter belongs to one transformer",
                "Choose a model with one, such as Wan 2.1 or Wan 2.2 TI2V",
            )
        if transformer.config.image_dim is not None or transformer.config.added_kv_proj_dim is not None:
            raise UserError(
                f"{model_id} animates pictures",
                "motion is learned by text-to-video models",
                "Choose a T2V model",
            )
        pipeline.set_progress_bar_config(disable=True)
        for part in (transformer, pipeline.vae, pipeline.text_encoder):
            part.requires_grad_(False).eval()
        transformer.to(device)
        pipeline.vae.to(device)

        self.pipeline, self.transformer = pipeline, transformer
        self.model_id, self.model_hash = model_id, fingerprint(folder / "transformer")
        self.encoder_hash = " ".join(fingerprint(folder / part) for part in ("vae", "text_encoder"))
        self.defaults = _defaults(folder)
        self.schedule = FlowMatching(
            self.defaults.training_shift, pipeline.scheduler.config.num_train_timesteps
        )
        self.num_layers = len(transformer.blocks)
        self.num_heads = transformer.config.num_attention_heads
        self.head_dim = transformer.config.attention_head_dim
        self.device, self.dtype = device, transformer.dtype  # diffusers walks all parameters to tell it
        rope = transformer.rope
        self._axes_dim = (rope.t_dim, rope.h_dim, rope.w_dim)
        config = pipeline.vae.config
        shape = (1, config.z_dim, 1, 1, 1)
        self._mean = torch.tensor(config.latents_mean, device=device).view(shape)
        self._std = torch.tensor(config.latents_std, device=device).view(shape)

    @torch.no_grad()
    def encode_video(self, frames: Tensor) -> Tensor:
        pixels = frames.to(self.device).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        latents = self.pipeline.vae.encode(pixels).latent_dist.mode()
        return ((latents - self._mean) / self._std)[0].float()

    @torch.no_grad()
    def decode_video(self, latents: Tensor) -> Tensor:
        scaled = latents.to(self.device)[None].float() * self._std + self._mean
        pixels = self.pipeline.vae.decode(scaled, return_dict=False)[0][0]
        return _to_uint8((pixels / 2 + 0.5).clamp(0, 1).permute(1, 2, 3, 0))

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        # One at a time, as the pipeline encodes a single prompt: a batch would round differently.
        # The text encoder is the largest part of the model and needed only here: it does not stay on a GPU.
        encoder = self.pipeline.text_encoder.to(self.device)
        encoded = [
            self.pipeline.encode_prompt(
                prompt,
                do_classifier_free_guidance=False,
                max_sequence_length=self.defaults.max_sequence_length,
                device=self.device,
            )[0]
            for prompt in prompts
        ]
        if self.device.type != "cpu":
            encoder.to("cpu")
        return torch.cat(encoded)

    def predict(self, latents: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        batch, dtype = len(latents), self.dtype
        if self.pipeline.config.expand_timesteps:  # Wan 2.2 TI2V: a timestep for every token
            frames, rows, columns = self.grid(latents)
            timestep = timestep[:, None].expand(batch, frames * rows * columns)
        return self.transformer(
            hidden_states=latents.to(self.device, dtype),
            timestep=timestep.to(self.device),
            encoder_hidden_states=text.to(self.device, dtype).expand(batch, -1, -1),
            return_dict=False,
        )[0].float()

    def grid(self, latents: Tensor) -> tuple[int, int, int]:
        frames, height, width = latents.shape[-3:]
        p_t, p_h, p_w = self.transformer.config.patch_size
        return frames // p_t, height // p_h, width // p_w

    def tokens(self, num_frames: int, height: int, width: int) -> int:
        patch, scale = self.transformer.config.patch_size, self.pipeline.vae_scale_factor_spatial
        frames = latent_frames(num_frames) // patch[0]
        return frames * (height // scale // patch[1]) * (width // scale // patch[2])

    def check_size(self, height: int, width: int) -> None:
        patch = self.transformer.config.patch_size
        scale = self.pipeline.vae_scale_factor_spatial
        # The pipeline itself refuses what is not a multiple of 16.
        steps = (max(16, scale * patch[1]), max(16, scale * patch[2]))
        if height % steps[0] or width % steps[1]:
            near = tuple(max(1, round(v / s)) * s for v, s in zip((height, width), steps, strict=True))
            raise UserError(
                f"{height}x{width} pixels do not fit the model",
                f"height must be a multiple of {steps[0]} and width of {steps[1]}",
                f"Use --height {near[0]} --width {near[1]}",
            )

    @contextmanager
    def attention(
        self,
        *,
        adapters: Sequence[tuple[HeadLora, float]] = (),
        time_positions: Tensor | None = None,
        on_qk: OnQK | None = None,
    ) -> Iterator[AttentionControl]:
        blocks = self.transformer.blocks
        attentions = [block.attn1 for block in blocks]
        if adapters:
            check_plain(attentions)
        else:
            report_fallbacks(attentions)
        for adapter, _ in adapters:
            adapter.to(self.device)
        control = AttentionControl(
            AdapterStack(adapters, fold=self.dtype == torch.float32), time_positions, on_qk
        )
        originals = self.transformer.attn_processors
        names = [f"blocks.{layer}.attn1.processor" for layer in range(self.num_layers)]
        processors = {
            name: WanSelfAttention(layer, control, self._axes_dim, originals[name], attn)
            for layer, (name, attn) in enumerate(zip(names, attentions, strict=True))
        }

        def note_grid(module: Any, inputs: tuple[Tensor, ...]) -> None:
            control.grid = self.grid(inputs[0])

        # The processor sees tokens only; the call of the RoPE module is where their grid passes by.
        hook = self.transformer.rope.register_forward_pre_hook(note_grid)
        checkpoint = self.recompute == "block" and not self.transformer.is_gradient_checkpointing
        if checkpoint:
            self.transformer.enable_gradient_checkpointing()
        try:
            with installed(self.transformer, processors), _fused(blocks, self.recompute == "ffn"):
                yield control
        finally:
            hook.remove()
            if checkpoint:
                self.transformer.disable_gradient_checkpointing()

    @torch.no_grad()
    def sample(
        self,
        text: Tensor,
        negative: Tensor | None,
        *,
        generator: torch.Generator,
        num_frames: int,
        height: int,
        width: int,
        steps: int,
        guidance_scale: float,
    ) -> Tensor:
        # Without the text encoder the pipeline finds itself on the device of what is left.
        sampler = type(self.pipeline)(
            **{**self.pipeline.components, "text_encoder": None, "tokenizer": None},
            boundary_ratio=self.pipeline.config.boundary_ratio,
            expand_timesteps=self.pipeline.config.expand_timesteps,
        )
        sampler.set_progress_bar_config(disable=True)
        video = sampler(
            prompt_embeds=text,
            negative_prompt_embeds=negative,
            generator=generator,
            num_frames=num_frames,
            height=height,
            width=width,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            output_type="np",
        ).frames[0]
        return _to_uint8(torch.from_numpy(video))

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


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Loading takes moments; the libraries' switches are global and are put back."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    shown = [library for library in (of_diffusers, of_transformers) if library.is_progress_bar_enabled()]
    for library in shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in shown:
            library.enable_progress_bar()


def _to_uint8(pixels: Tensor) -> Tensor:
    return (pixels.float() * 255).round().to(torch.uint8).cpu()


def _defaults(folder: Path) -> Defaults:
    path = folder / "fym.json"
    given = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    unknown = sorted(set(given) - set(WAN_DEFAULTS.__dataclass_fields__))
    if unknown:
        known = ", ".join(WAN_DEFAULTS.__dataclass_fields__)
        raise UserError(f"{path} has unknown keys", ", ".join(unknown), f"Known are {known}")
    return Defaults(**{**WAN_DEFAULTS.__dict__, **given})
