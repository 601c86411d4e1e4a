"""What all families have in common that are a diffusers pipeline: loading, latents, texts, sampling.

A family says what is its own: `refuse`, `published`, `make_schedule`, `predict`, `acting`, and where text or
latents have another form, `encode_prompt` and `run`. The VAE runs in fp32, everything else in `dtype`.
Shapes as in `fym.families.base`.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from fym.adapters import HeadLora
from fym.errors import UserError
from fym.families.base import AttentionControl, BeforeStep, Defaults, Family, OnQK
from fym.families.fingerprint import fingerprint
from fym.families.offload import Offload, spread
from fym.families.quantised import load_quantised
from fym.families.sharded import shard, together
from fym.flow import Schedule
from fym.positions import latent_frames

Reload = Callable[[str, dict[str, Any]], Any]  # (name of a part, all other parts) to the part
KEPT_TEXTS = 32  # embeddings kept, of some MB each, so that a freed text encoder need not come back


class PipelineFamily(Family):
    """A pipeline whose transformer takes adapters. given: instead of some of the published defaults."""

    pipeline_class: ClassVar[str]  # in diffusers, and in model_index.json
    encoders: ClassVar[tuple[str, ...]] = ("text_encoder",)
    tokenizers: ClassVar[tuple[str, ...]] = ("tokenizer",)
    tiled_vae: bool = False  # large frames in overlapping tiles
    offload: Offload | None = None
    guided_passes: ClassVar[int] = 2  # of the transformer in a guided denoising step
    fused_block: ClassVar[bool] = False  # whether feed-forward layers alone can be recomputed
    block_lists: ClassVar[tuple[str, ...]]  # the transformer's module lists, in the order of its layers

    def __init__(
        self,
        pipeline: Any,
        model_id: str,
        *,
        device: torch.device,
        model_hash: str = "",
        encoder_hash: str = "",
        given: dict[str, Any] | None = None,
        reload: Reload | None = None,
    ) -> None:
        """Takes the pipeline over, frozen; parts come to `device` when they are needed. reload: gives a part
        of it anew, so that it can be freed meanwhile. UserError for an unfit pipeline."""
        self.pipeline, self.transformer = pipeline, pipeline.transformer
        self.model_id, self.model_hash, self.encoder_hash = model_id, model_hash, encoder_hash
        self.refuse()
        pipeline.set_progress_bar_config(disable=True)
        for name, part in pipeline.components.items():
            self._freeze(name, part)
        self._reload, self._texts, self._text_device = reload, dict[str, Tensor](), device
        self.device, self.dtype = device, self.transformer.dtype  # diffusers walks all parameters to tell it
        self.defaults = Defaults(**{**self.published().__dict__, **(given or {})})
        self.schedule = self.make_schedule()
        config = self.transformer.config
        self.num_heads, self.head_dim = config.num_attention_heads, config.attention_head_dim
        self.layer_groups = tuple(len(blocks) for blocks in self.blocks())
        self.num_layers = sum(self.layer_groups)
        vae = pipeline.vae.config
        mean, std = (
            vae.get("latents_mean") or [0.0],
            vae.get("latents_std") or [1 / vae.get("scaling_factor")],
        )
        self._mean, self._std = (
            torch.tensor(x, device=device, dtype=torch.float32).view(1, -1, 1, 1, 1) for x in (mean, std)
        )

    @classmethod
    def load(
        cls, folder: Path, model_id: str, *, dtype: torch.dtype, device: torch.device, quantise: str = "none"
    ) -> PipelineFamily:
        """The family of a folder as save_pretrained writes it; a pickle is never opened."""
        import diffusers

        packed = {
            name: load_quantised(folder / name, cls.block_lists, quantise, dtype=dtype, device=device)
            for name in ("transformer", "transformer_2")
            if quantise != "none" and (folder / name).is_dir()
        }

        def read(**given: Any) -> Any:
            try:
                with _no_progress_bars():
                    return getattr(diffusers, cls.pipeline_class).from_pretrained(
                        str(folder),
                        dtype={"default": dtype, "vae": torch.float32},
                        local_files_only=True,
                        use_safetensors=True,
                        **given,
                    )
            except (OSError, ValueError) as error:
                reason = str(error).strip().splitlines()[0]
                raise UserError(f"{folder.name} cannot be loaded", reason, "Download it again") from error

        family = cls(
            read(**packed),
            model_id,
            device=device,
            model_hash=fingerprint(folder / "transformer"),
            encoder_hash=" ".join(fingerprint(folder / part) for part in ("vae", *cls.encoders)),
            given=given_defaults(folder),
            reload=lambda name, others: getattr(read(**others), name),
        )
        family.quantise = quantise
        return family

    def _freeze(self, name: str, part: Any) -> None:
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False).eval()
        if name == "vae" and self.tiled_vae:
            part.enable_tiling()

    def tile_vae(self) -> None:
        if not hasattr(self.pipeline.vae, "enable_tiling"):
            raise UserError(
                f"{self.model_id} cannot encode in tiles", "its VAE has none", "Leave model.vae at whole"
            )
        if not self.tiled_vae:
            self.tiled_vae = True
            self.pipeline.vae.enable_tiling()
            self.encoder_hash += " tiled"  # latents differ a little at the seams

    @property
    def shardable(self) -> bool:
        """Whether the weights can be shared out among processes."""
        return getattr(self.pipeline, "transformer_2", None) is None

    def check_shardable(self) -> None:
        """UserError unless the weights can be shared out among processes."""
        if not self.shardable:
            raise UserError(
                f"The weights of {self.model_id} cannot be shared out",
                "it is two transformers, which take turns on the device",
                "Leave model.shard at false",
            )

    def shard(self, mesh: DeviceMesh) -> None:
        self.check_shardable()
        shard(self.transformer, [block for group in self.blocks() for block in group], mesh)
        self.sharded = True

    def part(self, name: str, device: torch.device | None = None) -> Any:
        """An encoder, text encoder or VAE, on `device` (the model's); read again where it was freed."""
        if getattr(self.pipeline, name) is None:
            assert self._reload is not None
            others = {key: value for key, value in self.pipeline.components.items() if key != name}
            setattr(self.pipeline, name, self._reload(name, others))
            self._freeze(name, getattr(self.pipeline, name))
        return bring(getattr(self.pipeline, name), device or self.device)

    def free_encoders(self, *, keep_vae: bool = False) -> None:
        for name in (*self.encoders, *(() if keep_vae else ("vae",))):
            if self._reload is not None:
                setattr(self.pipeline, name, None)
            elif self.device.type != "cpu":
                getattr(self.pipeline, name).to("cpu")

    def offload_blocks(self, count: int) -> None:
        """Keeps the weights of so many blocks of each transformer in CPU memory, -1: of all of them."""
        names = ("transformer", "transformer_2")
        transformers = filter(None, (getattr(self.pipeline, name, None) for name in names))
        groups = [[b for name in self.block_lists for b in getattr(t, name)] for t in transformers]
        away = [block for blocks in groups for block in spread(blocks, count)]
        self.offload = Offload(away, self.device) if away else None

    @abstractmethod
    def refuse(self) -> None:
        """UserError for pipelines of this class that cannot be tuned."""

    @abstractmethod
    def published(self) -> Defaults:
        """The defaults of the published models; a folder's fym.json may replace any of them."""

    @abstractmethod
    def make_schedule(self) -> Schedule:
        """What the transformer was trained to undo."""

    def blocks(self) -> Sequence[Sequence[Any]]:
        """The transformer's blocks, in the groups and the order in which its layers are counted."""
        return [getattr(self.transformer, name) for name in self.block_lists]

    @abstractmethod
    def patch(self) -> tuple[int, int, int]:
        """Latent frames, rows and columns that make a token."""

    @abstractmethod
    def acting(self, control: AttentionControl) -> AbstractContextManager[None]:
        """Attention that follows `control`, and at the end the model's own again."""

    @property
    def text_shape(self) -> tuple[int, int]:
        """(L,d_text) of an embedded prompt."""
        return self.defaults.max_sequence_length, self.transformer.config.text_dim

    @torch.no_grad()
    def encode_video(self, frames: Tensor) -> Tensor:
        pixels = frames.to(self.device).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        latents = self.part("vae").encode(pixels).latent_dist.mode()
        return ((latents - self._mean) / self._std)[0].float()

    @torch.no_grad()
    def decode_video(self, latents: Tensor) -> Tensor:
        scaled = latents.to(self.device)[None].float() * self._std + self._mean
        pixels = self.part("vae").decode(scaled, return_dict=False)[0][0]
        return to_uint8((pixels / 2 + 0.5).clamp(0, 1).permute(1, 2, 3, 0))

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        # One at a time, as the pipeline encodes a single prompt: a batch would round differently.
        # The text encoders are the largest part of many models and needed only here: none stays on a GPU.
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._texts]
        encoders = [self.part(name, torch.device("cpu")) for name in self.encoders] if new else []
        self._text_device = _roomy(self.device, encoders)
        for encoder in encoders:
            bring(encoder, self._text_device)
        known = {prompt: self._texts[prompt] for prompt in prompts if prompt not in new}
        known |= {prompt: self.encode_prompt(prompt).cpu() for prompt in new}
        for encoder in encoders:
            bring(encoder, torch.device("cpu"))
        self._texts = dict([*self._texts.items(), *known.items()][-KEPT_TEXTS:])
        return torch.cat([known[prompt] for prompt in prompts]).to(self.device)

    def encode_prompt(self, prompt: str) -> Tensor:
        """(1,L,d_text) of one prompt."""
        return self.pipeline.encode_prompt(  # type: ignore[no-any-return]
            prompt,
            do_classifier_free_guidance=False,
            max_sequence_length=self.defaults.max_sequence_length,
            device=self._text_device,
        )[0]

    def grid(self, latents: Tensor) -> tuple[int, int, int]:
        frames, height, width = (n // p for n, p in zip(latents.shape[-3:], self.patch(), strict=True))
        return frames, height, width

    def tokens(self, num_frames: int, height: int, width: int) -> int:
        patch, scale = self.patch(), self.pipeline.vae_scale_factor_spatial
        frames = latent_frames(num_frames) // patch[0]
        return frames * (height // scale // patch[1]) * (width // scale // patch[2])

    def check_size(self, height: int, width: int) -> None:
        scale, patch = self.pipeline.vae_scale_factor_spatial, self.patch()
        # The pipelines themselves refuse what is not a multiple of 16.
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
        if self.recompute == "ffn" and not self.fused_block:
            raise UserError(
                f"{self.model_id} cannot recompute its feed-forward layers alone",
                "fym has no block of its own for this family",
                "Use --set tune.recompute=block",
            )
        for adapter, _ in adapters:
            bring(adapter, self.device)
        control = AttentionControl(self.stack(adapters), time_positions, on_qk)
        bring(self.transformer, self.device)
        checkpoint = self.recompute == "block" and not self.transformer.is_gradient_checkpointing
        if checkpoint:
            self.transformer.enable_gradient_checkpointing()
        try:
            with self.acting(control), together() if self.sharded else nullcontext():
                yield control
        finally:
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
        before_step: BeforeStep | None = None,
    ) -> Tensor:
        # Without the text encoders the pipeline finds itself on the device of what is left.
        vae = self.part("vae")
        parts = {**self.pipeline.components, "vae": vae, **dict.fromkeys((*self.encoders, *self.tokenizers))}
        sampler = self.rebuild(parts)
        sampler.set_progress_bar_config(disable=True)
        options: dict[str, Any] = {
            "generator": generator,
            "num_frames": num_frames,
            "height": height,
            "width": width,
            "num_inference_steps": steps,
        }
        if before_step is not None:
            options |= self.stepwise(sampler, before_step, **options)
        return self.run(sampler, text, negative, guidance_scale=guidance_scale, **options)

    def stepwise(
        self,
        sampler: Any,
        before_step: BeforeStep,
        *,
        num_inference_steps: int,
        generator: torch.Generator,
        **size: int,
    ) -> dict[str, Any]:
        """More options of the pipeline, with which `before_step` changes the latents before each step."""
        raise UserError(
            f"{self.model_id} cannot be guided",
            f"it is no Wan model but {self.name}",
            "Choose another method",
        )

    def rebuild(self, parts: dict[str, Any]) -> Any:
        """The same pipeline of these components."""
        return type(self.pipeline)(**parts)

    def run(self, sampler: Any, text: Tensor, negative: Tensor | None, **options: Any) -> Tensor:
        """(F,H,W,3) uint8 of one call of the pipeline."""
        video = sampler(prompt_embeds=text, negative_prompt_embeds=negative, output_type="np", **options)
        return to_uint8(torch.from_numpy(video.frames[0]))

    def norm_leak(
        self, adapters: Sequence[tuple[HeadLora, float]], latents: Tensor, timestep: Tensor, text: Tensor
    ) -> list[tuple[float, float]]:
        return [(0.0, 0.0)] * self.num_layers  # each head is normalised by itself


def _roomy(device: torch.device, encoders: Sequence[torch.nn.Module]) -> torch.device:
    """The device, or the CPU where a GPU has no room for the text encoders: one prompt takes it seconds."""
    if device.type != "cuda":
        return device
    needed = sum(p.nbytes for encoder in encoders for p in encoder.parameters())
    return device if 1.1 * needed < torch.cuda.mem_get_info(device)[0] else torch.device("cpu")


def bring(module: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """The module, on the device: its first weight tells where it is."""
    first = next(module.parameters(), None)
    return module if first is None or first.device == device else module.to(device)


def to_uint8(pixels: Tensor) -> Tensor:
    return (pixels.float() * 255).round().to(torch.uint8).cpu()


def given_defaults(folder: Path) -> dict[str, Any]:
    """The folder's own defaults."""
    path = folder / "fym.json"
    given: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    unknown = sorted(set(given) - set(Defaults.__dataclass_fields__))
    if unknown:
        known = ", ".join(Defaults.__dataclass_fields__)
        raise UserError(f"{path} has unknown keys", ", ".join(unknown), f"Known are {known}")
    return given


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
