import json
import math

import pytest
import torch

from patch_diffusion.denoise.whole_image import SIGMAS
from patch_diffusion.training.losses import Balance, Losses

LEVELS = torch.tensor(SIGMAS)


@pytest.fixture
def losses():
    return Losses(torch.device("cpu"))


def test_every_level_comes_to_count_alike(losses):
    """The mean of weighted losses is 1 at each level and size, whatever it was."""
    balance, generator = Balance(losses), torch.Generator().manual_seed(0)
    means = {"8x8": torch.linspace(0.01, 2, 8), "4x4": torch.linspace(3, 0.5, 8)}
    assert balance.weights("8x8", LEVELS).tolist() == [1.0] * 8
    for _ in range(600):
        for size, mean in means.items():
            places = torch.randint(0, 8, (16,), generator=generator)
            found = mean[places] * (0.5 + torch.rand(16, generator=generator))
            balance.update(size, losses.binned(found, LEVELS[places]))
    for size, mean in means.items():
        assert torch.allclose(balance.weights(size, LEVELS) * mean, torch.ones(8), rtol=0.1)


@pytest.mark.slow
def test_a_level_that_is_not_seen_is_kept(losses):
    balance = Balance(losses)
    balance.update("8x8", losses.binned(torch.full((4,), 0.25), LEVELS[[2, 2, 3, 3]]))
    once = balance.weights("8x8", LEVELS)
    assert once[2] > 1.5 and once[2] == once[3] and once[0] == once[7] == 1
    for _ in range(5000):  # what is known of the others must not fade into nothing
        balance.update("8x8", losses.binned(torch.full((4,), 0.25), LEVELS[[2, 2, 2, 2]]))
    later = balance.weights("8x8", LEVELS)
    assert later[3] == once[3] and later[2] == pytest.approx(4) and balance.weights("4x4", LEVELS).eq(1).all()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_losses_that_are_no_numbers_teach_nothing(losses, value):
    balance = Balance(losses)
    balance.update("8x8", losses.binned(torch.tensor([value, 0.5]), LEVELS[[0, 1]]))
    weights = balance.weights("8x8", LEVELS)
    assert weights[0] == 1 and weights[1] > 1 and weights.isfinite().all()


def test_it_is_saved_to_the_last_bit(losses):
    balance, again = Balance(losses), Balance(losses)
    balance.update("8x8", losses.binned(torch.rand(64), LEVELS.repeat(8)))
    again.restore(json.loads(json.dumps(balance.state())))
    assert torch.equal(balance.weights("8x8", LEVELS), again.weights("8x8", LEVELS))
