"""Metrics of pictures: flicker, appearance, prompt; and what is not measured says so."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from fym.errors import UserError
from fym.motionbench.attributes import embedded_world
from fym.motionbench.defects import make_case
from fym.motionbench.embeddings import load_clip
from fym.motionbench.metrics import METRICS
from fym.motionbench.metrics.appearance_leak import colour_overlap
from fym.motionbench.metrics.temporal_consistency import warping_error
from fym.motionbench.pair import Pair


def flat(*colours: tuple[int, int, int], frames: int = 4, side: int = 32) -> torch.Tensor:
    """Vertical bars of equal width."""
    bars = np.repeat(np.array(colours, np.uint8), side // len(colours), axis=0)
    return torch.from_numpy(np.broadcast_to(bars, (frames, side, len(bars), 3)).copy())


def test_known_overlaps_of_colours():
    """Same colours 1, other colours 0, half of the picture kept 1/2, wherever it is."""
    red_blue = flat((220, 40, 40), (40, 60, 220))
    assert colour_overlap(red_blue, red_blue) == pytest.approx(1)
    assert colour_overlap(red_blue, flat((240, 220, 40))) < 0.01
    assert colour_overlap(red_blue, flat((240, 220, 40), (220, 40, 40))) == pytest.approx(0.5, abs=0.01)


def test_a_leak_is_only_asked_for_with_another_prompt():
    """nan with the reason when the prompt is missing or that of the reference."""
    clip = flat((220, 40, 40))
    for prompt in ("", "a red wall"):
        measured = METRICS["appearance_leak"].measure(Pair(clip, clip, prompt, "a red wall"))
        assert math.isnan(measured.value) and "no other appearance" in measured.note
    assert METRICS["appearance_leak"].measure(Pair(clip, clip, "a blue wall", "a red wall")).value == 1


def test_flicker_is_seen_and_motion_is_not_flicker():
    """A uniform change by 40 grey levels cannot be warped away; a frozen clip has none."""
    case = make_case("flicker", 0)
    still = case.reference.frames[:1].repeat(6, 1, 1, 1)
    assert warping_error(still) < 0.2
    lit = flat((100, 100, 100), frames=6)
    lit[1::2] += 40
    assert warping_error(lit) == pytest.approx(40, abs=0.01)
    warping, embedding = (METRICS[f"temporal_consistency/{name}"] for name in ("warping", "embedding"))
    pair = Pair(case.reference.frames, case.reference.frames)
    assert warping.measure(pair).value == 0
    assert embedding.measure(Pair(still, still)).value == pytest.approx(1, abs=1e-6)


def test_attributes_are_checked_exactly():
    """The share of the attributes asked for that segmentation finds; each one in the details."""
    case = make_case("wrong attribute", 0)

    def measured(clip: torch.Tensor):
        pair = Pair(case.reference.frames, clip, reader=embedded_world, wanted=case.attributes)
        return METRICS["text_alignment"].measure(pair)

    assert measured(case.faithful.frames).value == 1
    wrong = measured(case.faulty.frames)
    assert wrong.value == pytest.approx(2 / 3) and wrong.details["colour"] == 0
    assert "segmentation" in wrong.backend


@pytest.fixture
def tiny_clip(tmp_path):
    """A CLIP of random weights whose tokens are letters, saved as transformers saves it."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{x}</w>" for x in letters)]
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = CLIPConfig(
        text_config={**small, **ends, "vocab_size": len(tokens), "max_position_embeddings": 8},
        vision_config={**small, "image_size": 32, "patch_size": 16},
        projection_dim=8,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        CLIPModel(config).save_pretrained(tmp_path / "clip")
    side = {"height": 32, "width": 32}
    CLIPProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=side),
        tokenizer=CLIPTokenizer(vocab={t: i for i, t in enumerate(tokens)}, merges=[]),
    ).save_pretrained(tmp_path / "clip")
    return tmp_path / "clip"


def test_clip_gives_the_cosine_of_its_own_model(tiny_clip):
    """Text alignment with CLIP is the mean of what transformers' own forward pass gives; long prompts fit."""
    from transformers import CLIPModel, CLIPProcessor

    frames = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (3, 40, 60, 3)).astype(np.uint8))
    pair = Pair(frames, frames, prompt="a red ball", embedder=load_clip(tiny_clip))
    measured = METRICS["text_alignment"].measure(pair)
    model, processor = CLIPModel.from_pretrained(tiny_clip), CLIPProcessor.from_pretrained(tiny_clip)
    batch = processor(
        text=["a red ball"], images=list(frames.numpy()), return_tensors="pt", truncation=True, max_length=8
    )
    with torch.inference_mode():
        out = model(**batch)
    assert measured.value == pytest.approx((out.image_embeds @ out.text_embeds.T).mean().item(), abs=1e-6)
    assert measured.backend == "CLIP clip"
    assert METRICS["temporal_consistency/embedding"].measure(pair).backend == "CLIP clip"


def test_without_a_model_nothing_is_made_up(tmp_path):
    """Text alignment is not measured, and a folder that holds no CLIP is refused with its reason."""
    clip = flat((220, 40, 40))
    measured = METRICS["text_alignment"].measure(Pair(clip, clip, prompt="a red wall"))
    assert math.isnan(measured.value) and "needs CLIP" in measured.note and measured.backend == "none"
    with pytest.raises(UserError, match=r"no config\.json"):
        load_clip(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match="CLIP"):
        load_clip(tmp_path)
