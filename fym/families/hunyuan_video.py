"""HunyuanVideo's attention on fym_kernels: tokens of the latents and of the text in one sequence.

Two kinds of layers, numbered one after the other: in dual layers the text has projections and norms of its
own; in single ones it shares the latents', and an adapter acts on both. Order: latents, then text. RMSNorm
per head; RoPE on the latents' tokens: (16, 56, 56) channels, interleaved pairs, theta 256.
Shapes: B batch, S tokens of the latents, L of the text, d channels, H heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor

import fym_kernels
from fym.errors import UserError
from fym.families.base import AttentionControl, Defaults
from fym.families.pipeline import PipelineFamily, to_uint8
from fym.families.projections import attending, project, project_out
from fym.flow import FlowMatching


class HunyuanVideoAttention:
    """Processor of one layer. axes_dim: head channels of the (time, row, column) axes of RoPE."""

    _attention_backend: Any = None
    _parallel_config: Any = None

    def __init__(
        self,
        layer: int,
        control: AttentionControl,
        axes_dim: tuple[int, int, int],
        theta: float,
        original: Any,
    ) -> None:
        self.layer, self.control, self.axes_dim, self.theta = layer, control, axes_dim, theta
        self._attention_backend = getattr(original, "_attention_backend", None)
        self._parallel_config = getattr(original, "_parallel_config", None)

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        control, dual = self.control, attn.add_q_proj is not None
        lengths, heads = [hidden_states.shape[1], encoder_hidden_states.shape[1]], (attn.heads, -1)
        tokens = hidden_states if dual else torch.cat([hidden_states, encoder_hidden_states], dim=1)
        query, key, value = (x.unflatten(2, heads) for x in project(attn, tokens, control.stack, self.layer))
        query, key = fym_kernels.qk_norm_rope(
            query,
            key,
            attn.norm_q.weight,
            attn.norm_k.weight,
            control.positions(),
            axes_dim=self.axes_dim,
            theta=self.theta,
            eps=attn.norm_q.eps,
            norm="per_head",
        )
        if control.on_qk is not None:
            control.on_qk(self.layer, query[:, : lengths[0]], key[:, : lengths[0]])
        if dual:
            text = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
            text_query, text_key, text_value = (
                linear(encoder_hidden_states).unflatten(2, heads) for linear in text
            )
            query = torch.cat([query, attn.norm_added_q(text_query)], dim=1)
            key = torch.cat([key, attn.norm_added_k(text_key)], dim=1)
            value = torch.cat([value, text_value], dim=1)
        band = control.band
        if band is not None:
            of_latents, of_text = torch.stack((query, key, value)).split(lengths, dim=2)
            query, key, value = torch.cat([band.by_heads(of_latents), band.text_by_heads(of_text)], dim=2)
            if attention_mask is not None:  # it tells text from padding, behind the latents' tokens
                attention_mask = F.pad(attention_mask, (query.shape[1] - sum(lengths), 0), value=True)
        attended = dispatch_attention_fn(
            query,
            key,
            value,
            attn_mask=attention_mask,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        latents, text_out = attended.split([attended.shape[1] - lengths[1], lengths[1]], dim=1)
        if band is not None:
            latents, text_out = band.by_tokens(latents), band.text_by_tokens(text_out)
        latents, text_out = latents.flatten(2, 3), text_out.flatten(2, 3)
        if not dual:
            return latents, text_out
        latents = attn.to_out[1](project_out(attn, latents, control.stack, self.layer))
        return latents, attn.to_add_out(text_out)


@contextmanager
def attention(transformer: Any, control: AttentionControl) -> Iterator[None]:
    """As `PipelineFamily.acting`, for a HunyuanVideoTransformer3DModel; its text refiner is left alone.

    on_qk sees the latents' tokens. Raises UserError for layers that take no adapter; ValueError where an
    adapter targets "o" in a single layer, which has no output projection of its own.
    """
    dual, single = list(transformer.transformer_blocks), list(transformer.single_transformer_blocks)
    attentions = [block.attn for block in dual + single]
    for adapter, _ in control.stack.adapters:
        if "o" in adapter.targets and any(len(heads) for heads in adapter.heads[len(dual) :]):
            raise ValueError('targets must be "qkv" for heads of single layers, got "qkvo"')
    rope = transformer.rope
    names = [f"transformer_blocks.{i}.attn.processor" for i in range(len(dual))]
    names += [f"single_transformer_blocks.{i}.attn.processor" for i in range(len(single))]
    originals = transformer.attn_processors
    processors = {
        name: HunyuanVideoAttention(layer, control, tuple(rope.rope_dim), rope.theta, originals[name])
        for layer, name in enumerate(names)
    }

    def grid(inputs: tuple[Any, ...]) -> tuple[int, int, int]:
        frames, height, width = inputs[0].shape[-3:]
        return frames // rope.patch_size_t, height // rope.patch_size, width // rope.patch_size

    with attending(transformer, control, attentions, processors, rope, grid):
        yield


HUNYUAN_DEFAULTS = Defaults(
    num_frames=129,
    height=720,
    width=1280,
    fps=24,
    num_inference_steps=50,
    guidance_scale=6.0,
    max_sequence_length=256,
    training_shift=7.0,
)
# What the distilled guidance input is told while tuning: at 1 the model predicts the plain velocity, which is
# the target; larger values ask it for the guided one.
TUNING_GUIDANCE = 1.0


class HunyuanVideoFamily(PipelineFamily):
    """HunyuanVideo, text to video. Two text encoders: a language model that is shown the prompt in a
    template, and CLIP's pooled vector. Guidance is an input of the transformer: no negative prompt."""

    name = "hunyuan_video"
    pipeline_class = "HunyuanVideoPipeline"
    encoders = ("text_encoder", "text_encoder_2")
    tokenizers = ("tokenizer", "tokenizer_2")
    tiled_vae = True
    block_lists = ("transformer_blocks", "single_transformer_blocks")
    guided_passes = 1  # the scale is an input
    targets = "qkv"  # in single layers the output projection also serves the feed-forward branch

    def refuse(self) -> None:
        if self.transformer.config.get("image_condition_type") is not None:
            raise UserError(
                f"{self.model_id} animates pictures",
                "motion is learned by text-to-video models",
                "Choose hunyuanvideo-community/HunyuanVideo",
            )

    def published(self) -> Defaults:
        return HUNYUAN_DEFAULTS

    def make_schedule(self) -> FlowMatching:
        steps = self.pipeline.scheduler.config.num_train_timesteps
        return FlowMatching(self.defaults.training_shift, steps)

    def patch(self) -> tuple[int, int, int]:
        config = self.transformer.config
        return config.patch_size_t, config.patch_size, config.patch_size

    def acting(self, control: AttentionControl) -> AbstractContextManager[None]:
        return attention(self.transformer, control)

    @property
    def text_shape(self) -> tuple[int, int]:
        config = self.transformer.config
        width = max(config.text_embed_dim, config.pooled_projection_dim)
        return self.defaults.max_sequence_length + 1, width + 1

    def encode_prompt(self, prompt: str) -> Tensor:
        """(1,L+1,d+1): L rows of the language model's embedding and, in the last column, its mask; then
        CLIP's vector. Rows are filled up with zeros."""
        embeds, pooled, mask = self.pipeline.encode_prompt(
            prompt, max_sequence_length=self.defaults.max_sequence_length, device=self._text_device
        )
        length, width = embeds.shape[1], max(embeds.shape[2], pooled.shape[1])
        text: Tensor = embeds.new_zeros(1, length + 1, width + 1)
        text[:, :length, : embeds.shape[2]] = embeds
        text[:, :length, -1] = mask
        text[:, length, : pooled.shape[1]] = pooled
        return text

    def _unpack(self, text: Tensor) -> dict[str, Tensor]:
        """By the names of the pipeline's arguments."""
        config = self.transformer.config
        return {
            "prompt_embeds": text[:, :-1, : config.text_embed_dim],
            "prompt_attention_mask": text[:, :-1, -1],
            "pooled_prompt_embeds": text[:, -1, : config.pooled_projection_dim],
        }

    def predict(self, latents: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        batch, dtype = len(latents), self.dtype
        parts = self._unpack(text.to(self.device, dtype).expand(batch, -1, -1))
        predicted: Tensor = self.transformer(
            hidden_states=latents.to(self.device, dtype),
            timestep=timestep.to(self.device),
            encoder_hidden_states=parts["prompt_embeds"],
            encoder_attention_mask=parts["prompt_attention_mask"],
            pooled_projections=parts["pooled_prompt_embeds"],
            guidance=torch.full((batch,), 1000 * TUNING_GUIDANCE, dtype=dtype, device=self.device),
            return_dict=False,
        )[0]
        return predicted.float()

    def run(self, sampler: Any, text: Tensor, negative: Tensor | None, **options: Any) -> Tensor:
        video = sampler(**self._unpack(text), output_type="np", **options)
        return to_uint8(torch.from_numpy(video.frames[0]))
