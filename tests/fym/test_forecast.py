"""The forecast beside the memory that the phases of a run really take, each in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import nn

from fym.families.skeleton import skeleton
from fym.fit import Fit, Target, sharded
from fym.forecast import Job, forecast
from fym.shapes_only import LiveBytes, shapes_only
from tests.measure_phase import SHARD, settings
from tests.tiny_pipelines import MODELS, save_tiny_cogvideox, save_tiny_hunyuan, save_tiny_wan


@pytest.mark.parametrize(
    ("channels", "taps", "beside"),
    [
        (8, 3, lambda x, out: 27 * 8 * out[0].numel() // 16),  # the columns of im2col
        (8, 1, lambda x, out: 0),
        (72, 3, lambda x, out: x.numel() * 80 // 72),  # channels in blocks of 16
    ],
)
def test_what_convolutions_take_beside_their_tensors(channels, taps, beside):
    conv = nn.Conv3d(channels, 16, taps, device="meta")
    live = LiveBytes(host=True)
    with shapes_only(conv), torch.no_grad(), live:
        x = torch.empty(1, channels, 6, 50, 60)
        held = live.now
        out = conv(x)
        assert live.peak == held + out.nbytes + 4 * beside(x, out)


class Case(NamedTuple):
    """save(folder, **sizes) makes a model of MODELS' kind; clip: frames, height, width; phases with what the
    backward pass computes again; weights: as for `tests.measure_phase`."""

    save: Callable[..., Path]
    kind: str
    sizes: dict[str, int]
    clip: tuple[int, int, int]
    phases: list[tuple[str, str]]
    weights: str = "none"
    processes: int = 1


TUNED = [(stage, level) for stage in ("spatial", "temporal") for level in ("none", "ffn", "block")]
BOTH = [(stage, level) for stage, level in TUNED if level != "ffn"]
CODED = [("encode", "none"), ("sample", "none")]
SMALL, CLIP = {"layers": 4, "heads": 6, "head_dim": 64, "ffn": 1536}, (17, 240, 416)
CASES = {
    "Wan, 4 layers of 6 x 64": Case(save_tiny_wan, "wan", SMALL, CLIP, [("classify", "none"), *TUNED]),
    "the same, int8": Case(save_tiny_wan, "wan", SMALL, CLIP, BOTH[2:], "int8"),
    "Wan, 8 layers of 12 x 64": Case(
        save_tiny_wan, "wan", {"layers": 8, "heads": 12, "head_dim": 64, "ffn": 1536}, CLIP, TUNED
    ),
    **{
        f"Wan, 8 layers of 12 x 64, two processes{label}": Case(
            save_tiny_wan,
            "wan",
            {"layers": 8, "heads": 12, "head_dim": 64, "ffn": 1536},
            CLIP,
            BOTH,
            weights,
            processes=2,
        )
        for weights, label in (("none", ""), (SHARD, " that share the weights"))
    },
    "Wan, 6 layers of 12 x 128": Case(
        save_tiny_wan, "wan", {"layers": 6, "heads": 12, "head_dim": 128}, CLIP, BOTH[2:]
    ),
    "Wan, 12 layers of 8 x 128": Case(
        save_tiny_wan, "wan", {"layers": 12, "heads": 8, "head_dim": 128}, (17, 320, 512), BOTH[2:]
    ),
    "Wan, VAE of 16 channels": Case(save_tiny_wan, "wan", {"vae_dim": 16}, CLIP, CODED),
    "Wan, VAE of 32 channels": Case(save_tiny_wan, "wan", {"vae_dim": 32}, (33, 160, 240), CODED),
    **{
        f"{label}{', two bands' if processes == 2 else ''}": Case(
            save, kind, sizes, CLIP, phases, processes=processes
        )
        for label, save, kind, sizes in (
            (
                "HunyuanVideo, 6 layers of 8 x 60",
                save_tiny_hunyuan,
                "hunyuan_video",
                {"layers": 2, "heads": 8, "head_dim": 60},
            ),
            (
                "CogVideoX, 6 layers of 8 x 64",
                save_tiny_cogvideox,
                "cogvideox-5b",
                {"layers": 6, "heads": 8, "head_dim": 64},
            ),
        )
        for processes, phases in ((1, [("classify", "none"), *BOTH]), (2, BOTH[2:]))
    },
}


def launcher(processes):
    if processes == 1:
        return [sys.executable]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", CASES)
def test_the_forecast_is_within_15_percent_of_the_measured_peak(name, tmp_path):
    case = CASES[name]
    folder, tiny = case.save(tmp_path / "model", **case.sizes), MODELS[case.kind](tmp_path / "tiny")
    if case.kind == "wan" and case.processes > 1:
        tiny = save_tiny_wan(tmp_path / "even", heads=case.processes)
    config = settings(str(folder), case.weights, "none", case.clip)
    bare = skeleton(str(folder), "float32", config.model.quantise)
    levels = list(dict.fromkeys(level for _, level in case.phases))
    where = Target("this machine", 0, 1, 0, host=True, processes=case.processes)
    found = {}
    for level, phases in forecast(
        bare, config, Job(*case.clip, case.clip), levels, host=True, processes=case.processes
    ).items():
        way = Fit({}, phases, where)
        found[level] = (sharded(way, bare) if config.model.shard else way).phases
    given = [str(tiny), str(folder), case.weights, "x".join(map(str, case.clip))]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # glibc gives freed memory back
    environment |= {"GLOO_SOCKET_IFNAME": "lo"}
    wanted = [":".join(phase) for phase in case.phases]
    lines = []
    for run in [[phase] for phase in wanted] if case.processes > 1 else [wanted]:
        command = [*launcher(case.processes), "-m", "tests.measure_phase", *given, *run]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert done.returncode == 0
        lines += done.stdout.splitlines()
    misses = []
    for (phase, level), line in zip(case.phases, lines, strict=True):
        measured, expected = float(line), next(p.peak for p in found[level] if p.name == phase)
        miss = expected / measured - 1
        row = f"| {name} | {phase} | {level} | {expected / 1e6:.0f} | {measured / 1e6:.0f} | {miss:+.0%} |"
        print(row)
        if abs(miss) > 0.15:
            misses.append(row)
    assert not misses
