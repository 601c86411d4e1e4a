"""Train the embedded model's diffusion transformer and write the pipeline folder.

    python -m fym.embedded.train_dit --out FOLDER [--clips-count 8000] [--plan mixed:3000,full:1500]
                                     [--start FOLDER] [--float32]

FOLDER holds `vae/` (from fym.embedded.train_vae). Latents of rendered scenes are encoded once; then the
transformer and the text encoder learn from single frames (`frame`), from a few latent frames of a clip at
their true time positions (`few`) and from whole clips (`full`). --start: a pipeline folder whose weights are
trained further. --float32: for CPUs without matrix units for bfloat16, where that is the faster
way. Seeded and resumable: run it again.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fym.embedded.autoencoder import PatchAutoencoder
from fym.embedded.scenes import FRAMES, SIZE, render_with_masks, sample_scene
from fym.embedded.text import MAX_TOKENS, TEXT_DIM, build_text_encoder, build_tokenizer, encode, tokenize
from fym.embedded.train_vae import make_optimizers, to_input

LATENT_CHANNELS = 16

SHIFT = 3.0  # of the flow-matching noise schedule
LATENT_FRAMES = 1 + (FRAMES - 1) // 4
BATCH = {"frame": 64, "few": 24, "full": 8}
OBJECT_WEIGHT = 4.0  # extra loss weight of the cells that objects touch


def build_transformer() -> WanTransformer3DModel:
    """The embedded transformer (4 layers, 6 heads of 32) with random weights."""
    return WanTransformer3DModel(
        patch_size=(1, 1, 1),
        num_attention_heads=6,
        attention_head_dim=32,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        text_dim=TEXT_DIM,
        freq_dim=256,
        ffn_dim=768,
        num_layers=4,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=256,
    )


class MatmulAttention:
    """Wan's attention by plain matrix products: in bfloat16 several times faster than SDPA on a CPU at this
    size; in float32 SDPA is faster."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1))
        key = attn.norm_k(attn.to_k(context)).unflatten(2, (attn.heads, -1))
        value = attn.to_v(context).unflatten(2, (attn.heads, -1))
        if rotary_emb is not None:
            query, key = rotate(query, *rotary_emb), rotate(key, *rotary_emb)
        query, key, value = (x.to(value.dtype).transpose(1, 2) for x in (query, key, value))
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        out = scores.softmax(-1, dtype=scores.dtype) @ value
        return attn.to_out[0](out.transpose(1, 2).flatten(2))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate interleaved channel pairs of (B, S, H, D) by tables of (1, S, 1, D)."""
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    c, s = cos[..., 0::2], sin[..., 1::2]
    return torch.stack([a * c - b * s, a * s + b * c], -1).flatten(-2)


class PickedRope(nn.Module):
    """Wan's rotary table for the latent frames `picked` of a full clip (their true positions)."""

    def __init__(self, rope: Any):
        super().__init__()
        self.rope = rope
        self.picked: Tensor | None = None

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        if self.picked is None:
            return self.rope(hidden_states)
        b, c, _, h, w = hidden_states.shape
        tables = self.rope(hidden_states.new_empty(1).expand(b, c, LATENT_FRAMES, h, w))
        return tuple(t.unflatten(1, (LATENT_FRAMES, -1))[:, self.picked].flatten(1, 2) for t in tables)


