"""A forward and backward pass that two processes share, a band of the clip each, is the pass of one."""

import json

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from fym.adapters import HeadLora
from fym.bands import Band
from fym.families import load_family
from fym.families.base import AttentionControl
from fym.stage import predict_share
from tests.tiny_pipelines import save_tiny_wan_5b

JOINT = ("hunyuan_video", "cogvideox-5b", "cogvideox-2b")
# Measured at most 1e-6: rounding in another order. A token, position or head in the wrong place makes 1e-1.
ROUNDING = 1e-5
TIMES = torch.tensor([0.0, 1, 3, 4, 5.5, 9], dtype=torch.float64)


def results(family, band):
    """Of a pass on two samples, with an adapter on some heads and sparse time positions: the prediction, and
    this process's part of the gradients."""
    heads = [[0], [0, 1], [1]][: family.num_layers]
    sizes = {"num_heads": family.num_heads, "head_dim": family.head_dim, "targets": family.targets}
    adapter = HeadLora(heads, **sizes, rank=2, alpha=2)
    torch.manual_seed(0)
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    latents, levels = torch.randn(2, family.transformer.config.in_channels, 6, 8, 8), [500.0, 400.0]
    with family.attention(adapters=[(adapter, 1.0)], time_positions=TIMES) as control:
        text = family.encode_prompts(["a b"])
        predicted = predict_share(family, control, band, latents, torch.tensor(levels), text)
        (predicted * torch.linspace(0, 1, predicted.numel()).view_as(predicted)).sum().backward()
    return [predicted.detach(), *(p.grad for p in adapter.parameters() if p.numel())]


def share(rank, place, folders):
    """One process's: writes for each family, axis and level of recomputing how far it is off the whole."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{place / 'meeting'}", rank=rank, world_size=2)
    found = {}
    for folder in folders:
        family = load_family(folder, device="cpu")
        whole = results(family, None)
        for axis in range(3):
            for family.recompute in ("none", "block"):
                shared = results(family, Band(axis, rank, 2, dist.group.WORLD))
                for gradient in shared[1:]:
                    dist.all_reduce(gradient)
                found[f"{family.name} {folder}, axis {axis}, {family.recompute}"] = [
                    float((ours - theirs).norm() / theirs.norm())
                    for ours, theirs in zip(shared, whole, strict=True)
                ]
    dist.destroy_process_group()
    (place / f"{rank}.json").write_text(json.dumps(found))


def test_two_bands_are_the_whole_clip_along_every_axis(tiny_wan, tiny_model, tmp_path, monkeypatch):
    """Text and latents in one sequence too: the text is in both processes, its gradient is shared out."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    folders = [tiny_wan(heads=2), save_tiny_wan_5b(tmp_path / "5b", heads=2), *map(tiny_model, JOINT)]
    mp.spawn(share, (tmp_path, list(map(str, folders))), nprocs=2)
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert len(found) == len(folders) * 3 * 2
        for where, off in found.items():
            assert all(value < ROUNDING for value in off), (rank, where, off)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_bands_sit_where_they_are_in_the_clip(axis):
    """Latents and positions of all bands, put together, are those of the whole clip."""
    latents, times = torch.randn(2, 4, 6, 8, 12), torch.tensor([0.0, 1, 3, 4, 7, 9])
    whole = AttentionControl(time_positions=times, grid=(6, 4, 6)).positions()
    parts, places = [], []
    for index in range(2):
        band = Band(axis, index, 2, None)
        parts.append(band.of(latents))
        grid = tuple(n // 2 if k == axis else n for k, n in enumerate((6, 4, 6)))
        places.append(AttentionControl(time_positions=times, band=band, grid=grid).positions())
    assert torch.equal(torch.cat(parts, axis - 3), latents)
    for k in range(3):
        both = torch.cat([place[k] for place in places]) if k == axis else places[0][k]
        assert torch.equal(both, whole[k])
