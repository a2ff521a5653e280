"""Oracles: closed forms of Gaussians, scipy's matrix root, sums written out, and torchmetrics on the same features."""

import math
import subprocess
import sys
import warnings

import pytest
import torch

import patch_diffusion as pd
from needs import need
from patch_diffusion.evaluation.distances import FrechetTo, Gaussian, KernelDistance, Moments, gaussian_of, merged


def normal(num, size, seed=0, mean=0.0, dtype=torch.float64):
    random = torch.Generator().manual_seed(seed)
    mixing = torch.randn(size, size, generator=random, dtype=dtype) / math.sqrt(size)
    return torch.randn(num, size, generator=random, dtype=dtype) @ mixing + mean


def diagonal(mean, deviations):
    return Gaussian(
        torch.tensor(mean, dtype=torch.float64), torch.tensor(deviations, dtype=torch.float64).square().diag()
    )


def test_moments_are_those_of_all_features_whatever_the_blocks():
    features = normal(1000, 7, mean=1e6)  # a mean that would swallow a sum of squares
    whole = gaussian_of([features])
    assert whole.num == 1000
    torch.testing.assert_close(whole.mean, features.mean(dim=0))
    torch.testing.assert_close(whole.covariance, features.mT.cov(), rtol=1e-9, atol=1e-9)
    parts = [Moments() for _ in range(3)]
    for place, block in enumerate(features.split(64)):
        parts[place % 3].add(block)
    parts[0].add(features[:0])
    together = merged([*parts, Moments()])
    torch.testing.assert_close(together.covariance, whole.covariance, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(together.mean, whole.mean)
    with pytest.raises(pd.InputError, match="at least two images on either side, and here are 1"):
        gaussian_of([features[:1]])
    with pytest.raises(pd.InputError, match="and here are 0"):
        gaussian_of([])


def test_frechet_distance_of_known_gaussians():
    """Where the covariances commute it is |m1 - m2|^2 + sum (s1 - s2)^2."""
    one, other = diagonal([0.0, 1.0, 2.0], [1.0, 2.0, 0.0]), diagonal([0.0, 3.0, 2.5], [3.0, 2.0, 0.5])
    exact = 4 + 0.25 + 4 + 0 + 0.25
    assert pd.frechet_distance(one, other) == pytest.approx(exact, rel=1e-12)
    assert pd.frechet_distance(other, one) == pytest.approx(exact, rel=1e-12)
    assert pd.frechet_distance(one, one) == 0
    turn = torch.linalg.qr(normal(3, 3)).Q
    turned = [Gaussian(turn @ each.mean, turn @ each.covariance @ turn.mT) for each in (one, other)]
    assert pd.frechet_distance(*turned) == pytest.approx(exact, rel=1e-9)


def test_frechet_distance_is_that_of_scipys_matrix_root():
    linalg = need("scipy.linalg")
    one, other = gaussian_of([normal(300, 40)]), gaussian_of([normal(200, 40, seed=1, mean=0.2)])
    root = torch.from_numpy(linalg.sqrtm((one.covariance @ other.covariance).numpy()).real)
    exact = (one.mean - other.mean).square().sum() + (one.covariance + other.covariance - 2 * root).trace()
    assert pd.frechet_distance(one, other) == pytest.approx(float(exact), rel=1e-10)


def test_fewer_images_than_features():
    """The singular values of the product of both centred sets give the shared part exactly, without any covariance."""
    one, other = normal(30, 80), normal(20, 80, seed=1, mean=0.1)
    found = pd.frechet_distance(gaussian_of([one]), gaussian_of([other]))
    centred = [(each - each.mean(dim=0)) / math.sqrt(len(each) - 1) for each in (one, other)]
    shared = torch.linalg.svdvals(centred[0] @ centred[1].mT).sum()
    traces = sum(each.square().sum() for each in centred)
    exact = (one.mean(dim=0) - other.mean(dim=0)).square().sum() + traces - 2 * shared
    assert found == pytest.approx(float(exact), rel=1e-9)
    assert gaussian_of([one]).rank == 29 and Gaussian(torch.zeros(3), torch.eye(3)).rank == 3


def test_what_has_no_frechet_distance():
    distance = FrechetTo(diagonal([0.0, 0.0], [1.0, 1.0]))
    with pytest.raises(pd.InputError, match="the reference has 2 features and these images have 3"):
        distance(diagonal([0.0] * 3, [1.0] * 3))
    with pytest.raises(pd.InputError, match="not finite"):
        distance(diagonal([0.0, math.nan], [1.0, 1.0]))
    with pytest.raises(pd.InputError, match="2 x 2, not"):
        distance(Gaussian(torch.zeros(2), torch.zeros(2, 3)))


def kernel(x, y):
    return (float(x @ y) / len(x) + 1) ** 3


def test_kernel_distance_is_the_sum_written_out():
    one, other = normal(9, 5), normal(7, 5, seed=1, mean=0.5)
    among = [sum(kernel(x, y) for i, x in enumerate(s) for j, y in enumerate(s) if i != j) for s in (one, other)]
    across = sum(kernel(x, y) for x in one for y in other)
    exact = among[0] / (9 * 8) + among[1] / (7 * 6) - 2 * across / (9 * 7)
    assert pd.kernel_distance(one, other) == pytest.approx(exact, rel=1e-10)
    groups = KernelDistance([one[:4], one[4:6], one[6:]], other)
    assert groups() == pytest.approx(exact, rel=1e-10)
    chosen = torch.cat([one[:4], one[6:]])
    assert groups([0, 2]) == pytest.approx(pd.kernel_distance(chosen, other), rel=1e-10)


def test_kernel_distance_is_unbiased():
    """Of sets of one distribution its mean is 0, though each is of few."""
    found = torch.tensor([pd.kernel_distance(*normal(40, 3, seed).split(20)) for seed in range(400)])
    assert abs(found.mean()) < 3 * found.std() / 20 and found.min() < 0 < found.max()


def test_what_has_no_kernel_distance():
    with pytest.raises(pd.InputError, match="at least two images on either side, and here are 1"):
        pd.kernel_distance(normal(1, 3), normal(5, 3))
    with pytest.raises(pd.InputError, match="the reference has 1"):
        pd.kernel_distance(normal(5, 3), normal(1, 3))
    with pytest.raises(pd.InputError, match="the reference has 4 features"):
        pd.kernel_distance(normal(5, 3), normal(5, 4))


class Projection(torch.nn.Module):
    """Features of pictures for torchmetrics, and for us."""

    num_features = 24

    def __init__(self):
        super().__init__()
        self.weight = normal(3 * 8 * 8, self.num_features)

    def forward(self, images):
        return images.double().flatten(1) / 255 @ self.weight


@pytest.mark.slow
def test_both_distances_are_those_of_torchmetrics():
    fid = need("torchmetrics.image.fid")
    kid = need("torchmetrics.image.kid")
    random = torch.Generator().manual_seed(0)
    real, fake = (torch.randint(low, 256, (120, 3, 8, 8), dtype=torch.uint8, generator=random) for low in (0, 60))
    features = Projection()
    frechet = fid.FrechetInceptionDistance(features, input_img_size=(3, 8, 8)).set_dtype(torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it keeps all features
        kernels = kid.KernelInceptionDistance(features, subsets=1, subset_size=120)
    for metric in (frechet, kernels):
        metric.update(real, real=True)
        metric.update(fake, real=False)
    of_real, of_fake = features(real), features(fake)
    found = pd.frechet_distance(gaussian_of(of_real.split(50)), gaussian_of(of_fake.split(7)))
    assert found == pytest.approx(float(frechet.compute()), rel=1e-6)
    assert pd.kernel_distance(of_fake, of_real) == pytest.approx(float(kernels.compute()[0]), rel=1e-6)


STREAMING = """
import resource, torch
from patch_diffusion.evaluation.distances import Moments, frechet_distance

torch.set_num_threads(1)
groups = [Moments() for _ in range(8)]
random = torch.Generator().manual_seed(0)
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for step in range(200):
    groups[step // 25].add(torch.randn(512, 256, generator=random))
    if step == 0:
        before = peak()
print(sum(group.num for group in groups), peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is counted in kB on Linux")
def test_moments_of_many_features_take_little_memory():
    """100 MB of features: there are eight matrices of 0.5 MB in memory, and a block."""
    done = subprocess.run([sys.executable, "-c", STREAMING], check=True, capture_output=True, text=True)
    num, grown = map(int, done.stdout.split())
    assert num == 200 * 512 and grown < 20_000
