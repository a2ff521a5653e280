"""Noise processes: how an image turns into noise, and how the network that denoises it is preconditioned.

A process is a schedule of the noise level sigma(t) and of a scale s(t): the noisy image at time t is
x_t = s(t) (clean + sigma(t) noise). All else follows (EDM, arXiv 2206.00364, appendix B.1 to B.3):

- drift f(x, t) = x s'(t) / s(t) and diffusion g(t) = s(t) sqrt(2 sigma'(t) sigma(t)) of dx = f dt + g dw;
- probability-flow ODE dx = v dt, v = f - g^2 score / 2, where score = (D(x / s; sigma) - x / s) / (s sigma^2);
- reverse SDE dx = [v - w score / 2] dt + w^(1/2) dw, of the same marginals for any w(t) (arXiv 2303.08797); the time
  reversal of the forward SDE has w = g^2.

Denoisers, losses and solvers work on the unscaled image x / s at noise level sigma, where all processes are alike: they
differ in the preconditioning of the network and the noise levels it is trained on (EDM, table 1).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated as Float, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

ProcessName = Literal["edm", "ve", "vp", "x_prediction", "flow"]


class Preconditioning(NamedTuple):
    """The four factors of the preconditioning D(x; sigma) = c_skip x + c_out F(c_in x; c_noise)."""

    c_skip: Float[Tensor, "*shape"]
    c_out: Float[Tensor, "*shape"]
    c_in: Float[Tensor, "*shape"]
    c_noise: Float[Tensor, "*shape"]


@dataclass(frozen=True)
class Process(ABC):
    """A noise process: how images turn into noise over time. Times, noise levels and scales are tensors of any shape.

    ``sigma_min`` and ``sigma_max`` are the lowest and the highest noise level in sampling, and ``schedule`` the name of
    the schedule that suits the process. ``p_mean`` and ``p_std`` are mean and deviation of ln(sigma) in training where
    it is normal.
    """

    name: ClassVar[ProcessName]
    sigma_min: ClassVar[float]
    sigma_max: ClassVar[float]
    schedule: ClassVar[str] = "karras"
    p_mean: ClassVar[float] = -1.2
    p_std: ClassVar[float] = 1.2

    @abstractmethod
    def sigma(self, time: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the noise level sigma(t) at a time."""

    @abstractmethod
    def time(self, sigma: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the time t of a noise level."""

    def scale(self, time: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the scale s(t) of the image at a time; 1 by default."""
        return torch.ones_like(time)

    def drift(self, noisy: Float[Tensor, "*shape"], time: Float[Tensor, "..."]) -> Float[Tensor, "*shape"]:
        """Return the drift f(x, t) of the forward SDE; 0 by default, which belongs to a scale of 1."""
        return torch.zeros_like(noisy)

    @abstractmethod
    def diffusion(self, time: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the diffusion coefficient g(t) of the forward SDE."""

    def velocity(
        self, noisy: Float[Tensor, "*shape"], denoised: Float[Tensor, "*shape"], time: Float[Tensor, "..."]
    ) -> Float[Tensor, "*shape"]:
        """Return v = dx/dt of the probability-flow ODE, of unscaled noisy images x / s and denoised ones."""
        scale, sigma = self.scale(time), self.sigma(time)
        score = (denoised - noisy) / (scale * sigma.square())
        return self.drift(scale * noisy, time) - self.diffusion(time).square() / 2 * score

    def denoised(
        self, noisy: Float[Tensor, "*shape"], velocity: Float[Tensor, "*shape"], time: Float[Tensor, "..."]
    ) -> Float[Tensor, "*shape"]:
        """Return the denoised images of unscaled noisy images x / s and their velocity; the inverse of `velocity`."""
        scale, sigma = self.scale(time), self.sigma(time)
        score = 2 * (self.drift(scale * noisy, time) - velocity) / self.diffusion(time).square()
        return noisy + scale * sigma.square() * score

    def reverse(
        self, noisy: Float[Tensor, "*shape"], denoised: Float[Tensor, "*shape"], time: Float[Tensor, "..."]
    ) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "..."]]:
        """Return drift and diffusion of the reverse SDE in which `euler_maruyama` steps."""
        scale, sigma, diffusion = self.scale(time), self.sigma(time), self.diffusion(time)
        score = (denoised - noisy) / (scale * sigma**2)
        return self.drift(scale * noisy, time) - diffusion**2 * score, diffusion

    @abstractmethod
    def preconditioning(self, sigma: Float[Tensor, "*shape"], sigma_data: float) -> Preconditioning:
        """Return the factors of the network's input and output at a noise level."""

    def loss_weight(self, sigma: Float[Tensor, "*shape"], sigma_data: float) -> Float[Tensor, "*shape"]:
        """Return lambda(sigma), the loss weight of the squared error at a noise level; 1 / sigma^2 by default."""
        return 1 / sigma.square()

    @abstractmethod
    def draw(self, num: int, generator: torch.Generator | None = None) -> Float[Tensor, "{num}"]:
        """Draw random noise levels for training, as published for the process, on the generator's device."""


@dataclass(frozen=True)
class EDM(Process):
    """The EDM noise process: sigma(t) = t, s(t) = 1 (arXiv 2206.00364, table 1, last column).

    It is the default process of a `Denoiser`. Training draws ln(sigma) from N(-1.2, 1.2^2); sampling goes from noise
    level 80 to 0.002.

    >>> EDM().preconditioning(torch.tensor(0.5), sigma_data=0.5).c_skip
    tensor(0.5000)
    """

    name: ClassVar[ProcessName] = "edm"
    sigma_min: ClassVar[float] = 0.002
    sigma_max: ClassVar[float] = 80.0
    p_mean: ClassVar[float] = -1.2  # of ln(sigma) in training
    p_std: ClassVar[float] = 1.2

    @override
    def sigma(self, time: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return time

    @override
    def time(self, sigma: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return sigma

    @override
    def diffusion(self, time: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return (2 * time).sqrt()

    @override
    def preconditioning(self, sigma: Float[Tensor, "*shape"], sigma_data: float) -> Preconditioning:
        total = (sigma.square() + sigma_data**2).sqrt()
        return Preconditioning(
            c_skip=(sigma_data / total).square(),
            c_out=sigma * sigma_data / total,
            c_in=1 / total,
            c_noise=sigma.log() / 4,
        )

    @override
    def loss_weight(self, sigma: Float[Tensor, "*shape"], sigma_data: float) -> Float[Tensor, "*shape"]:
        """Return the loss weight that makes all noise levels count equally at the start of training."""
        return (sigma.square() + sigma_data**2) / (sigma * sigma_data).square()

    @override
    def draw(self, num: int, generator: torch.Generator | None = None) -> Float[Tensor, "{num}"]:
        """Draw random log-normal noise levels for training, ln(sigma) ~ N(p_mean, p_std^2)."""
        return (_normal(num, generator) * self.p_std + self.p_mean).exp()


@dataclass(frozen=True)
class XPrediction(EDM):
    """The EDM process with a network that predicts the clean image, and a loss of velocity (JiT, arXiv 2511.13720).

    The paper's noisy image is t clean + (1 - t) noise, which is the unscaled image at sigma = (1 - t) / t, times t. Its
    network predicts the clean image, and its loss is the squared error of the velocity clean - noise, which is that of
    the image over (1 - t)^2; where 1 - t is below 0.05, it counts as 0.05. Training draws the logit of t from
    N(-0.8, 0.8^2). Sampling goes from noise level 80 to 0.02, about where the paper's last of 50 steps begins.

    >>> XPrediction().preconditioning(torch.tensor(0.5), sigma_data=0.5).c_skip
    tensor(0.)
    """

    name: ClassVar[ProcessName] = "x_prediction"
    sigma_min: ClassVar[float] = 0.02
    p_mean: ClassVar[float] = 0.8
    p_std: ClassVar[float] = 0.8
    least_noise: ClassVar[float] = 0.05  # lowest 1 - t that the loss is divided by

    @override
    def preconditioning(self, sigma: Float[Tensor, "*shape"], sigma_data: float) -> Preconditioning:
        """Return the factors with which the network's own output is the clean image, over its standard deviation."""
        factors = super().preconditioning(sigma, sigma_data)
        return factors._replace(c_skip=torch.zeros_like(sigma), c_out=torch.full_like(sigma, sigma_data))

    @override
    def loss_weight(self, sigma: Float[Tensor, "*shape"], sigma_data: float) -> Float[Tensor, "*shape"]:
        """Return the weight that makes the squared error of the image that of the velocity, 1 / (1 - t)^2."""
        return 1 / (sigma / (1 + sigma)).clamp(min=self.least_noise).square()


@dataclass(frozen=True)
class VE(Process):
    """The variance-exploding process, continuous SMLD: sigma(t) = sqrt(t), s(t) = 1 (EDM, table 1; arXiv 2011.13456).

    Sampling goes from noise level 100 to 0.02; training draws ln(sigma) uniformly between the same two levels.

    >>> VE().time(torch.tensor(3.0))
    tensor(9.)
    """

    name: ClassVar[ProcessName] = "ve"
    sigma_min: ClassVar[float] = 0.02
    sigma_max: ClassVar[float] = 100.0

    @override
    def sigma(self, time: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return time.sqrt()

    @override
    def time(self, sigma: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return sigma.square()

    @override
    def diffusion(self, time: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return torch.ones_like(time)

    @override
    def preconditioning(self, sigma: Float[Tensor, "*shape"], sigma_data: float) -> Preconditioning:
        one = torch.ones_like(sigma)
        return Preconditioning(c_skip=one, c_out=sigma, c_in=one, c_noise=(sigma / 2).log())

    @override
    def draw(self, num: int, generator: torch.Generator | None = None) -> Float[Tensor, "{num}"]:
        """Draw random noise levels for training, ln(sigma) uniform between that of ``sigma_min`` and ``sigma_max``."""
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** _uniform(num, generator)


@dataclass(frozen=True)
class VP(Process):
    """The variance-preserving process, continuous DDPM: s(t) = 1 / sqrt(1 + sigma(t)^2), t in [0, 1].

    sigma(t)^2 = exp(beta_d t^2 / 2 + beta_min t) - 1 (EDM, table 1; score-SDE, 2011.13456). ``sigma_max`` is sigma(1).
    Sampling goes from noise level 152.167 to 0.010486; training draws times uniformly.

    >>> VP().scale(torch.tensor(0.0)), VP().sigma(torch.tensor(1.0)).round()
    (tensor(1.), tensor(152.))
    """

    name: ClassVar[ProcessName] = "vp"
    sigma_min: ClassVar[float] = 0.010486  # sigma(1e-3)
    sigma_max: ClassVar[float] = 152.167  # sigma(1)
    beta_d: ClassVar[float] = 19.9
    beta_min: ClassVar[float] = 0.1
    num_times: ClassVar[int] = 1000  # the network is given t (num_times - 1)
    least_time: ClassVar[float] = 1e-5  # the lowest time that training draws

    @override
    def sigma(self, time: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return (self.beta_d * time.square() / 2 + self.beta_min * time).expm1().sqrt()

    @override
    def time(self, sigma: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        log = sigma.square().log1p()
        # The root of beta_d t^2 / 2 + beta_min t = log, in the form that does not cancel where sigma is small.
        return 2 * log / ((self.beta_min**2 + 2 * self.beta_d * log).sqrt() + self.beta_min)

    @override
    def scale(self, time: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return (-(self.beta_d * time.square() / 4 + self.beta_min * time / 2)).exp()

    @override
    def drift(self, noisy: Float[Tensor, "*shape"], time: Float[Tensor, "..."]) -> Float[Tensor, "*shape"]:
        return -(self.beta_min + self.beta_d * time) / 2 * noisy

    @override
    def diffusion(self, time: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return (self.beta_min + self.beta_d * time).sqrt()

    @override
    def preconditioning(self, sigma: Float[Tensor, "*shape"], sigma_data: float) -> Preconditioning:
        return Preconditioning(
            c_skip=torch.ones_like(sigma),
            c_out=-sigma,
            c_in=1 / (sigma.square() + 1).sqrt(),
            c_noise=(self.num_times - 1) * self.time(sigma),
        )

    @override
    def draw(self, num: int, generator: torch.Generator | None = None) -> Float[Tensor, "{num}"]:
        """Draw random noise levels for training, at times uniform in [1e-5, 1]."""
        return self.sigma(1 + _uniform(num, generator) * (self.least_time - 1))


@dataclass(frozen=True)
class Flow(Process):
    """The straight path of flow matching: x_t = (1 - t) clean + t noise, so s(t) = 1 - t and sigma(t) = t / (1 - t).

    It is rectified flow (arXiv 2209.03003), or the conditional optimal-transport path (arXiv 2210.02747) with images at
    t = 0. The network is given x_t and 1000 t, and learns the velocity noise - clean. Training draws logit-normal times
    (arXiv 2403.03206, section 3.1): as sigma = t / (1 - t), logit(t) = ln(sigma) ~ N(0, 1).

    Pure noise, t = 1, has an infinite noise level. Here it is 2^26, at which 1 - t is 1.5e-8: in single precision t is
    1, x_t is the noise, and solvers in double precision round by as little. The mean of the data is subtracted as for
    other processes, and sigma_data scales nothing.

    >>> Flow().preconditioning(Flow().sigma(torch.tensor(1.0)), sigma_data=0.5).c_noise
    tensor(1000.)
    """

    name: ClassVar[ProcessName] = "flow"
    least_scale: ClassVar[float] = 2.0**-26  # 1 - t of pure noise
    sigma_min: ClassVar[float] = 0.001 / 0.999  # sigma(1e-3)
    sigma_max: ClassVar[float] = 2.0**26  # sigma(1)
    schedule: ClassVar[str] = "flow"
    p_mean: ClassVar[float] = 0.0
    p_std: ClassVar[float] = 1.0
    num_times: ClassVar[int] = 1000  # the network is given t num_times

    @override
    def sigma(self, time: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return time / self.scale(time)

    @override
    def time(self, sigma: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return sigma / (1 + sigma)

    @override
    def scale(self, time: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return (1 - time).clamp(min=self.least_scale)

    @override
    def drift(self, noisy: Float[Tensor, "*shape"], time: Float[Tensor, "..."]) -> Float[Tensor, "*shape"]:
        return -noisy / self.scale(time)

    @override
    def diffusion(self, time: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return (2 * time / self.scale(time)).sqrt()

    @override
    def velocity(
        self, noisy: Float[Tensor, "*shape"], denoised: Float[Tensor, "*shape"], time: Float[Tensor, "..."]
    ) -> Float[Tensor, "*shape"]:
        return (self.scale(time) * noisy - denoised) / time

    @override
    def denoised(
        self, noisy: Float[Tensor, "*shape"], velocity: Float[Tensor, "*shape"], time: Float[Tensor, "..."]
    ) -> Float[Tensor, "*shape"]:
        return self.scale(time) * noisy - time * velocity

    @override
    def reverse(
        self, noisy: Float[Tensor, "*shape"], denoised: Float[Tensor, "*shape"], time: Float[Tensor, "..."]
    ) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "..."]]:
        """Return drift and diffusion for w = 2 t, since that of the forward SDE, 2 t / (1 - t), is infinite at t = 1.

        As score = -noise / t, they are v + noise = 2 noise - clean and (2 t)^(1/2).
        """
        return 2 * (noisy - denoised) / self.sigma(time) - denoised, (2 * time).sqrt()

    @override
    def preconditioning(self, sigma: Float[Tensor, "*shape"], sigma_data: float) -> Preconditioning:
        clean = 1 / (1 + sigma)  # 1 - t
        time = self.time(sigma)
        return Preconditioning(c_skip=clean, c_out=-time, c_in=clean, c_noise=self.num_times * time)

    @override
    def loss_weight(self, sigma: Float[Tensor, "*shape"], sigma_data: float) -> Float[Tensor, "*shape"]:
        """Return 1 / t^2, by which the loss is the squared error of the velocity."""
        return 1 / self.time(sigma).square()

    @override
    def draw(self, num: int, generator: torch.Generator | None = None) -> Float[Tensor, "{num}"]:
        """Draw random noise levels for training, ln(sigma) = logit(t) ~ N(0, 1)."""
        return (_normal(num, generator) * self.p_std + self.p_mean).exp()


PROCESSES: dict[str, Process] = {process.name: process for process in (EDM(), VE(), VP(), XPrediction(), Flow())}


def _normal(num: int, generator: torch.Generator | None) -> Tensor:
    return torch.randn(num, generator=generator, device=None if generator is None else generator.device)


def _uniform(num: int, generator: torch.Generator | None) -> Tensor:
    return torch.rand(num, generator=generator, device=None if generator is None else generator.device)
