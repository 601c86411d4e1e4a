"""Stage 1: planted heads are told apart, rules and rows do what they say, the map survives its file."""

import dataclasses
from contextlib import contextmanager

import numpy as np
import pytest
import torch

import fym_kernels
from fym.config import HeadsConfig
from fym.errors import UserError
from fym.flow import FlowMatching
from fym.heads import HeadMap, classify, judge, mean_map, query_rows

GRID = (4, 2, 3)  # frames, rows, columns


class PlantedFamily:
    """Three heads per layer: one looks at its own frame, one at its own place, one everywhere."""

    num_layers, num_heads, model_id, model_hash = 2, 3, "planted", "0"
    schedule = FlowMatching()

    def grid(self, latents):
        return GRID

    @contextmanager
    def attention(self, on_qk):
        self.on_qk = on_qk
        yield

    def predict(self, latents, timestep, text):
        frames, places = GRID[0], GRID[1] * GRID[2]
        token = torch.arange(frames * places)
        frame = torch.nn.functional.one_hot(token // places, 8).float()
        place = torch.nn.functional.one_hot(token % places, 8).float()
        heads = torch.stack([frame, place, torch.zeros_like(frame)], 1)[None]
        for layer in range(self.num_layers):
            self.on_qk(layer, 8 * heads, 8 * heads)


@pytest.fixture
def head_map():
    return classify(PlantedFamily(), torch.zeros(16, 4, 2, 3), torch.zeros(1), HeadsConfig(), seed=0)


def test_planted_heads_are_told_apart(head_map):
    assert head_map.kind.tolist() == [[0, 1, 0]] * 2
    assert head_map.rho[0, 0] < 0.5 < 2 < head_map.rho[0, 1]
    assert head_map.rho[0, 2] == pytest.approx(1.0, abs=0.02)  # uniform attention favours neither
    assert head_map.temporal_heads(0).tolist() == [1] and head_map.spatial_heads(0).tolist() == [0, 2]
    assert not head_map.flips.any()


def test_rules():
    rho = np.array([[0.7, 0.9, 1.2], [1.3, 2.0, 1.25]])
    assert judge(rho, "mass", 1.3, 0).tolist() == [[0, 0, 0], [1, 1, 0]]
    assert judge(rho, "cosine", 1.3, 0).tolist() == [[0, 1, 1], [1, 1, 1]]
    assert judge(rho, "topk", 1.3, 3).tolist() == [[0, 0, 0], [1, 1, 1]]
    assert judge(rho, "topk", 1.3, 0).sum() == 0
    with pytest.raises(ValueError, match="allowed"):
        judge(rho, "best", 1.0, 0)


def test_groupings_are_controls_of_the_rule(head_map, tmp_path):
    """random: as many of each kind in every layer, drawn by the seed; all: every head in both stages."""
    shuffled = [
        dataclasses.replace(head_map, grouping="random", grouping_seed=seed).kind.tolist()
        for seed in range(9)
    ]
    assert all(sorted(layer) == [0, 0, 1] for kind in shuffled for layer in kind)
    assert any(kind != head_map.kind.tolist() for kind in shuffled)
    assert shuffled[2] == dataclasses.replace(head_map, grouping="random", grouping_seed=2).kind.tolist()
    every = dataclasses.replace(head_map, grouping="all")
    assert every.temporal_heads(0).tolist() == every.spatial_heads(1).tolist() == [0, 1, 2]
    every.save(tmp_path / "heads.json")
    assert HeadMap.load(tmp_path / "heads.json").grouping == "all"


def test_the_grouping_of_the_configuration_reaches_the_map_and_leaves_flips_alone():
    args = (PlantedFamily(), torch.zeros(16, 4, 2, 3), torch.zeros(1))
    found = classify(*args, HeadsConfig(grouping="random"), seed=5)
    assert (found.grouping, found.grouping_seed) == ("random", 5)
    assert not found.flips.any()


def test_flips_count_the_passes_that_disagree(tiny_family, moving_square):
    """On random weights all heads lie near the threshold, so some passes disagree with the average."""
    latents = tiny_family.encode_video(moving_square)
    text = tiny_family.encode_prompts(["x"])
    done = []
    config = HeadsConfig(threshold=1.0, seeds=3, sigmas=[0.9998, 0.5])
    found = classify(tiny_family, latents, text, config, seed=0, progress=done.append)
    assert done == [1, 2, 3, 4, 5, 6]
    assert found.flips.shape == (2, 3) and found.flips.max() <= 3 < 6
    again = classify(tiny_family, latents, text, config, seed=0)
    assert np.array_equal(found.rho, again.rho) and np.array_equal(found.flips, again.flips)
    assert not np.array_equal(found.rho, classify(tiny_family, latents, text, config, seed=1).rho)


@pytest.mark.parametrize("rule", ["mass", "cosine", "topk"])
def test_several_clips_are_judged_by_their_mean_mass(tiny_family, moving_square, rule):
    """Of three clips one is longer; flips are those of all passes against the common map."""
    config = HeadsConfig(rule=rule, threshold=1.0, topk=3, seeds=2, sigmas=[0.9998, 0.7])
    clips = [moving_square, moving_square.flip(2), moving_square[:9] // 2]
    text = tiny_family.encode_prompts(["a square"])
    latents = [tiny_family.encode_video(clip) for clip in clips]
    maps = [classify(tiny_family, one, text, config, seed=seed) for seed, one in enumerate(latents)]
    found = mean_map(maps)
    assert np.allclose(found.spatial_mass, sum(one.spatial_mass for one in maps) / 3, rtol=1e-12)
    assert np.allclose(found.temporal_mass, sum(one.temporal_mass for one in maps) / 3, rtol=1e-12)
    assert np.array_equal(mean_map(maps[:1]).flips, maps[0].flips)
    sides = np.zeros(found.kind.shape, int)  # passes on the temporal side, as each map tells them
    for one in maps:
        sides += np.where(one.kind == 1, 4 - one.flips, one.flips)
    assert np.array_equal(found.flips, np.where(found.kind == 1, 12 - sides, sides))


def test_sampled_rows_are_an_unbiased_estimate():
    """The mean over 60 samplings lies within four standard errors of the exact mass, for every head."""
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 1, 24, 3, 8, generator=generator)
    exact = fym_kernels.head_scores(query, key, GRID).temporal[0]
    draws = torch.stack(
        [
            fym_kernels.head_scores(query, key, GRID, rows=query_rows(GRID, 8, generator)).temporal[0]
            for _ in range(60)
        ]
    )
    assert draws.std(0).min() > 0
    assert ((draws.mean(0) - exact).abs() < 4 * draws.std(0) / 60**0.5).all()


def test_sampling_rows_is_an_option_of_classification(tiny_family, moving_square):
    latents, text = tiny_family.encode_video(moving_square), tiny_family.encode_prompts(["x"])
    exact, sampled = (
        classify(tiny_family, latents, text, HeadsConfig(seeds=1, rows=rows), seed=0) for rows in (0, 20)
    )
    assert not np.array_equal(exact.rho, sampled.rho)
    np.testing.assert_allclose(exact.spatial_mass, sampled.spatial_mass, atol=0.1)


def test_rows_are_spread_over_the_frames():
    generator = torch.Generator().manual_seed(0)
    assert query_rows((21, 30, 52), 0, generator).numel() == 2048 // 21 * 21
    assert query_rows((13, 6, 6), 0, generator) is None
    rows = query_rows((13, 6, 6), 65, generator)
    assert rows.unique().numel() == 65 and (torch.bincount(rows // 36) == 5).all()
    assert (rows.diff() > 0).all()


def test_the_map_survives_its_file(head_map, tmp_path):
    path = tmp_path / "heads.json"
    head_map.save(path)
    again = HeadMap.load(path)
    for field in dataclasses.fields(HeadMap):
        assert np.array_equal(getattr(again, field.name), getattr(head_map, field.name)), field.name


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"format": 2}'])
def test_a_file_that_is_no_head_map_is_refused(tmp_path, text):
    path = tmp_path / "heads.json"
    path.write_text(text)
    with pytest.raises(UserError, match="no head map"):
        HeadMap.load(path)
