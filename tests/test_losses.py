import json
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from patch_diffusion.denoise.whole_image import SIGMAS
from patch_diffusion.training.losses import Losses

NONE = torch.zeros(())


def filled():
    losses = Losses(torch.device("cpu"))
    for size, loss in (("8x8", 1.0), ("8x8", 2.0), ("4x4", 5.0), ("4x4", math.nan)):
        by_noise = losses.binned(torch.tensor([loss, 3.0]), torch.tensor([1e-4, 1e4]))
        losses.add(size, torch.tensor(loss), by_noise, torch.tensor(float(math.isnan(loss))))
    return losses


def test_means_are_of_the_finite_steps():
    means = filled().summary()
    assert means.by_size == {"4x4": 5.0, "8x8": 1.5}
    assert (means.num_steps, means.skipped) == (4, 1)
    # The lowest level holds a loss that is no number; the highest does not.
    assert means.by_noise == {"6.4": 3.0}


def test_samples_count_for_the_nearest_level():
    losses = Losses(torch.device("cpu"))
    sigma = torch.tensor([*SIGMAS, 0.069, 0.072, 100.0])
    sums, counts = losses.binned(torch.arange(11.0), sigma)
    assert counts.tolist() == [2, 2, 1, 1, 1, 1, 1, 2]
    assert sums.tolist() == [0 + 8, 1 + 9, 2, 3, 4, 5, 6, 7 + 10]


def test_what_is_not_logged_yet_survives_a_checkpoint():
    first, second = filled(), Losses(torch.device("cpu"))
    second.restore(json.loads(json.dumps(first.state(), allow_nan=False)))
    for losses in (first, second):
        losses.add("8x8", torch.tensor(0.1), losses.zeros(), NONE)
    assert first.summary() == second.summary() and first.summary().by_size["8x8"] == pytest.approx(3.1 / 3)


def test_a_new_line_begins_with_nothing_but_the_count_of_skipped_steps():
    losses = filled()
    losses.clear()
    means = losses.summary()
    assert means.by_size == means.by_noise == {} and (means.num_steps, means.skipped) == (0, 1)


class NoFloat64(TorchDispatchMode):
    """A device without float64."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor) and found.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return found


def test_a_device_without_float64_gives_the_same_line():
    losses = filled()
    losses.add("8x8", torch.tensor(0.1), losses.zeros(), NONE)
    with NoFloat64():
        here = losses.summary()
    assert here.by_size["8x8"] == (1.0 + 2.0 + torch.tensor(0.1).double().item()) / 3
