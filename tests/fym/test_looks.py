"""Looks: the caption says what the picture shows, colours are told apart, and nothing else changes."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from fym.embedded.scenes import render, unseen_scene
from fym.looks import APART, COLOURS, in_looks, looks, recolour
from fym.video import Clip


def gap(one, other):
    return max(abs(a - b) for a, b in zip(COLOURS[one], COLOURS[other], strict=True))


def test_the_first_look_is_the_clips_own_and_others_name_other_colours():
    own, *others = looks("A Red circle and a blue square on a gray background, near a red star", 24)
    assert own.caption == "A Red circle and a blue square on a gray background, near a red star"
    assert not own.renamed and len(others) == 23
    for look in others:
        red, blue, grey = (look.renamed[name] for name in ("red", "blue", "grey"))
        assert look.caption == f"A {red} circle and a {blue} square on a {grey} background, near a {red} star"
        assert all(old != new for old, new in look.renamed.items())
        assert all(gap(*pair) > APART for pair in itertools.combinations((red, blue, grey), 2))
    assert len({look.caption for look in others}) > 18
    assert looks(own.caption, 24) == [own, *others]


@pytest.mark.parametrize("caption", ["", "in a meadow", "a redwood and a blackbird, greyish"])
def test_a_caption_without_a_colour_has_one_look(caption):
    assert [look.caption for look in looks(caption, 5)] == [caption]


def test_a_caption_of_all_colours_finds_an_end():
    for look in looks(" ".join(COLOURS), 5)[1:]:
        assert sorted(look.renamed.values()) == sorted(COLOURS)


def test_named_colours_become_their_new_ones_exactly():
    for seed in range(300):
        draw = random.Random(seed)
        names = draw.sample(list(COLOURS), draw.randint(1, 6))
        for look in looks(" and ".join(names), 2)[1:]:
            pixels = torch.tensor([[[COLOURS[name] for name in names]]], dtype=torch.uint8)
            wanted = torch.tensor([[[COLOURS[look.renamed[name]] for name in names]]])
            assert (recolour(pixels, look.renamed).int() - wanted).abs().max() <= 1


def test_what_is_far_from_every_named_colour_stays():
    ground = torch.tensor([[[[20, 60, 20], [0, 0, 0], [40, 40, 90]]]], dtype=torch.uint8)
    assert (recolour(ground, {"white": "blue"}).int() - ground).abs().max() <= 30


def test_a_rendered_clip_is_as_if_rendered_in_the_new_colours():
    """But at the edges, whose mixtures need not lie between the new colours."""
    scene = unseen_scene("square lap", shape="square", colour="red", background="grey")
    clip = Clip(render(scene), 8.0, "clip", "")
    (_, own), *others = in_looks([clip], ["a red square on a grey background"], 4)
    assert own == "a red square on a grey background" and len(others) == 3
    for copy, caption in others:
        _, colour, _, _, _, background, _ = caption.split()
        ideal = render(unseen_scene("square lap", shape="square", colour=colour, background=background))
        off = (copy.frames.int() - ideal.int()).abs().amax(-1)
        assert (off <= 2).float().mean() > 0.9
        assert copy.fps == clip.fps and copy.frames.shape == clip.frames.shape


def test_looks_come_after_the_clips_of_all_references(moving_square):
    clips = [Clip(moving_square, 8.0, name, name) for name in "ab"]
    made = in_looks(clips, ["a square", "an orange square"], 3)
    assert [clip.path for clip, _ in made] == ["a", "b", "b", "b"]
    assert [caption for _, caption in made[:2]] == ["a square", "an orange square"]
    assert made[0][0] is clips[0] and made[1][0] is clips[1]
    assert not torch.equal(made[2][0].frames, moving_square)
