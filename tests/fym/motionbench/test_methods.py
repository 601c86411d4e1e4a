"""Methods: names, settings made up on the command line, and the budget that all share."""

from __future__ import annotations

import pytest
import tomllib

from fym.config_file import load_config
from fym.errors import UserError
from fym.motionbench.methods import CONTROLS, METHODS, Model, find_method
from fym.motionbench.methods.tuned import PLAIN_STEPS, TunedMethod
from fym.motionbench.suite import cases

[CASE] = cases(names=["object/spiral"])
BASELINES = ("lora", "two-stage", "motiondirector")
TUNED = {name: method for name, method in METHODS.items() if isinstance(method, TunedMethod)}


@pytest.fixture(scope="module")
def model():
    from fym.families import load_family

    return Model("embedded", load_family("embedded"))


def test_every_method_has_settings_of_its_own(model) -> None:
    texts = {name: method.settings(model, CASE) for name, method in METHODS.items()}
    texts |= {control.name: control.settings(model, CASE) for control in CONTROLS}
    assert len(set(texts.values())) == len(texts)


def test_ablations_have_the_optimiser_steps_of_the_preset(model) -> None:
    """Steps of both stages, batch, rank and rates; the one ablation that has no first stage has its rest.
    Baselines share all but the steps."""
    preset = TUNED["fym"].config(model, CASE)
    steps = preset.spatial.steps + preset.temporal.steps
    for name, method in TUNED.items():
        config = method.config(model, CASE)
        if name in BASELINES:
            expected = sum(PLAIN_STEPS["tiny"])
        else:
            expected = preset.temporal.steps if name == "no-spatial-stage" else steps
        assert config.spatial.steps + config.temporal.steps == expected, name
        for stage in ("spatial", "temporal"):
            ours, theirs = getattr(config, stage), getattr(preset, stage)
            for field in ("batch_size", "rank", "alpha", "learning_rate", "weight_decay"):
                assert getattr(ours, field) == getattr(theirs, field), (name, stage, field)


def test_baselines_have_the_steps_of_other_presets(model) -> None:
    """Only for `tiny` they have their own."""
    config = find_method("two-stage preset=fast").config(model, CASE)  # type: ignore[attr-defined]
    preset = load_config(None, {"preset": "fast"})
    assert config.temporal.steps == preset.temporal.steps and config.spatial.steps == preset.spatial.steps


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_have_nothing_of_the_method(model, name: str) -> None:
    config = METHODS[name].config(model, CASE)  # type: ignore[attr-defined]
    assert config.heads.grouping == "all" and config.temporal.sparse_frames == 49
    assert config.temporal.positions == "none" and config.temporal.latents == "encode"
    assert config.temporal.motion_weight == 0 == config.temporal.lowest_noise
    assert config.tune.optimizer == "adamw" and config.tune.looks == 1
    assert config.temporal.debias == (name == "motiondirector")


def test_fym_is_the_preset(model) -> None:
    config = TUNED["fym"].config(model, CASE)
    config.clip.path = config.clip.prompt = []
    assert config == load_config(None, {"model.path": "embedded"})


def test_settings_name_what_differs_from_the_defaults(model) -> None:
    """So that an option added later changes no key; they are TOML and make the same run again."""
    text = METHODS["two-stage"].settings(model, CASE)
    given = tomllib.loads(text)
    assert given["temporal"]["sparse_frames"] == 49 and "topk" not in given["heads"]
    assert "clip" not in given and "model" not in given
    again = load_config(None, {"preset": "fast", "model.path": "embedded"} | given)
    assert again.temporal == METHODS["two-stage"].config(model, CASE).temporal


def test_settings_are_made_up_on_the_command_line(model) -> None:
    method = find_method("two-stage temporal.rank=4, generate.temporal_scale=0.5")
    assert method.name == "two-stage temporal.rank=4,generate.temporal_scale=0.5"
    config = method.config(model, CASE)  # type: ignore[attr-defined]
    assert (config.temporal.rank, config.generate.temporal_scale) == (4, [0.5])
    assert config.heads.grouping == "all"
    with pytest.raises(UserError, match=r"did you mean temporal\.rank"):
        find_method("fym temporal.rnak=4").settings(model, CASE)


@pytest.mark.parametrize(
    ("text", "message"),
    [("fmy", "no method 'fmy'.*Take fym"), ("base temporal.rank=4", "base has no settings")],
)
def test_what_is_no_method_is_said(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_method(text)
