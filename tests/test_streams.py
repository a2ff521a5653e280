import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from patch_diffusion import streams


def test_keys_are_fixed_for_ever():
    assert streams.stream_key(0, "noise", 1, 2) == KEY


KEY = 5938781660159604271


def test_integers_of_numpy_are_integers():
    """Their text is another: PatchSchedule(seed=np.int64(1)) drew other sizes than seed 1."""
    assert streams.stream_key(np.int64(0), "noise", np.int32(1), np.uint64(2)) == KEY


def test_uniform():
    numbers = torch.tensor([streams.uniform(0, "test", index) for index in range(20_000)], dtype=torch.float64)
    assert numbers.min() >= 0 and numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 0.01 and abs(numbers.var() - 1 / 12) < 0.002


@given(st.integers(0, 40), st.integers(1, 40))
@pytest.mark.slow
def test_a_slot_has_its_noise_in_any_range(start, count):
    everything = streams.slot_normal(0, "noise", 5, range(80), (2,))
    part = streams.slot_normal(0, "noise", 5, range(start, start + count), (2,))
    assert torch.equal(part, everything[start : start + count])


@pytest.mark.parametrize("other", [(1, "noise", 5), (0, "sound", 5), (0, "noise", 6)])
def test_seed_name_and_step_matter(other: tuple[int, str, int]):
    assert not torch.equal(
        streams.slot_normal(0, "noise", 5, range(4), (3,)), streams.slot_normal(*other, range(4), (3,))
    )


def test_normal():
    noise = streams.slot_normal(0, "noise", 0, range(1000), (100,))
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02


def test_noise_is_that_of_a_generator_for_each_eight_slots():
    """Runs repeat bit for bit from version to version."""
    groups = [torch.randn(8, 2, 3, generator=streams.generator(4, "noise", 5, group)) for group in range(3)]
    assert torch.equal(streams.slot_normal(4, "noise", 5, range(3, 21), (2, 3)), torch.cat(groups)[3:21])
