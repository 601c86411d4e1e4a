"""Train the embedded model's autoencoder: `python -m fym.embedded.train_vae --out FOLDER`.

It starts as the principal components of 8 x 8 pixel x 4 frame patches, or from a trained one (`--start`), and
learns rendered scenes at random playback speeds and crops of real clips. `--decoder-only` keeps the latents
of the start exactly as they are. Seeded and resumable: run the same command again.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fym.embedded.autoencoder import STRIDE, PatchAutoencoder, to_patches
from fym.embedded.scenes import FRAMES, SIZE, at_frames, render, sample_scene, unseen_scene
from fym.muon import Muon

NOISE = 0.05  # standard deviation of the noise on latents in training, as a share of each channel's

MARK = 1.0  # of the first latent frame, in standard deviations of each channel


def to_input(frames: Tensor) -> Tensor:
    """(..., F, H, W, 3) uint8 -> (..., 3, F, H, W) in [-1, 1]."""
    return frames.float().div(127.5).sub(1.0).movedim(-1, -4)


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of images in [-1, 1]."""
    return float(10 * torch.log10(4.0 / F.mse_loss(a.clamp(-1, 1), b)))


class RealClips:
    """Random square crops of real clips; frames are kept at 72 pixels height."""

    def __init__(self, folder: Path):
        self.clips: list[Tensor] = []
        for path in sorted(folder.glob("*.mp4")):
            with av.open(str(path)) as container:
                frames = [
                    f.reformat(
                        width=max(72, f.width * 72 // f.height), height=72, format="rgb24"
                    ).to_ndarray()
                    for f in container.decode(video=0)
                ]
            self.clips.append(torch.from_numpy(np.stack(frames)))

    def window(self, rng: np.random.Generator, frames: int = STRIDE) -> Tensor:
        """(frames, 48, 48, 3) uint8: a random crop at a random playback speed."""
        clip = self.clips[rng.integers(len(self.clips))]
        stride = min(int(rng.integers(1, 7)), (len(clip) - 1) // (frames - 1))
        start = int(rng.integers(0, len(clip) - (frames - 1) * stride))
        side = int(rng.integers(SIZE, min(clip.shape[1:3]) + 1))
        y = int(rng.integers(0, clip.shape[1] - side + 1))
        x = int(rng.integers(0, clip.shape[2] - side + 1))
        crop = clip[start : start + (frames - 1) * stride + 1 : stride, y : y + side, x : x + side]
        crop = F.interpolate(crop.movedim(-1, 1).float(), size=(SIZE, SIZE), mode="area")
        return crop.movedim(1, -1).round().to(torch.uint8)


def scene_window(rng: np.random.Generator) -> Tensor:
    """(4, 48, 48, 3) uint8: four frames of a random scene at a playback speed of 0 (a still) to 6."""
    scene = sample_scene(rng)
    stride = int(rng.choice([0, 1, 1, 1, 2, 3, 4, 6]))
    start = int(rng.integers(0, FRAMES - (STRIDE - 1) * stride))
    return render(at_frames(scene, [start + k * stride for k in range(STRIDE)]))


def batch(rng: np.random.Generator, size: int, real: RealClips | None) -> Tensor:
    """(size, 6, 6, 768) patches; a quarter of them from real clips."""
    windows = [
        real.window(rng) if real is not None and rng.random() < 0.25 else scene_window(rng)
        for _ in range(size)
    ]
    return to_patches(to_input(torch.stack(windows)))[:, 0]


@torch.no_grad()
def start_from_principal_components(vae: PatchAutoencoder, real: RealClips | None) -> None:
    """Set the linear part to the leading principal components of random patches."""
    x = batch(np.random.default_rng(99), 512, real).flatten(0, 2)
    mean = x.mean(0)
    _, _, basis = torch.linalg.svd(x - mean, full_matrices=False)
    basis = basis[: vae.config.z_dim]
    vae.encode_linear.weight.copy_(basis)
    vae.encode_linear.bias.copy_(-basis @ mean)
    vae.decode_linear.weight.copy_(basis.T)
    vae.decode_linear.bias.copy_(mean)


@torch.no_grad()
def evaluate(vae: PatchAutoencoder, real: RealClips | None, clips: int = 12) -> dict[str, float]:
    """PSNR (dB) on held-out whole clips: scenes of all kinds, plain ones, unseen motions, real crops."""
    rng = np.random.default_rng(987_654)
    groups = {
        "scenes": [render(sample_scene(rng)) for _ in range(2 * clips)],
        "plain scenes": [render(sample_scene(rng, kind="plain")) for _ in range(clips)],
        "unseen motions": [render(unseen_scene(m, shape="star")) for m in ("spiral", "bounce", "zig-zag")],
    }
    if real is not None:
        groups["real"] = [real.window(rng, 9) for _ in range(clips)]
    inputs = {name: to_input(torch.stack(frames)) for name, frames in groups.items()}
    return {
        name: psnr(vae.decode(vae.encode(x, return_dict=False)[0].mode(), return_dict=False)[0], x)
        for name, x in inputs.items()
    }


@torch.no_grad()
def set_latent_statistics(vae: PatchAutoencoder) -> None:
    """Write the mean and standard deviation of each latent channel into the config."""
    z = vae.encode_groups(batch(np.random.default_rng(4321), 1024, None)).flatten(0, 2)
    std = z.std(0)
    sign = torch.tensor([1.0, -1.0]).repeat(len(std) // 2)
    vae.register_to_config(
        latents_mean=z.mean(0).tolist(),
        latents_std=std.tolist(),
        first_frame_mark=(MARK * sign * std).tolist(),
    )


def make_optimizers(module: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """Muon on the matrices of the blocks, AdamW on everything else."""
    matrices: list[Tensor] = []
    rest: list[Tensor] = []
    for name, p in module.named_parameters():
        if not p.requires_grad:
            continue
        (matrices if p.ndim == 2 and "blocks." in name else rest).append(p)
    return [
        Muon(matrices, lr=lr, weight_decay=0.01),
        torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and the result")
    parser.add_argument("--clips", type=Path, help="folder of real mp4 clips to learn crops of")
    parser.add_argument("--start", type=Path, help="folder of an autoencoder that is trained further")
    parser.add_argument("--decoder-only", action="store_true", help="keep the encoder of --start")
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)

    if args.decoder_only and not args.start:
        raise SystemExit("--decoder-only keeps an encoder: name the autoencoder with --start")
    vae = PatchAutoencoder.from_pretrained(args.start).float() if args.start else PatchAutoencoder()
    if args.decoder_only:
        for name, p in vae.named_parameters():
            p.requires_grad_(not name.startswith("encode"))
    real = RealClips(args.clips) if args.clips else None
    optimizers = make_optimizers(vae, args.lr)
    state_file, first = args.out / "vae_state.pt", 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        vae.load_state_dict(state["vae"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        first = state["step"]
    elif not args.start:
        start_from_principal_components(vae, real)
    log = (args.out / "vae.jsonl").open("a")
    start = time.time()
    for step in range(first, args.steps):
        warm_up, cosine = min(1.0, (step + 1) / 100), 0.5 + 0.5 * math.cos(math.pi * step / args.steps)
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = args.lr * warm_up * (cosine + 0.005)
        x = batch(np.random.default_rng((args.seed, step)), args.batch, real)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            z = vae.encode_groups(x).float()
            scale = z.detach().std((0, 1, 2))
            y = vae.decode_groups(z + NOISE * scale * torch.randn_like(z)).float()
        loss = F.l1_loss(y, x) + 4 * F.mse_loss(y, x)
        vae.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        last = step == args.steps - 1
        if step % 50 == 0 or last:
            row = {"step": step, "psnr": psnr(y.detach(), x), "seconds": time.time() - start}
            if step % 200 == 0 or last:
                row |= evaluate(vae, real)
                state = {
                    "vae": vae.state_dict(),
                    "optimizers": [o.state_dict() for o in optimizers],
                    "step": step + 1,
                }
                torch.save(state, state_file.with_suffix(".tmp"))
                state_file.with_suffix(".tmp").rename(state_file)
            print(json.dumps(row), file=log, flush=True)
    if not args.decoder_only:
        set_latent_statistics(vae)
    vae.save_pretrained(args.out / "vae")


if __name__ == "__main__":
    main()
