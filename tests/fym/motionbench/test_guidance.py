"""Guidance: motion flow is where tokens go, its gradient reaches the latents, and no weight is touched."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fym.config import GenerateConfig
from fym.errors import UserError
from fym.generate import one_clip
from fym.motionbench.methods import Model, find_method
from fym.motionbench.methods.guidance import Guidance
from fym.motionbench.suite import cases

[CASE] = cases(names=["object/spiral"])


@pytest.fixture(scope="module")
def model(tiny_family) -> Model:
    return Model("tiny", tiny_family)


class Planted:
    """A family whose queries and keys in every layer are given."""

    num_layers = 2

    def __init__(self, control: SimpleNamespace, vectors: torch.Tensor, grid: tuple[int, int, int]) -> None:
        self.control, self.vectors, self._grid = control, vectors, grid

    def grid(self, latents: torch.Tensor) -> tuple[int, int, int]:
        return self._grid

    def predict(self, latents: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor) -> None:
        for layer in range(self.num_layers):
            self.control.on_qk(layer, self.vectors, self.vectors)


@pytest.mark.parametrize("soft", [False, True])
def test_flow_is_the_way_of_content_that_moves(soft: bool) -> None:
    """Tokens of distinct content on a row of 5, shifted by one each frame."""
    frames, columns = 3, 5
    content = 30 * torch.eye(8)
    vectors = torch.stack([content[frame + x] for frame in range(frames) for x in range(columns)])
    control = SimpleNamespace(on_qk=None)
    family = Planted(control, vectors[None, :, None], (frames, 1, columns))
    flow = Guidance().flow(family, control, torch.zeros(1), torch.zeros(1), torch.zeros(1), soft=soft)  # type: ignore[arg-type]
    assert flow.shape == (frames, frames, columns, 2) and control.on_qk is None
    for i in range(frames):
        for j in range(frames):
            for x in range(columns):
                if 0 <= x + i - j < columns:  # still in the picture
                    assert flow[i, j, x].tolist() == pytest.approx([i - j, 0], abs=1e-3)


def test_guided_latents_come_nearer_to_the_reference_flow(model: Model) -> None:
    """On a random model: the loss falls along the latents' gradient."""
    family, method = model.family, Guidance(rate=0.05, iterations=1)
    reference, sample = (
        torch.randn(1, 16, 5, 4, 6, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)
    )
    text, level = family.encode_prompts([""]), torch.tensor([800.0])
    losses = []
    with family.attention() as control:
        wanted = method.flow(family, control, reference, level, text, soft=False)
        free = sample.clone().requires_grad_()
        optimizer = torch.optim.Adam([free], lr=0.05)
        for _ in range(20):
            flow = method.flow(family, control, free, level, text, soft=True)
            loss = (flow - wanted).square().sum(-1).mean()
            losses.append(float(loss.detach()))
            [free.grad] = torch.autograd.grad(loss, [free])
            optimizer.step()
    assert losses[-1] < 0.98 * losses[0]


def test_without_steps_of_adam_it_is_the_model_as_it_is(model: Model, tmp_path: Path) -> None:
    """The same noise and the same sampler; with them another clip, the same each time."""
    base = one_clip(model.family, GenerateConfig(), "a star", 3, motion=None)
    free = find_method("guidance iterations=0").tune(model, CASE, tmp_path).generate("a star", 3)
    assert torch.equal(base, free)
    guided = find_method("guidance rate=0.5,share=1").tune(model, CASE, tmp_path)
    clips = [guided.generate("a star", 3) for _ in range(2)]
    assert torch.equal(clips[0], clips[1]) and not torch.equal(clips[0], base)
    assert all(not parameter.requires_grad for parameter in model.family.transformer.parameters())
    assert set(guided.costs) == {"cache"} and guided.costs["cache"]["seconds"] > 0


def test_its_settings_are_numbers() -> None:
    method = find_method("guidance rate=0.1, iterations=3")
    assert method.name == "guidance rate=0.1,iterations=3"
    assert (method.rate, method.iterations, method.share) == (0.1, 3, 0.2)  # type: ignore[attr-defined]
    for wrong in ("speed=1", "rate=fast", "rate", "name=x"):
        with pytest.raises(UserError, match="no setting of guidance"):
            find_method(f"guidance {wrong}")
