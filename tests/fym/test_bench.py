"""The benchmark compares like with like, counts what it says it counts, and its table tells the truth."""

import json

import pytest
import torch

from fym.bench import cases, computed, measure, naive, ours, run, shapes, tuning, two_stage
from fym.bench.table import Goal, Row, markdown, row_of
from fym.bench.targets import GROUPS, Options
from fym.cli import main
from fym.config_file import load_config
from fym.families import load_family
from fym.material import Material, read_references
from fym.video import write_clip

BENCH = ("bench", "--stock-malloc")  # the tests after this one share the process

GRID = (3, 4, 5)
FLOAT32 = torch.float32


@pytest.mark.parametrize(
    "make",
    [
        lambda: cases.qk_norm_rope(shapes.SMALL, GRID, FLOAT32, with_compile=False),
        lambda: cases.modulated_norm(shapes.SMALL, GRID, FLOAT32, with_compile=False),
        lambda: cases.gated_residual(shapes.SMALL, GRID, FLOAT32, with_compile=False),
        lambda: cases.gelu(shapes.SMALL, GRID, FLOAT32, with_compile=False),
        lambda: cases.motion_loss(GRID, 2, with_compile=False),
    ],
)
def test_ours_and_naive_are_the_same_function(make):
    case = make()
    sides = [case.sides[name] for name in ("ours", "naive")]
    torch.testing.assert_close(sides[0].forward(), sides[1].forward(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(*(side.call("step")() for side in sides), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("side", ["out", "in"])
def test_one_projection_without_an_update_is_the_naive_one(side):
    case = cases.lora_linear(shapes.SMALL, GRID, FLOAT32, 2, side, with_compile=False)
    for work in case.sides.values():
        torch.nn.init.zeros_(work.leaves[2])  # B
    got, (expected,) = (case.sides[name].forward() for name in ("ours", "naive"))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    gradients = [case.sides[name].call("step")()[0] for name in ("ours", "naive")]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


def test_blocks_with_the_same_weights_and_no_update_are_the_same_function():
    torch.manual_seed(0)
    stock = naive.Block(shapes.SMALL, 2, FLOAT32)
    fused = ours.Block(shapes.SMALL, 2, FLOAT32, GRID)
    stock_state = {name.replace("base_layer.", ""): value for name, value in stock.block.state_dict().items()}
    missing, _ = fused.block.load_state_dict(stock_state, strict=False)
    assert not missing
    for module in (stock, fused):
        for name, parameter in module.named_parameters():
            if "lora_B" in name:
                torch.nn.init.zeros_(parameter)
    d = shapes.SMALL.d
    inputs = torch.randn(1, 60, d), torch.randn(1, 7, d), torch.randn(1, 6, d)
    tables = naive.rotary_tables(shapes.SMALL, GRID)
    torch.testing.assert_close(stock(*inputs, tables), fused(*inputs), rtol=1e-4, atol=1e-4)


def test_saved_bytes_counts_a_storage_once_and_no_weights():
    x, weight = torch.randn(4, 8, requires_grad=True), torch.randn(8, 8, requires_grad=True)

    def forward():
        y = x @ weight  # saves x and weight
        return y * y.detach() + y.exp()  # saves y (twice) and exp(y)

    assert measure.saved_bytes(forward, [weight]) == 3 * x.numel() * 4


def test_bytes_of_shapes_are_bytes_of_tensors():
    real = naive.Block(shapes.SMALL, 2, torch.bfloat16)
    d, length = shapes.SMALL.d, shapes.tokens(GRID)
    hidden = torch.randn(1, length, d, dtype=torch.bfloat16, requires_grad=True)
    text = torch.randn(1, shapes.TEXT_TOKENS, d, dtype=torch.bfloat16)
    temb, tables = torch.randn(1, 6, d), naive.rotary_tables(shapes.SMALL, GRID)
    known = [*real.parameters(), *tables]
    measured = measure.saved_bytes(lambda: real(hidden, text, temb, tables), known)
    assert computed.block_bytes(shapes.SMALL, GRID, 2, torch.bfloat16) == measured


@pytest.mark.parametrize("side", ["naive", "ours"])
def test_checkpointing_takes_less_memory_and_more_work(side):
    width = shapes.SMALL._replace(layers=6)
    plain, again = (computed.training_step(width, (2, 8, 8), FLOAT32, side, way) for way in ("none", "block"))
    assert plain[0] == again[0]
    assert again[1] - again[0] < plain[1] - plain[0]
    assert again[2] > plain[2]


def test_layers_are_alike():
    """The figures of a deep model are extrapolated from two shallow ones."""
    width = shapes.SMALL._replace(layers=8)
    whole = computed._run_step(width, (2, 4, 4), FLOAT32, "ours", "none")
    assert computed.training_step(width, (2, 4, 4), FLOAT32, "ours", "none") == whole


def test_all_sides_get_the_same_rounds():
    calls = []
    sides = {name: (lambda name=name: calls.append(name)) for name in ("a", "b")}
    timings = measure.interleave(sides, 4)
    assert [len(timing.samples) for timing in timings.values()] == [4, 4]
    assert set(calls) == {"a", "b"}


def test_a_naive_step_trains_the_temporal_adapter_and_nothing_else():
    family = load_family("embedded")
    trained = naive.add_adapters(family.transformer, 2)
    active = family.transformer.active_adapters()
    assert active == ["spatial", "temporal"]
    latents, text = torch.randn(1, 16, 2, 6, 6), family.encode_prompts(["a red circle"])
    before = [p.detach().clone() for p in trained]
    frozen = {n: p.detach().clone() for n, p in family.transformer.named_parameters() if not p.requires_grad}
    assert any(".spatial." in name for name in frozen)

    def loss(*arguments):
        return naive.tuning_loss(family.transformer, *arguments)

    tuning.training_step(family, loss, trained, latents, text)()
    assert not all(torch.equal(old, new) for old, new in zip(before, trained, strict=True))
    now = dict(family.transformer.named_parameters())
    assert all(torch.equal(old, now[name]) for name, old in frozen.items())


def test_naive_two_stage_tuning_learns_the_look_and_then_the_motion(
    tiny_wan, tmp_path, moving_square, monkeypatch
):
    write_clip(tmp_path / "clip.mp4", moving_square, 8)
    seen = []

    def loss(transformer, noisy, *arguments):
        seen.append((transformer.active_adapters(), tuple(noisy.shape[:3])))
        return tuning_loss(transformer, noisy, *arguments)

    tuning_loss = naive.tuning_loss
    monkeypatch.setattr(naive, "tuning_loss", loss)

    def tuned(steps, **options):
        settings = {"clip.path": str(tmp_path / "clip.mp4"), "clip.prompt": "a square", "spatial.steps": 2}
        config = load_config(None, settings | {"temporal.steps": steps, "temporal.sparse_frames": 9})
        family = load_family(str(tiny_wan()), dtype="float32")
        [clip] = read_references(config.clip, family)
        material = Material(family, clip, "a square", tmp_path / "cache")
        assert len(two_stage.tune(family, config, material, **options)) == 2 + steps
        return {name: p.detach().clone() for name, p in family.transformer.named_parameters()}

    first, then = tuned(0), tuned(2)
    names = [name for name in first if "lora_B" in name]
    assert all(first[name].any() for name in names if ".spatial." in name)
    assert not any(first[name].any() for name in names if ".temporal." in name)
    changed = {name for name in first if not torch.equal(first[name], then[name])}
    assert {name for name in names if ".temporal." in name} <= changed
    assert all(".temporal." in name for name in changed)

    seen.clear()
    tuned(1, all_frames=True)
    assert seen == [(["spatial"], (1, 16, 1))] * 2 + [(["spatial", "temporal"], (4, 16, 5))]


@pytest.mark.parametrize(
    ("ratios", "reached"),
    [
        ({"× naive": 40.0, "× floor": 1.0}, "aim"),
        ({"× naive": 40.0, "× floor": 1.1}, "yes"),
        ({"× naive": 29.0, "× floor": 1.0}, "no"),
        ({"× naive": 40.0}, "not measured"),
    ],
)
def test_a_row_reaches_its_goals(ratios, reached):
    goals = [Goal("× naive", ">=", 30, 35), Goal("× floor", "<=", 1.15, 1.05)]
    row = Row("name", "what", "ms", {"ours": 1.0}, ratios, goals)
    assert row.reached == reached
    assert row_of(json.loads(json.dumps(row.as_dict()))) == row
    assert f"| {reached} |" in markdown([row])


def test_every_group_is_measured_by_the_command(tmp_path, capsys):
    path = tmp_path / "figures.json"
    assert main([*BENCH, "--quick", "--no-compile", "--json", str(path), "--only", "qk_norm_rope"]) == 0
    result = run.load(path)
    assert [row["name"] for row in result["rows"]] == ["qk_norm_rope"] * 2
    assert result["machine"]["threads"] == torch.get_num_threads()
    assert main([*BENCH, "--json", str(path), "--markdown"]) == 0
    assert "| qk_norm_rope forward |" in capsys.readouterr().out


def test_computed_figures_and_rows_share_a_file(tmp_path, monkeypatch):
    step = computed.Step("model", 17, 480, 832, 7800, "naive", "none", 1, 2, 3)
    monkeypatch.setattr(run, "training_steps", lambda: iter([step]))
    path = tmp_path / "figures.json"
    for arguments in (["--quick", "--no-compile", "--only", "saved"], ["--computed"]):
        assert main([*BENCH, "--json", str(path), *arguments]) == 0
    result = run.load(path)
    assert result["rows"] and result["computed"] and "saved for backward" in run.as_markdown(result)
    assert main([*BENCH, "--quick", "--no-compile", "--only", "saved", "--json", str(path)]) == 0
    assert run.load(path)["computed"] == result["computed"]


def test_an_unknown_row_is_refused(capsys):
    assert main([*BENCH, "--only", "nothing"]) == 2
    assert "lora" in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name in GROUPS if name not in ("embedded", "qk_norm_rope")])
def test_every_row_can_be_measured(name):
    rows = GROUPS[name](Options(rounds=1, quick=True, with_compile=False))
    for row in rows:
        assert all(value > 0 for value in row.sides.values())
        assert {goal.quantity for goal in row.goals} - set(row.ratios) <= {"× compile"}
