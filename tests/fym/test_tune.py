"""The three stages end to end on a tiny random model."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tuning import STEPS, InterruptingConsole, assert_same, log_of, run, stopped_and_straight

from fym import tune
from fym.checkpoint import load_checkpoint
from fym.console import QuietConsole
from fym.errors import UserError
from fym.estimate import estimate
from fym.families import load_family
from fym.looks import in_looks
from fym.material import Material, SparseClip, read_references
from fym.motion_file import load_motion_file
from fym.stage import rate_factor
from fym.state import begin
from fym.video import write_clip

pytestmark = pytest.mark.usefixtures("short_end")


def test_a_run_leaves_everything_in_its_directory(uninterrupted):
    for name in ("config.toml", "heads.json", "heads.png", "train.jsonl", "timings.json", "reference.mp4"):
        assert (uninterrupted / name).stat().st_size > 0, name
    [sample] = json.loads((uninterrupted / "samples" / "samples.json").read_text())
    assert sample["kind"] == "motion" and (uninterrupted / "samples" / sample["file"]).exists()
    rows = log_of(uninterrupted)
    assert [(r["stage"], r["step"]) for r in rows] == [
        (stage, step) for stage in ("spatial", "temporal") for step in range(1, STEPS + 1)
    ]
    assert all(r["loss_motion"] == 0 for r in rows[:STEPS]) and all(
        r["loss_motion"] > 0 for r in rows[STEPS:]
    )
    timings = json.loads((uninterrupted / "timings.json").read_text())
    assert set(timings) == {"cache", "classify", "estimate", "spatial", "temporal", "sample"}
    assert all(entry["seconds"] > 0 and entry["peak_rss_mib"] > 0 for entry in timings.values())
    assert timings["temporal"]["seconds_per_step"] > 0


def test_only_the_right_heads_are_tuned(uninterrupted):
    motion = load_motion_file(uninterrupted / "motion.safetensors")
    assert [h.tolist() for h in motion.temporal.heads] == [[1], [0, 2]]
    assert [h.tolist() for h in motion.spatial.heads] == [[0, 2], [1]]
    for adapter in (motion.temporal, motion.spatial):
        assert all(p.abs().sum() > 0 for p in adapter.parameters())
    assert motion.metadata["frames"] == list(range(0, 17, 2)) and motion.metadata["caption"] == "a square"
    assert 0 < motion.metadata["norm_leak"] < 1


def test_two_runs_with_one_seed_are_identical_and_with_another_not(uninterrupted, configure, tmp_path):
    run(configure(), tmp_path / "again")
    assert_same(uninterrupted, tmp_path / "again")
    assert log_of(tmp_path / "again") == log_of(uninterrupted)
    run(configure(tune__seed=1), tmp_path / "other")
    assert log_of(tmp_path / "other")[0] != log_of(uninterrupted)[0]


def test_stage_3_leaves_the_spatial_adapter_alone_and_uses_it(uninterrupted, configure, planted, tmp_path):
    """Its parameters are those of the end of stage 2, and stage 3 comes out differently without it."""
    with pytest.raises(KeyboardInterrupt):
        run(configure(), tmp_path / "a", InterruptingConsole("spatial", STEPS))
    after_stage_2 = load_checkpoint(tmp_path / "a" / "checkpoints").tensors
    spatial = load_motion_file(uninterrupted / "motion.safetensors").spatial
    for name, value in spatial.state_dict().items():
        assert torch.equal(value, after_stage_2[f"spatial.{name}"])
    run(configure(spatial__steps=0), tmp_path / "b")
    ours, without = log_of(uninterrupted)[STEPS:], log_of(tmp_path / "b")
    assert all(a["loss"] != b["loss"] for a, b in zip(ours, without, strict=True))


@pytest.mark.parametrize(
    "kinds",
    [[[0, 0, 0], [1, 0, 1]], [[1, 1, 1], [0, 1, 0]], [[1, 1, 1], [1, 1, 1]]],
    ids=["no temporal", "no spatial", "all temporal"],
)
def test_a_layer_with_one_kind_of_heads_works_everywhere(configure, planted, tmp_path, kinds, tiny_wan):
    """Train, export, generate with fym and load in plain diffusers."""
    planted(kinds)
    run(configure(generate__spatial_scale=1.0), tmp_path)
    motion = load_motion_file(tmp_path / "motion.safetensors")
    assert [len(h) for h in motion.temporal.heads] == [sum(layer) for layer in kinds]
    assert list((tmp_path / "samples").glob("*.mp4"))
    from diffusers import WanPipeline

    pipe = WanPipeline.from_pretrained(tiny_wan(), dtype=torch.float32)
    pipe.load_lora_weights(tmp_path / "motion.safetensors")
    assert pipe.get_list_adapters()


def test_no_temporal_head_at_all_is_explained(configure, planted, tmp_path):
    planted([[0, 0, 0], [0, 0, 0]])
    with pytest.raises(UserError, match=r"No attention head is temporal.*heads\.threshold"):
        run(configure(), tmp_path)


def test_several_references_are_drawn_from_in_both_stages(configure, planted, tmp_path, moving_square):
    """Two looks and lengths of one motion, each with its caption; resumed bit for bit, named in the file."""
    paths = [str(tmp_path / "a.mp4"), str(tmp_path / "b.mp4")]
    write_clip(paths[0], moving_square, 8)
    write_clip(paths[1], 255 - moving_square[:13], 8)
    config = configure(clip__path=paths, clip__prompt=["a square", "a dark square"])
    about = load_motion_file(stopped_and_straight(config, tmp_path) / "motion.safetensors").metadata
    assert about["caption"] == "a square; a dark square"
    assert [one["size"][0] for one in about["references"]] == [17, 13]
    assert [one["caption"] for one in about["references"]] == config.clip.prompt
    assert len({one["sha256"] for one in about["references"]}) == 2
    with pytest.raises(UserError, match="another clip"):
        run(configure(clip__path=paths[::-1], clip__prompt=config.clip.prompt), tmp_path / "stopped")

    family = load_family(config.model.path, dtype="float32")
    clips = read_references(config.clip, family)
    materials = tune._materials(family, in_looks(clips, config.clip.captions, 1), tmp_path / "straight")
    sparse = [SparseClip(material, config.temporal) for material in materials]
    generator = torch.Generator().manual_seed(0)
    for name in ("spatial", "temporal"):
        draw = tune._stage(name, config, sparse).draw
        drawn = [draw(generator, 1, 1) for _ in range(40)]
        texts = [[torch.equal(one.text, material.text) for material in materials] for one in drawn]
        assert all(sum(same) == 1 for same in texts) and 8 <= sum(same[0] for same in texts) <= 32
        for sample, same in zip(drawn, texts, strict=True):
            which = same.index(True)
            known = materials[which].frame_latents if name == "spatial" else sparse[which].draw(generator)[:1]
            assert any(torch.equal(sample.latents[0], one) for one in known)


def test_looks_are_tuned_on_and_the_heads_judged_by_the_clip_itself(
    configure, planted, tmp_path, monkeypatch
):
    judged, planned = [], tune.classify

    def classify(family, latents, *rest, **options):
        judged.append(latents)
        return planned(family, latents, *rest, **options)

    monkeypatch.setattr(tune, "classify", classify)
    config = configure(tune__looks=3, clip__prompt="an orange square")
    run(config, tmp_path)
    about = load_motion_file(tmp_path / "motion.safetensors").metadata
    assert about["looks"] == 3 and [one["caption"] for one in about["references"]] == ["an orange square"]
    family = load_family(config.model.path, dtype="float32")
    materials = tune._materials(
        family, in_looks(read_references(config.clip, family), config.clip.captions, 3), tmp_path
    )
    assert len(judged) == 1 and torch.equal(judged[0], materials[0].latents)
    assert len({material.caption for material in materials}) == 3


def test_a_moving_camera_is_tuned_on_over_scenes_too(configure, planted, tmp_path, panned):
    """Stopped and resumed bit for bit, the stills made once; the plan names them."""
    path = tmp_path / "pan.mp4"
    write_clip(path, panned, 8)
    config = configure(clip__path=str(path), clip__prompt="a city", tune__scenes=["a meadow", "a street"])
    assert dict(dict(tune.plan(config))["Tuning"])["looks"].startswith("3: ")
    about = load_motion_file(stopped_and_straight(config, tmp_path) / "motion.safetensors").metadata
    assert about["looks"] == 3 and about["caption"] == "a city"


def test_one_reference_takes_no_random_number(configure, tmp_path):
    """So its results are what they were before there could be several."""
    config = configure()
    family = load_family(config.model.path, dtype="float32")
    [clip] = read_references(config.clip, family)
    [material] = tune._materials(family, [(clip, "a square")], tmp_path)
    sparse = [SparseClip(material, config.temporal)]
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    tune._stage("temporal", config, sparse).draw(generator, 1, 1)
    assert torch.equal(generator.get_state(), before)
    tune._stage("temporal", config, sparse * 2).draw(generator, 1, 1)
    assert not torch.equal(generator.get_state(), before)


def test_every_option_of_the_temporal_stage_trains(configure, planted, tmp_path):
    options = {
        "temporal__picking": "motion",
        "temporal__positions": "ratio",
        "temporal__latents": "select",
        "temporal__motion_weight": 0.0,
        "tune__noise": "logit_normal",
        "tune__weighting": "none",
        "tune__targets": "qkv",
        "tune__grad_clip": 0.0,
        "tune__recompute": "block",
        "tune__sample_every": 2,
        "spatial__batch_size": 3,
    }
    run(configure(**options), tmp_path)
    assert not any(".o." in name for name in load_file(tmp_path / "motion.safetensors"))
    steps = [row["step"] for row in json.loads((tmp_path / "samples" / "samples.json").read_text())]
    assert steps == [2, 4, 6]


def test_a_clip_is_classified_alone(configure, tmp_path):
    found = tune.classify_clip(configure(), tmp_path, console=QuietConsole())
    assert found.kind.shape == (2, 3)
    assert (tmp_path / "heads.json").exists() and (tmp_path / "heads.png").exists()
    assert not (tmp_path / "checkpoints").exists()


def test_the_first_screen_says_what_each_stage_will_take(configure, planted, tmp_path):
    """Before the first step, from steps on copies; a resumed run estimates what is left."""

    class Listening(InterruptingConsole):
        said = ()

        def table(self, title, rows):
            if title.startswith("Estimate"):
                self.said += (dict(rows),)

        def start_stage(self, name, steps):
            super().start_stage(name, steps)
            self.said += (name,)

    console = Listening("temporal", 2)
    with pytest.raises(KeyboardInterrupt):
        run(configure(), tmp_path, console)
    classify, table, *stages = console.said
    assert classify == "classify"
    assert stages == ["spatial", "temporal"] and list(table) == ["spatial", "temporal", "in all"]
    for stage in stages:
        assert f"s for {STEPS} steps, peak " in table[stage] and " s/step" in table[stage]
    again = Listening("temporal", 2)
    run(configure(), tmp_path, again)
    assert (
        list(again.said[0]) == ["temporal", "in all"]
        and f"for {STEPS - 2} steps" in again.said[0]["temporal"]
    )


def test_the_last_steps_take_the_whole_clip_at_the_same_tokens(configure, planted, tmp_path):
    """Positions 0, 1, 2, ... as at generation; samples fewer, so that a step costs the same."""
    config = configure(temporal__whole_share=2 / STEPS, temporal__batch_size=4)
    family = load_family(config.model.path, dtype="float32")
    [clip] = read_references(config.clip, family)
    material = Material(family, clip, "a square", tmp_path / "cache")
    stage = tune._stage("temporal", config, [SparseClip(material, config.temporal)])
    drawn = [stage.draw(torch.Generator().manual_seed(0), 4, step) for step in range(1, STEPS + 1)]
    sparse, whole = drawn[:-2], drawn[-2:]
    assert all(one.positions is not None and one.latents.shape[0] == 4 for one in sparse)
    assert all(one.positions is None and one.latents.shape[2] == 5 for one in whole)
    tokens = [one.latents.shape[0] * one.latents.shape[2] for one in drawn]
    assert tokens == [12] * (STEPS - 2) + [10] * 2
    result = run(config, tmp_path)
    losses = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert [row["step"] for row in losses if row["stage"] == "temporal"] == list(range(1, STEPS + 1))
    assert result.motion_file.exists()


def test_an_estimate_changes_nothing(configure, planted, tmp_path):
    config = configure(temporal__picking="phase", temporal__whole_share=0.5)
    family = load_family(config.model.path, dtype="float32")
    [clip] = read_references(config.clip, family)
    material = Material(family, clip, "a square", tmp_path / "cache")
    state, _ = begin(config, tmp_path, family, [clip], tune.classify(family, None, None, None, seed=0))
    assert state.acting == [state.adapters["spatial"]]
    before = {name: value.clone() for name, value in state.checkpoint().tensors.items()}
    stage = tune._stage("temporal", config, [SparseClip(material, config.temporal)])
    made = estimate(family, stage, state, config)
    assert made.steps == STEPS and made.seconds_per_step > 0 and made.peak["rss_mib"] > 0
    after = state.checkpoint().tensors
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert (state.stage, state.step) == ("spatial", 0) and not family.transformer.training
    state.enter("temporal", config)
    assert state.acting == [state.adapters["spatial"], state.adapters["temporal"]]


def test_the_plan_names_what_will_happen_and_writes_nothing(configure, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = " ".join(" ".join(row) for _, rows in tune.plan(configure()) for row in rows)
    for part in (
        "2 layers",
        "3 heads of 12",
        "17 at 8 fps, 48x32",
        "30 whole, 18 sparse",
        "rank 2",
        "runs/clip",
    ):
        assert part in text, part
    for caption, looks in (("a square", "one: the caption names no colour"), ("an orange square", "3: ")):
        [(_, tuning)] = [
            t for t in tune.plan(configure(tune__looks=3, clip__prompt=caption)) if t[0] == "Tuning"
        ]
        assert dict(tuning)["looks"].startswith(looks)
    assert not list(tmp_path.iterdir())


def test_the_learning_rate_is_constant_and_then_falls_to_zero():
    """Without decay it never moves; with it the last step still learns, at one part in the decaying steps."""
    assert {rate_factor(step, 10, 0.0) for step in range(1, 11)} == {1.0}
    falling = [rate_factor(step, 10, 0.4) for step in range(1, 11)]
    assert falling == pytest.approx([1, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25])
