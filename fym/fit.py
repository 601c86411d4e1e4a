"""The settings with which a run fits a device, cheapest first, and what each of them does."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from fym import memory
from fym.config import Config
from fym.console import duration
from fym.families.loading import pick_device
from fym.families.offload import saved_bytes, spread
from fym.families.pipeline import PipelineFamily
from fym.families.quantised import quantised_layers
from fym.families.sharded import matrices
from fym.families.skeleton import skeleton
from fym.forecast import Job, Phase, forecast, vae_phases
from fym.gpus import GPUS, Gpu
from fym.machine import memory_bytes
from fym.plan import Table
from fym.runlog import STAGES
from fym.video import Clip

RESERVE = 1.0e9  # of a GPU: its context, the libraries' own, and gaps between tensors
UTILISATION = 0.4  # of the peak rate of products, as whole training steps of such models reach it
KNOBS = {
    "none": "everything is kept for the backward pass: fastest",
    "ffn": "the feed-forward layers' inner activations are computed again",
    "block": "whole blocks are computed again: least memory",
    "tiled": "the VAE works in tiles: less for encoding and for clips, faint seams",
    "int8": "the frozen weights of the blocks in 8 bits, off by 0.7 %",
    "nf4": "the frozen weights of the blocks in 4 bits, off by 9 %",
}
DEFAULTS = {"model.vae": "whole", "model.quantise": "none", "model.offload": "0", "model.shard": "false"}
LINK = 12e9  # bytes/s from the host to a GPU that is not in GPUS: PCIe 3.0 x16
PACKED = ("none", "int8", "nf4")


@dataclass(frozen=True)
class Target:
    """bytes and FLOP/s of the device; used: bytes there before the run starts. host: it is the CPU. link:
    bytes/s from the host. processes: that share the run, each on such a device or with its part of the CPU's
    memory and time."""

    name: str
    memory: float
    flops: float
    used: float
    host: bool
    link: float = LINK
    processes: int = 1


@dataclass(frozen=True)
class Fit:
    """One way to run. options: what has to be set for it; phases without those moved to the CPU."""

    options: dict[str, str]
    phases: list[Phase]
    target: Target

    @property
    def worst(self) -> Phase:
        return max(self.phases, key=lambda phase: phase.peak)

    @property
    def peak(self) -> float:
        return self.worst.peak + self.target.used

    @property
    def fits(self) -> bool:
        return self.peak <= self.target.memory

    @property
    def seconds(self) -> float:
        """Of all but encoding; offloaded weights come while the device computes."""
        return sum(phase.passes * _pass_seconds(phase, self.target) for phase in self.phases)


def target(gpu: Gpu | None, device: str, processes: int) -> Target:
    """The given GPU, or this machine, for each of the processes of a run."""
    many = f"{processes} x " if processes > 1 else ""
    if gpu:
        rate = gpu.flops * UTILISATION
        return Target(many + gpu.name, gpu.memory, rate, RESERVE, False, gpu.link, processes)
    found = pick_device(device)
    if found.type == "cpu":
        name = f"each of {processes} processes on this machine" if many else "this machine"
        share, rate = memory_bytes() / processes, _product_rate() / processes
        return Target(name, share, rate, memory.now() * memory.MIB, True, processes=processes)
    properties = torch.cuda.get_device_properties(found)
    rate, link = _makers_rates(properties.name)
    whole = properties.total_memory
    return Target(many + properties.name, whole, rate * UTILISATION, RESERVE, False, link, processes)


def _makers_rates(name: str) -> tuple[float, float]:
    """FLOP/s and bytes/s from the host of the card that calls itself so, e.g. NVIDIA GeForce RTX 4090; modest
    ones for a card that is not in GPUS."""
    plain = name.lower().replace(" ", "")
    known = (gpu for key, gpu in GPUS.items() if key.partition("-")[0] in plain)
    return next(((gpu.flops, gpu.link) for gpu in known), (1e14, LINK))


def _product_rate(size: int = 768, rounds: int = 3) -> float:
    """FLOP/s of float32 products on this CPU, the best of some."""
    a = torch.ones(size, size)
    best = float("inf")
    for _ in range(rounds):
        started = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - started)
    return 2.0 * size**3 / best


def ways(family: PipelineFamily, config: Config, clip: tuple[int, int, int], where: Target) -> list[Fit]:
    """The combinations of the knobs, the exact ones first, then the fastest first.

    Quantised weights are combined with the levels of `tune.recompute` that need the least or are asked for;
    blocks are offloaded where that is asked for, or else as many as it takes to fit. family: a skeleton.
    clip: frames, height, width of the reference.
    """
    levels = ["none", "ffn", "block"] if family.fused_block else ["none", "block"]
    least = dict.fromkeys([config.tune.recompute, "block"] if config.model.quantise != "none" else ["block"])
    number_format = str(family.dtype).removeprefix("torch.")
    models = {
        kind: family if family.quantise == kind else skeleton(config.model.path, number_format, kind)
        for kind in PACKED
    }
    eight = _ways(models["int8"], config, clip, where, list(least), {"model.quantise": "int8"})
    saved = _packed_bytes(models["int8"]) - _packed_bytes(models["nf4"])
    found = {
        "none": _ways(models["none"], config, clip, where, levels, {}),
        "int8": eight,  # of which nf4 differs in nothing but the weights' bytes
        "nf4": [_lighter(fit, saved, 0, {"model.quantise": "nf4"}) for fit in eight],
    }
    asked = config.model.offload
    sharing = where.processes > 1 and models["none"].shardable
    shared = [sharded(fit, models["none"]) for fit in found["none"]] if sharing else []
    return [
        way
        for kind, fits in found.items()
        for way in (
            *fits,
            *(shared if kind == "none" else ()),
            *(o for fit in fits for o in _offloading(fit, models[kind], asked)),
        )
    ]


def sharded(fit: Fit, family: PipelineFamily) -> Fit:
    """With the matrices of the blocks shared out among the processes. Each holds its part, and two blocks
    whole: the present one, and what is put together for it or fetched for the next."""
    processes = fit.target.processes
    blocks = [block for group in family.blocks() for block in group]
    sizes = [sum(p.nbytes for p in matrices(block)) for block in blocks]
    others = sum(sizes) * (processes - 1) // processes
    return _lighter(fit, max(0, others - 2 * max(sizes)), others, {"model.shard": "true"})


def _offloading(fit: Fit, family: PipelineFamily, asked: int) -> list[Fit]:
    """With as many blocks offloaded as are asked for, and as it takes to fit."""
    if fit.options["tune.recompute"] != "block":
        return []
    blocks = [block for group in family.blocks() for block in group]

    def with_(count: int) -> Fit:
        moved, saved = saved_bytes(spread(blocks, count))
        saved -= moved if fit.target.host else 0  # there they stay in the same memory
        return _lighter(fit, saved, moved, {"model.offload": str(count)})

    found = [with_(asked)] if asked else []
    if not fit.fits and not fit.target.host:
        tried = map(with_, range(3, len(blocks) + 1))
        found.append(next((way for way in tried if way.fits), with_(len(blocks))))
    return found


def _lighter(fit: Fit, saved: int, moved: int, options: dict[str, str]) -> Fit:
    """The same with a transformer that takes fewer bytes, of which some come anew in every pass."""
    phases = [
        replace(
            phase,
            weights=phase.weights - saved,
            peak=phase.peak - saved,
            moves=moved * (2 if phase.name.startswith(STAGES) else 1),  # tuning runs every block twice
        )
        if fit.target.host or phase.name not in ("text", "encode")
        else phase
        for phase in fit.phases
    ]
    return replace(fit, options={**fit.options, **options}, phases=phases)


def _packed_bytes(family: PipelineFamily) -> int:
    layers = quantised_layers(family.transformer)
    return sum(layer.packed.nbytes + layer.scales.nbytes for _, layer in layers)


def _pass_seconds(phase: Phase, where: Target) -> float:
    return max(phase.flops / where.flops, phase.moves / where.link)


def _ways(
    family: PipelineFamily,
    config: Config,
    clip: tuple[int, int, int],
    where: Target,
    levels: Sequence[str],
    also: dict[str, str],
) -> list[Fit]:
    job = Job.of(config, family, clip)
    plain = forecast(family, config, job, levels, host=where.host, processes=where.processes)
    variants: list[tuple[dict[str, str], dict[str, list[Phase]]]] = [({}, plain)]
    if hasattr(family.pipeline.vae, "enable_tiling") and not family.tiled_vae:
        family.tile_vae()
        encode, sample = vae_phases(family, config, job, host=where.host)
        tiled = {"encode": encode, "sample": sample}
        less = {level: [tiled.get(p.name, p) for p in phases] for level, phases in plain.items()}
        variants.append(({"model.vae": "tiled"}, less))
    found = [
        Fit({"tune.recompute": level} | options | also, [p for p in phases if _counts(p, where)], where)
        for options, by_level in variants
        for level, phases in by_level.items()
    ]
    return sorted(found, key=lambda fit: (fit.options.get("model.vae", ""), fit.seconds))


def _counts(phase: Phase, where: Target) -> bool:
    """Text encoders that do not fit a GPU run on the CPU."""
    return where.host or phase.name != "text" or phase.peak + where.used <= where.memory


def fitting(
    family: PipelineFamily, config: Config, clips: Sequence[Clip], gpu: Gpu | None, processes: int
) -> list[Table]:
    """What the run would take as configured, what fits, and how to ask for it."""
    if config.model.shard and processes > 1:
        family.check_shardable()
    where = target(gpu, config.model.device, processes)
    frames, height, width = max(tuple(clip.frames.shape[:3]) for clip in clips)
    found = ways(family, config, (frames, height, width), where)
    return tables(found, config, where)


def as_configured(found: Sequence[Fit], config: Config) -> Fit:
    """The one of `ways` that the configuration asks for."""
    asked = {
        "tune.recompute": config.tune.recompute,
        "model.quantise": config.model.quantise,
        "model.offload": str(config.model.offload),
    }
    if config.model.shard and any("model.shard" in fit.options for fit in found):
        asked["model.shard"] = "true"  # one process holds the whole model
    if any("model.vae" in fit.options for fit in found):  # else it works in tiles anyway, or cannot
        asked["model.vae"] = config.model.vae
    return next(fit for fit in found if {**DEFAULTS, **fit.options}.items() >= asked.items())


def tables(found: Sequence[Fit], config: Config, where: Target) -> list[Table]:
    asked = as_configured(found, config)
    phases = [(phase.name, _phase(phase, where)) for phase in asked.phases]
    if all(phase.name != "text" for phase in asked.phases):
        phases.insert(0, ("text", "the text encoders do not fit and run on the CPU"))
    label = "computed from shapes, not measured; times predicted"
    rows = [(_options(fit), _line(fit) + (", as configured" if fit is asked else "")) for fit in found]
    best = next((fit for fit in found if fit.fits), None)
    if best is None:
        rows.append(("advice", f"nothing fits {where.name}: fewer or smaller frames, or a smaller model"))
    elif asked.fits:
        rows.append(("advice", "fits as configured"))
    else:
        rows.append(("advice", " ".join(f"--set {name}={value}" for name, value in best.options.items())))
    return [
        (f"Memory and time of each phase on {where.name} ({label})", phases),
        (f"Settings, of {where.memory / 1e9:.0f} GB", rows),
    ]


def _phase(phase: Phase, where: Target) -> str:
    line = f"peak {(phase.peak + where.used) / 1e9:.2f} GB, of it {phase.weights / 1e9:.2f} GB weights"
    if phase.flops and phase.passes:
        each = _pass_seconds(phase, where)
        line += f"; {each:.3g} s a step, {duration(each * phase.passes)} for {phase.passes}"
    return line


def _options(fit: Fit) -> str:
    return ", ".join(f"{name.rpartition('.')[2]} {value}" for name, value in fit.options.items())


def _line(fit: Fit) -> str:
    does = "; ".join(KNOBS[value] for value in fit.options.values() if value in KNOBS)
    if "model.shard" in fit.options:
        does += "; each process holds its part of the blocks' weights"
    if "model.offload" in fit.options:
        moved = max(phase.moves for phase in fit.phases if not phase.name.startswith(STAGES))
        does += f"; {moved / 1e9:.1f} GB of the blocks' weights in CPU memory"
    fits = "fits" if fit.fits else f"too large ({fit.worst.name})"
    return f"{fit.peak / 1e9:.2f} GB, {duration(fit.seconds)}, {fits}: {does}"
