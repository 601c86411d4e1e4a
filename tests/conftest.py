"""Fixtures shared by the tests: tiny Wan pipelines with random weights, a clip, adapters."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tiny_pipelines import FRAMES, HEIGHT, MODELS, WIDTH, save_tiny_wan


@pytest.fixture(scope="session", autouse=True)
def ctrl_c() -> Iterator[None]:
    """Ctrl-C as at a terminal: a shell that starts pytest in the background lets it ignore the signal."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def tiny_wan(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """tiny_wan(head_dim=12, ...) gives the folder of such a model, made once in a session."""
    made: dict[tuple[tuple[str, int], ...], Path] = {}

    def folder(**options: int) -> Path:
        key = tuple(sorted(options.items()))
        if key not in made:
            name = "-".join(["wan", *(f"{k}{v}" for k, v in key)])
            made[key] = save_tiny_wan(tmp_path_factory.mktemp("models") / name, **options)
        return made[key]

    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """tiny_model(name) gives the folder of one of MODELS, made once in a session."""
    folders: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in folders:
            folders[name] = MODELS[name](tmp_path_factory.mktemp("models") / name)
        return folders[name]

    return folder


@pytest.fixture(scope="session")
def tiny_family(tiny_wan):  # type: ignore[no-untyped-def]
    """The tiny model with head_dim 12, loaded in fp32 on the CPU; tests leave it as they found it."""
    from fym.families import load_family

    return load_family(str(tiny_wan()), dtype="float32", device="cpu")


@pytest.fixture(scope="session")
def panned() -> torch.Tensor:
    """(F,H,W,3) uint8: a camera that moves over coarse noise by a pixel a frame."""
    noise = torch.rand((1, 3, HEIGHT // 4, (WIDTH + FRAMES) // 4), generator=torch.Generator().manual_seed(0))
    ground = torch.nn.functional.interpolate(noise, size=(HEIGHT, WIDTH + FRAMES), mode="bicubic")
    pixels = (ground.clamp(0, 1) * 255).round().to(torch.uint8)[0].movedim(0, -1)
    return torch.stack([pixels[:, t : t + WIDTH] for t in range(FRAMES)])


@pytest.fixture(scope="session")
def moving_square() -> torch.Tensor:
    """(F,H,W,3) uint8: a bright square that crosses a dark, textured ground."""
    generator = torch.Generator().manual_seed(1)
    ground = torch.randint(0, 60, (HEIGHT, WIDTH, 3), generator=generator)
    frames = ground.repeat(FRAMES, 1, 1, 1)
    for f in range(FRAMES):
        frames[f, 10:20, 2 + 2 * f : 12 + 2 * f] = torch.tensor([240, 160, 40])
    return frames.to(torch.uint8)


@pytest.fixture(scope="session")
def clip_path(tmp_path_factory, moving_square):  # type: ignore[no-untyped-def]
    """That clip as a film."""
    from fym.video import write_clip

    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_clip(path, moving_square, 8)
    return path


@pytest.fixture
def material(tmp_path, clip_path, tiny_family):  # type: ignore[no-untyped-def]
    """That clip for the tiny model, captioned "a square", with a cache of its own."""
    from fym.config import ClipConfig
    from fym.material import Material, read_references

    [clip] = read_references(ClipConfig(path=[str(clip_path)]), tiny_family)
    return Material(tiny_family, clip, "a square", tmp_path / "cache")


@pytest.fixture(scope="session")
def make_adapter():  # type: ignore[no-untyped-def]
    """make_adapter(heads, ...) gives an adapter for the tiny model with random values in A and B."""
    from fym.adapters import HeadLora

    def make(heads, *, rank=3, alpha=1.5, seed=0, targets="qkvo", std=0.4):  # type: ignore[no-untyped-def]
        generator = torch.Generator().manual_seed(seed)
        adapter = HeadLora(
            heads, num_heads=3, head_dim=12, rank=rank, alpha=alpha, targets=targets, generator=generator
        )
        with torch.no_grad():
            for parameter in adapter.parameters():
                parameter.copy_(std * torch.randn(parameter.shape, generator=generator))
        return adapter

    return make
