"""Which frames are picked, and where they sit on the time axis."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fym_kernels
from fym.positions import latent_frames, phase_window, sparse_frames, time_positions

AXES = (12, 10, 10)


def rotate(query, key, time, grid):
    """RoPE alone, at the given time positions."""
    positions = (time, torch.arange(grid[1]), torch.arange(grid[2]))
    return fym_kernels.qk_norm_rope(query, key, None, None, positions, axes_dim=AXES, norm=None)


def test_the_papers_example_81_to_17():
    index = sparse_frames(81, 17)
    assert index.tolist() == list(range(0, 81, 5))
    assert time_positions(index, 81).tolist() == [0, 5, 10, 15, 20]
    assert time_positions(index, 81, "ratio").tolist() == pytest.approx([0, 4.2, 8.4, 12.6, 16.8])
    assert time_positions(index, 81, "pixel").tolist() == pytest.approx([81 / 17 * k for k in range(5)])
    assert time_positions(index, 81, "none").tolist() == [0, 1, 2, 3, 4]
    assert time_positions(index, 81).dtype == torch.float64


def test_all_frames_are_the_clip_itself():
    index = sparse_frames(17, 17)
    assert index.tolist() == list(range(17))
    assert time_positions(index, 17).tolist() == list(range(latent_frames(17)))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 24), st.integers(1, 24), st.sampled_from(["uniform", "phase"]), st.integers(0, 99))
def test_picked_frames_increase_and_stay_in_the_clip(groups, sparse_groups, picking, seed):
    frames, count = 4 * max(groups, sparse_groups) + 1, 4 * min(groups, sparse_groups) + 1
    index = sparse_frames(frames, count, picking=picking, rng=torch.Generator().manual_seed(seed))
    assert len(index) == count and index[0] >= 0 and index[-1] < frames
    assert (index.diff() > 0).all()
    if picking == "uniform":
        assert index[0] == 0 and index[-1] == frames - 1
    else:
        assert len(set(index.diff().tolist())) <= 1


def test_phase_has_room_to_shift_and_shifts():
    assert phase_window(81, 17) == (4, 16)
    generator = torch.Generator().manual_seed(0)
    starts = {int(sparse_frames(81, 17, picking="phase", rng=generator)[0]) for _ in range(200)}
    assert starts == set(range(17))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 24), st.integers(1, 24), st.integers(0, 99))
def test_groups_are_whole_latent_frames_at_their_own_places(groups, sparse_groups, seed):
    """The first frame and whole groups of four, increasing, and their positions are those latent frames."""
    frames, count = 4 * max(groups, sparse_groups) + 1, 4 * min(groups, sparse_groups) + 1
    index = sparse_frames(frames, count, picking="groups", rng=torch.Generator().manual_seed(seed))
    assert len(index) == count and index[0] == 0 and index[-1] < frames and (index.diff() > 0).all()
    places = time_positions(index, frames).long()
    assert torch.equal(index[1:].reshape(-1, 4), (4 * places[1:, None] + torch.arange(-3, 1)))


def test_groups_see_every_part_of_the_clip():
    generator = torch.Generator().manual_seed(0)
    drawn = [time_positions(sparse_frames(49, 13, picking="groups", rng=generator), 49) for _ in range(300)]
    assert set(torch.cat(drawn).tolist()) == set(range(13))


def test_motion_picking_takes_more_frames_where_more_moves():
    """A square that rests for half the clip and then runs: most picked frames lie in the second half."""
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 80, (64, 96, 3), generator=generator).repeat(33, 1, 1, 1)
    patch = torch.randint(120, 255, (20, 20, 3), generator=generator)
    for f in range(33):
        x = 4 + 4 * max(0, f - 16)
        frames[f, 20:40, x : x + 20] = patch[:, : 96 - x]
    index = sparse_frames(33, 9, picking="motion", frames=frames.to(torch.uint8))
    assert index[0] == 0 and index[-1] == 32 and (index.diff() > 0).all()
    assert (index > 16).sum() >= 6
    assert time_positions(index, 33).tolist() == (index[::4] / 4).tolist()


def test_motion_picking_of_a_still_clip_is_uniform():
    still = torch.full((17, 32, 32, 3), 90, dtype=torch.uint8)
    assert sparse_frames(17, 9, picking="motion", frames=still).tolist() == sparse_frames(17, 9).tolist()


def test_uniform_stride_positions_turn_each_frame_as_in_the_full_clip():
    """Adaptive RoPE: the frames 0, s, 2s, ... get the very phases they have among all frames, bit for bit."""
    full, stride = (9, 2, 3), 2
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 1, 9 * 6, 2, 32, generator=generator)
    whole = rotate(query, key, torch.arange(9.0), full)
    index = sparse_frames(33, 17)
    time = time_positions(index, 33)
    assert time.tolist() == [0, 2, 4, 6, 8]
    taken = [x.view(1, 9, 6, 2, 32)[:, ::stride].flatten(1, 2) for x in (query, key)]
    sparse = rotate(*taken, time, (5, 2, 3))
    for ours, theirs in zip(sparse, whole, strict=True):
        assert torch.equal(ours.view(1, 5, 6, 2, 32), theirs.view(1, 9, 6, 2, 32)[:, ::stride])


def test_a_shifted_window_has_the_same_relative_phases():
    """A window that starts later has the logits of one that starts at 0: RoPE is relative."""
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 1, 3 * 6, 2, 32, generator=generator, dtype=torch.float64)
    logits = []
    for start in (0, 7):
        index = start + 4 * torch.arange(9)
        q, k = rotate(query, key, time_positions(index, 81), (3, 2, 3))
        logits.append(torch.einsum("bshd,bthd->bhst", q, k))
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("count", [1, 4, 16, 21])
def test_counts_that_make_no_whole_latent_frames_are_refused(count):
    with pytest.raises(ValueError, match=r"4n\+1"):
        sparse_frames(17, count)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="allowed"):
        sparse_frames(17, 9, picking="random")
    with pytest.raises(ValueError, match="allowed"):
        time_positions(torch.arange(9), 17, "linear")
    with pytest.raises(ValueError, match="frames"):
        sparse_frames(17, 9, picking="motion")
