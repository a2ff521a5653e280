"""The objective of consistency tuning, beside the exact consistency function of Gaussian data and its own parts."""

import math
from itertools import pairwise

import torch

import patch_diffusion as pd
from patch_diffusion.denoise.conditions import Conditions
from patch_diffusion.denoise.consistency import CLOSEST, ConsistencyObjective
from patch_diffusion.denoise.objective import Batch
from patch_diffusion.training.budget import training_flops

MEAN, DEVIATION = 0.3, 0.5
C = 0.03  # of the pseudo-Huber distance, for images of this deviation


class Power(torch.nn.Module):
    """D(x; t) = MEAN + (x - MEAN) (s^2 / (s^2 + t^2))^p: ideal denoiser for p = 1, consistency function for p = 1/2.

    The exponent p is interpolated between some noise levels, and begins at 1.
    """

    image_channels = 1

    def __init__(self):
        super().__init__()
        self.levels = torch.tensor([0.005, 0.005**0.5 * 80**0.5, 80.0]).log() / 4
        self.more = torch.nn.Parameter(torch.zeros(3))

    def forward(self, x, c_noise, labels=None):
        apart = (c_noise[:, None].clamp(*self.levels[[0, -1]]) - self.levels).abs() / (self.levels[1] - self.levels[0])
        power = 1 + (1 - apart).relu() @ self.more
        sigma, variance = (4 * c_noise).exp(), DEVIATION**2
        ideal = variance / (variance + sigma**2)
        # The inverse of the preconditioning, so that D is what is said above.
        return ((ideal**power - ideal) * (variance + sigma**2) / (sigma * DEVIATION))[:, None, None, None] * x


def batch_of(num, *, channels=1, side=2):
    sigma = (torch.randn(num) * 2 - 1.1).exp()
    clean, noise = (torch.randn(num, channels, side, side) for _ in range(2))
    return Batch(MEAN + DEVIATION * clean, sigma, noise, Conditions())


def network(dropout=0.0):
    torch.manual_seed(0)
    unet = pd.UNet(1, 8, (1,), 1, coords=False, dropout=dropout)
    with torch.no_grad():  # the last layer begins with zeros
        for parameter in unet.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return pd.Denoiser(unet, DEVIATION, coords=False, few_steps=2).train()


def test_it_ends_at_the_exact_consistency_function_of_gaussian_data():
    torch.manual_seed(0)
    denoiser = pd.Denoiser(Power(), DEVIATION, coords=False, mean_data=[MEAN])
    objective, steps = ConsistencyObjective(denoiser), 400
    optimizer = torch.optim.Adam(denoiser.parameters())
    for step in range(steps):
        objective.set_spent(1.25 * step / steps)
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / steps)
        optimizer.zero_grad()
        objective(batch_of(2048)).mean().backward()
        optimizer.step()
    scores = torch.linspace(-2, 2, 5)[:, None, None, None]
    for level in (0.1, 0.5, 2.0, 80.0):
        whole = math.sqrt(DEVIATION**2 + level**2)
        with torch.no_grad():
            found = denoiser(MEAN + whole * scores, level, Conditions())
        torch.testing.assert_close(found, MEAN + DEVIATION * scores, atol=1e-2, rtol=0)


def test_the_levels_come_together_as_the_budget_is_spent():
    objective, sigma = ConsistencyObjective(network()), torch.tensor([0.01, 0.5, 2.0, 80.0])
    ratios = []
    for spent in (0.0, 0.25, 0.5, 1.0, 1.2):
        objective.set_spent(spent)
        ratios.append(objective.lower(sigma) / sigma)
    assert (ratios[0] == 0).all()  # r is 0: denoising
    assert all((after >= before).all() for before, after in pairwise(ratios))
    more = 1 + 8 * torch.sigmoid(-sigma)
    torch.testing.assert_close(ratios[3], 1 - CLOSEST * more)
    torch.testing.assert_close(ratios[2], (1 - CLOSEST**0.5 * more).clamp(min=0))
    assert torch.equal(ratios[4], ratios[3])
    wider = ConsistencyObjective(pd.Denoiser(lambda x, c_noise, labels: x, 2 * DEVIATION))
    wider.set_spent(1.0)
    torch.testing.assert_close(wider.lower(2 * sigma), 2 * sigma * ratios[3])


def test_it_begins_with_denoising():
    denoiser, batch = network(), batch_of(6)
    loss = ConsistencyObjective(denoiser)(batch)
    noisy = batch.clean + batch.sigma[:, None, None, None] * batch.noise
    square = (denoiser(noisy, batch.sigma, Conditions()) - batch.clean).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(loss, denoiser.loss_weight(batch.sigma).sqrt() * ((square + C**2).sqrt() - C))


def test_only_the_noisier_side_has_a_gradient():
    denoiser, batch = network(), batch_of(6)
    objective = ConsistencyObjective(denoiser)
    objective.set_spent(0.6)
    objective(batch).sum().backward()
    found = [parameter.grad.clone() for parameter in denoiser.parameters()]
    lower = objective.lower(batch.sigma)
    assert (lower > 0).any()
    noisy, less = (batch.clean + level[:, None, None, None] * batch.noise for level in (batch.sigma, lower))
    levels = torch.where(lower > 0, lower, 1.0)
    target = torch.where(lower[:, None, None, None] > 0, denoiser(less, levels, Conditions()), batch.clean)
    weight = denoiser.loss_weight(batch.sigma).sqrt()

    def gradients(target):
        square = (denoiser(noisy, batch.sigma, Conditions()) - target).square().mean(dim=(1, 2, 3))
        return torch.autograd.grad((weight * (square + C**2).sqrt()).sum(), list(denoiser.parameters()))

    both = gradients(target)
    for one, other in zip(found, gradients(target.detach()), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)
    assert any(not torch.allclose(one, other, atol=1e-3) for one, other in zip(found, both, strict=True))


def test_both_sides_have_the_same_dropout():
    denoiser, batch = network(dropout=0.5), batch_of(6)
    objective = ConsistencyObjective(denoiser)
    objective.nearness.zero_()  # both sides are at the same level, so that only other dropout could tell them apart
    assert (objective(batch) == 0).all()
    assert not torch.equal(*(denoiser(batch.clean, batch.sigma, Conditions()) for _ in range(2)))
    torch.manual_seed(1)
    objective(batch)
    after = torch.rand(1)
    torch.manual_seed(1)
    denoiser(batch.clean, batch.sigma, Conditions())
    assert torch.equal(torch.rand(1), after)


def test_the_second_side_is_counted():
    model = pd.Denoiser(pd.UNet(1, 8, (1,), 1), 0.5)
    passes = ConsistencyObjective.passes
    assert passes == 4 and 3 * training_flops(model, 1, (8, 8), passes=passes) == 4 * training_flops(model, 1, (8, 8))
