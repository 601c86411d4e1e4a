"""Generation: the same frames as the plain diffusers pipeline, and the adapters' strengths."""

import pytest
import torch

import fym_kernels
from fym.errors import UserError
from fym.generate import generate
from fym.motion_file import load_motion_file, save_motion_file

# One grey level: our fused update and PEFT's sum round differently in fp32, and a value may lie on an edge.
LEVELS = 1


def plain(folder, prompt, seed, motion=None, scale=1.0, **options):
    """What a user of diffusers alone gets."""
    from diffusers import WanPipeline

    pipe = WanPipeline.from_pretrained(folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    if motion is not None:
        pipe.load_lora_weights(motion, adapter_name="motion")
        pipe.set_adapters(["motion"], [scale])
    settings = {"num_frames": 17, "height": 32, "width": 48, "num_inference_steps": 2, "guidance_scale": 2.0}
    video = pipe(
        prompt=prompt,
        generator=torch.Generator().manual_seed(seed),
        max_sequence_length=16,
        output_type="np",
        **{**settings, **options},
    ).frames[0]
    return (torch.from_numpy(video) * 255).round().to(torch.uint8)


def difference(one, other):
    return int((one.int() - other.int()).abs().max())


@pytest.fixture(scope="module")
def motion(tmp_path_factory, tiny_family, make_adapter):
    """A strong adapter, alpha unlike rank; the second layer has no temporal head."""
    path = tmp_path_factory.mktemp("motion") / "motion.safetensors"
    about = {"model_id": tiny_family.model_id, "model_hash": tiny_family.model_hash}
    save_motion_file(path, make_adapter([[0, 2], []]), make_adapter([[1], [0, 1, 2]], seed=1), about)
    return path


def test_without_a_motion_it_is_the_plain_pipeline(tiny_family, tiny_wan):
    """But for rounding, which the fused block does in another order."""
    with fym_kernels.use_backend("reference"):
        [ours] = generate(tiny_family, ["a red ball"], motion=None, seeds=[3])
    assert ours.shape == (17, 32, 48, 3) and ours.dtype == torch.uint8
    assert difference(ours, plain(tiny_wan(), "a red ball", 3)) <= LEVELS


def test_the_motion_file_gives_the_same_frames_in_plain_diffusers(tiny_family, tiny_wan, motion):
    [ours] = generate(tiny_family, ["a red ball"], motion=load_motion_file(motion), seeds=[3])
    assert difference(ours, plain(tiny_wan(), "a red ball", 3, motion)) <= LEVELS
    assert difference(ours, plain(tiny_wan(), "a red ball", 3)) > 10 * LEVELS


def test_so_does_a_motion_that_acts_at_high_noise_only(tiny_family, tiny_wan, motion):
    """The README's callback, which switches the file off in the steps below the level it was tuned from."""

    def early(pipe, step, timestep, tensors):
        left = pipe.scheduler.timesteps[step + 1 :]
        if len(left) and left[0] < 800:
            pipe.disable_lora()
        return tensors

    found = load_motion_file(motion)
    [ours] = generate(tiny_family, ["a red ball"], motion=found, lowest_noise=0.8, steps=4)
    options = {"num_inference_steps": 4, "callback_on_step_end": early}
    assert difference(ours, plain(tiny_wan(), "a red ball", 0, motion, **options)) <= LEVELS
    [whole] = generate(tiny_family, ["a red ball"], motion=found, steps=4)
    assert difference(ours, whole) > 10 * LEVELS


def test_so_does_the_spatial_file_and_a_strength_below_one(tiny_family, tiny_wan, motion):
    found = load_motion_file(motion)
    [ours] = generate(tiny_family, ["a"], motion=found, temporal_scale=0.5)
    assert difference(ours, plain(tiny_wan(), "a", 0, motion, scale=0.5)) <= LEVELS
    [ours] = generate(tiny_family, ["a"], motion=found, temporal_scale=0, spatial_scale=1)
    assert difference(ours, plain(tiny_wan(), "a", 0, motion.with_name("spatial.safetensors"))) <= LEVELS


def test_settings_reach_the_sampler(tiny_family, tiny_wan):
    options = {"num_frames": 9, "height": 48, "width": 32, "guidance_scale": 1.0}
    with fym_kernels.use_backend("reference"):
        [ours] = generate(tiny_family, ["a"], motion=None, steps=3, **options)
    assert torch.equal(ours, plain(tiny_wan(), "a", 0, num_inference_steps=3, **options))


def test_one_clip_per_prompt_and_seed_and_none_depends_on_the_others(tiny_family):
    clips = generate(tiny_family, ["a", "b"], motion=None, seeds=[0, 1], num_frames=5, steps=1)
    assert len(clips) == 4
    [alone] = generate(tiny_family, ["b"], motion=None, seeds=[1], num_frames=5, steps=1)
    assert torch.equal(clips[3], alone)
    assert not torch.equal(clips[0], clips[1]) and not torch.equal(clips[1], clips[3])


def test_what_cannot_be_generated_is_refused(tiny_family, motion, tmp_path):
    with pytest.raises(UserError, match="4k\\+1"):
        generate(tiny_family, ["a"], motion=None, num_frames=8)
    with pytest.raises(UserError, match="multiple of 16"):
        generate(tiny_family, ["a"], motion=None, height=40)
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes(motion.read_bytes())
    with pytest.raises(UserError, match="look of the reference"):
        generate(tiny_family, ["a"], motion=load_motion_file(alone), spatial_scale=0.5)


def test_below_the_lowest_noise_level_the_motion_no_longer_acts(tiny_family, motion):
    """0 is always, above 1 is never; between them the first steps alone have it."""
    found = load_motion_file(motion)
    settings = {"motion": found, "steps": 4}
    [base] = generate(tiny_family, ["a"], motion=None, steps=4)
    [always] = generate(tiny_family, ["a"], **settings)
    [early] = generate(tiny_family, ["a"], lowest_noise=0.7, **settings)
    [never] = generate(tiny_family, ["a"], lowest_noise=2.0, **settings)
    assert difference(never, base) <= LEVELS
    assert not torch.equal(early, never) and not torch.equal(early, always)
    assert torch.equal(generate(tiny_family, ["a"], lowest_noise=0.0, **settings)[0], always)


def test_the_motion_file_says_from_which_noise_level_it_acts(tiny_family, motion):
    found = load_motion_file(motion)
    found.metadata["lowest_noise"] = 0.7
    [own] = generate(tiny_family, ["a"], motion=found, steps=4)
    [asked] = generate(tiny_family, ["a"], motion=found, steps=4, lowest_noise=0.7)
    [always] = generate(tiny_family, ["a"], motion=found, steps=4, lowest_noise=0.0)
    assert torch.equal(own, asked) and not torch.equal(own, always)


def test_the_motion_file_says_which_guidance_it_is_meant_for(tiny_family, motion):
    """Of several files the least counts; what is asked for comes first."""
    found, other = load_motion_file(motion), load_motion_file(motion)
    settings = {"motion": [found, other], "temporal_scale": 0.5, "steps": 2}
    [models] = generate(tiny_family, ["a"], **settings)
    found.metadata["guidance_scale"], other.metadata["guidance_scale"] = 2.0, 1.5
    [own] = generate(tiny_family, ["a"], **settings)
    [least] = generate(tiny_family, ["a"], guidance_scale=1.5, **settings)
    [asked] = generate(tiny_family, ["a"], guidance_scale=tiny_family.defaults.guidance_scale, **settings)
    assert torch.equal(own, least) and not torch.equal(own, models)
    assert torch.equal(asked, models)


def test_guidance_leads_away_from_the_negative_prompt(tiny_family, motion):
    """Away from the prompt itself it leads nowhere: then the scale does not matter."""
    settings = {"motion": load_motion_file(motion), "steps": 2}
    [nothing, given] = (
        generate(tiny_family, ["a"], negative_prompt=text, **settings)[0] for text in ("", "b")
    )
    assert not torch.equal(nothing, given)
    settings["negative_prompt"] = "a"
    [one, three] = (generate(tiny_family, ["a"], guidance_scale=scale, **settings)[0] for scale in (1, 3))
    assert difference(one, three) <= LEVELS