# --------------------------------------------------------------------------- data
@torch.no_grad()
def make_latents(vae: PatchAutoencoder, folder: Path, count: int, *, chunk: int = 500) -> None:
    """Render and encode `count` scenes; chunks already on disk are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    mean, std = (
        torch.tensor(x)[:, None, None, None] for x in (vae.config.latents_mean, vae.config.latents_std)
    )
    for first in range(0, count, chunk):
        path = folder / f"latents_{first:06d}.safetensors"
        if path.exists():
            continue
        latents, ids, touched = [], [], []
        for index in range(first, first + chunk, 10):
            scenes = [sample_scene(np.random.default_rng((7, index + k))) for k in range(10)]
            frames, masks = zip(*(render_with_masks(s) for s in scenes), strict=True)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                z = vae.encode(to_input(torch.stack(frames)), return_dict=False)[0].mode().float()
            latents.append(((z - mean) / std).half().contiguous())
            ids.append(tokenize(tokenizer, [s.prompt for s in scenes]))
            touched.append(torch.stack([object_cells(m) for m in masks]))
        data = {"latents": torch.cat(latents), "ids": torch.cat(ids), "touched": torch.cat(touched)}
        save_file(data, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").rename(path)


def load_latents(folder: Path) -> dict[str, Tensor]:
    parts = [load_file(p) for p in sorted(folder.glob("latents_*.safetensors"))]
    data = {key: torch.cat([p[key] for p in parts]) for key in parts[0]}
    data["weight"] = 1.0 + OBJECT_WEIGHT * data.pop("touched").float()
    return data


def object_cells(masks: Tensor) -> Tensor:
    """Masks (N, F, H, W) in [0, 1] -> (F', H/8, W/8) bool: cells that an object covers or touches.

    Objects cover about a tenth of the picture; without a weight their shape is learned last.
    """
    covered = masks.amax(0) if len(masks) else masks.new_zeros(masks.shape[1:])
    groups = torch.cat([covered[:1].expand(4, -1, -1), covered[1:]]).unflatten(0, (-1, 4)).amax(1)
    return nn.functional.max_pool2d(groups[None], 8)[0] > 0.5


def pick_frames(mode: str, rng: np.random.Generator) -> list[int]:
    """Latent frames of one training step: frame 0 alone, a run or a strided subset, or all of them."""
    if mode == "frame":
        return [0]
    if mode == "full":
        return list(range(LATENT_FRAMES))
    if rng.random() < 0.4:
        return list(range(int(rng.integers(3, 6))))
    inner = rng.choice(np.arange(1, LATENT_FRAMES), int(rng.integers(3, 5)), replace=False)
    return [0, *sorted(int(i) for i in inner)]


# --------------------------------------------------------------------------- training
def learning_rate(step: int, total: int) -> float:
    """Warm-up over 100 steps, constant, then a linear fall over the last quarter."""
    return min(1.0, (step + 1) / 100, (total - step) / (0.25 * total))


def loss_of(
    modules: nn.ModuleDict,
    data: dict[str, Tensor],
    mode: str,
    seed: tuple[int, ...],
    *,
    half: bool = True,
) -> Tensor:
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    transformer: Any = modules["transformer"]
    index = torch.from_numpy(rng.integers(0, len(data["ids"]), BATCH[mode]))
    picked = pick_frames(mode, rng)
    x0 = data["latents"][index][:, :, picked].float()
    weight = data["weight"][index][:, None, picked]
    ids = data["ids"][index].clone()
    ids[torch.rand(len(ids), generator=generator) < 0.1] = data["null"]
    u = torch.sigmoid(torch.randn(len(ids), generator=generator) * 1.2)
    u = (u + torch.rand(1, generator=generator)) % 1.0 if rng.random() < 0.3 else u
    sigma = SHIFT * u / (1 + (SHIFT - 1) * u)
    noise = torch.randn(x0.shape, generator=generator)
    s = sigma[:, None, None, None, None]
    length = 512 if rng.random() < 0.05 else MAX_TOKENS  # the default call of WanPipeline pads to 512
    transformer.rope.picked = torch.tensor(picked) if mode == "few" else None
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        text = encode(modules["text_encoder"], ids, length)
        out = transformer((1 - s) * x0 + s * noise, sigma * 1000, text, return_dict=False)[0]
    return (weight * (out.float() - (noise - x0)).square()).mean() / weight.mean()


def parse_plan(text: str) -> list[tuple[dict[str, float], int]]:
    """`frame:700,few:1900,full:1400` -> [(chances of the modes, steps), ...]; later parts revisit."""
    mixes = {
        "frame": {"frame": 1.0},
        "few": {"few": 0.85, "frame": 0.15},
        "mixed": {"full": 0.5, "few": 0.35, "frame": 0.15},
        "full": {"full": 0.7, "few": 0.22, "frame": 0.08},
    }
    return [(mixes[name], int(steps)) for name, steps in (part.split(":") for part in text.split(","))]


def mode_of(plan: list[tuple[dict[str, float], int]], step: int) -> str:
    rng = np.random.default_rng((11, step))
    ends = np.cumsum([steps for _, steps in plan])
    mix = plan[int(np.searchsorted(ends, step, side="right"))][0]
    return str(rng.choice(list(mix), p=list(mix.values())))


def load_weights(modules: nn.ModuleDict, folder: Path) -> None:
    """Take transformer and text encoder of a pipeline folder; words it lacks keep their random start."""
    pipeline = WanPipeline.from_pretrained(folder)
    state = {f"transformer.{k}": v for k, v in pipeline.transformer.state_dict().items()}
    state |= {f"text_encoder.{k}": v for k, v in pipeline.text_encoder.state_dict().items()}
    wrapped = {k.replace("transformer.rope.", "transformer.rope.rope."): v.float() for k, v in state.items()}
    own = modules.state_dict()
    for name, value in wrapped.items():
        if "shared" in name or "embed_tokens" in name:  # ids are only ever added at the end
            wrapped[name] = torch.cat([value, own[name][len(value) :]])
    modules.load_state_dict(wrapped)


def write_pipeline(vocabulary: int, weights: dict[str, Tensor], vae: PatchAutoencoder, out: Path) -> None:
    """Save the diffusers folder with the given (averaged) weights in half precision."""
    transformer, encoder = build_transformer(), build_text_encoder(vocabulary)
    clean = {k.replace("rope.rope.", "rope."): v for k, v in weights.items()}
    for name, module in (("transformer", transformer), ("text_encoder", encoder)):
        missing = module.load_state_dict(
            {k[len(name) + 1 :]: v for k, v in clean.items() if k.startswith(name + ".")}, strict=False
        )
        assert not missing.unexpected_keys, missing
    WanPipeline(
        tokenizer=build_tokenizer(),
        text_encoder=encoder.float(),
        vae=vae.half(),
        transformer=transformer.half(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
    ).save_pretrained(out)
    vae.float()
    config = out / "vae" / "config.json"  # diffusers writes where the autoencoder was loaded from
    kept = {k: v for k, v in json.loads(config.read_text()).items() if k != "_name_or_path"}
    config.write_text(json.dumps(kept, indent=2) + "\n")
    facts: dict[str, Any] = {
        "num_frames": FRAMES,
        "height": SIZE,
        "width": SIZE,
        "fps": 16,
        "num_inference_steps": 25,
        "guidance_scale": 4.0,
        "max_sequence_length": MAX_TOKENS,
    }
    (out / "fym.json").write_text(json.dumps(facts, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--clips-count", type=int, default=8000)
    parser.add_argument("--plan", default="frame:700,few:1900,full:1400")
    parser.add_argument("--start", type=Path, help="a pipeline folder whose weights are trained further")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--float32", action="store_true")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    vae = PatchAutoencoder.from_pretrained(args.out / "vae").eval()
    make_latents(vae, args.out / "latents", args.clips_count)
    data = load_latents(args.out / "latents")
    tokenizer = build_tokenizer()
    data["null"] = tokenize(tokenizer, [""])[0]

    transformer = build_transformer()
    transformer.rope = PickedRope(transformer.rope)
    if not args.float32:
        transformer.set_attn_processor(MatmulAttention())
    modules = nn.ModuleDict({"transformer": transformer, "text_encoder": build_text_encoder(len(tokenizer))})
    if args.start:
        load_weights(modules, args.start)
    optimizers = make_optimizers(modules, args.lr)
    averaged = {k: v.detach().clone() for k, v in modules.named_parameters()}
    state_file, first = args.out / "dit_state.pt", 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        modules.load_state_dict(state["modules"])
        averaged, first = state["averaged"], state["step"]
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)

    plan = parse_plan(args.plan)
    total = sum(steps for _, steps in plan)
    log = (args.out / "dit.jsonl").open("a")
    start = time.time()
    recent: dict[str, float] = {}
    for step in range(first, total):
        mode = mode_of(plan, step)
        loss = loss_of(modules, data, mode, (args.seed, step), half=not args.float32)
        for optimizer in optimizers:
            optimizer.zero_grad()
            for group in optimizer.param_groups:
                group["lr"] = args.lr * learning_rate(step, total)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        decay = min(0.999, (step + 1) / (step + 10))
        with torch.no_grad():
            for name, p in modules.named_parameters():
                averaged[name].lerp_(p, 1 - decay)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise SystemExit(f"loss is {value} at step {step}; the last checkpoint is kept in {state_file}")
        recent[mode] = 0.98 * recent.get(mode, value) + 0.02 * value
        if step % 25 == 0:
            row = {
                "step": step,
                "mode": mode,
                "loss": value,
                "smooth": dict(recent),
                "seconds": time.time() - start,
            }
            print(json.dumps(row), file=log, flush=True)
        if (step + 1) % 250 == 0 or step + 1 == total:
            state = {
                "modules": modules.state_dict(),
                "optimizers": [o.state_dict() for o in optimizers],
                "averaged": averaged,
                "step": step + 1,
            }
            torch.save(state, state_file.with_suffix(".tmp"))
            state_file.with_suffix(".tmp").rename(state_file)
            write_pipeline(len(tokenizer), averaged, vae, args.out / "model")
    write_pipeline(len(tokenizer), averaged, vae, args.out / "model")  # again, should the decoder be new


if __name__ == "__main__":
    main()
