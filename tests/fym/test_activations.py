"""A transformer's GELU runs on fym_kernels inside `attention`, and is the model's own before and after."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.activations import GELU
from tiny_pipelines import MODELS

import fym_kernels
from fym.families import activations, load_family


class Network(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = GELU(8, 12, approximate="tanh")
        self.alone = torch.nn.GELU(approximate="tanh")
        self.exact = torch.nn.GELU()
        self.other = GELU(12, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.other(self.exact(self.alone(self.hidden(x))))


def test_the_approximations_are_replaced_and_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []

    def gelu(x: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(x.shape))
        return fym_kernels.reference.gelu(x)

    monkeypatch.setattr(activations.fym_kernels, "gelu", gelu)
    network, x = Network(), torch.randn(3, 8)
    own = [dict(vars(module)) for module in network.modules()]
    expected = network(x)
    with activations.native_gelu(network):
        with activations.native_gelu(network):
            assert torch.equal(network(x), expected)
        network(x)
    with pytest.raises(RuntimeError, match="inside"), activations.native_gelu(network):
        raise RuntimeError("inside")
    assert shapes == 2 * [(3, 12), (3, 12)]
    assert [vars(module) for module in network.modules()] == own
    assert torch.equal(network(x), expected)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_family_has_them_replaced_while_it_attends(tiny_model, name: str) -> None:
    family = load_family(str(tiny_model(name)), device="cpu")
    before = activations.approximated(family.transformer)
    with family.attention():
        assert before and not activations.approximated(family.transformer)
    assert activations.approximated(family.transformer) == before


def test_what_another_library_has_replaced_stays_its_own() -> None:
    network = Network()
    network.alone.forward = lambda x: x
    with activations.native_gelu(network):
        assert torch.equal(network.alone(torch.ones(2)), torch.ones(2))
    assert "forward" in vars(network.alone)
