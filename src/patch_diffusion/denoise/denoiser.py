"""The denoiser, which adds the preconditioning of a noise process to any network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Annotated as Float, Annotated as Int

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patch_diffusion.data.attributes import Attribute
from patch_diffusion.data.codec import Codec, PixelCodec
from patch_diffusion.data.paired import PairedInput
from patch_diffusion.denoise.conditions import Conditions
from patch_diffusion.denoise.process import EDM, Process
from patch_diffusion.errors import InputError, option_error

Levels = Float[Tensor, "n"] | Float[Tensor, ""] | float
"""A noise level for each image, or one for all."""

NO_PLACES = "patches.context is looked up at the coordinates of the pixels: leave patches.coords on"


class Denoiser(nn.Module):
    """A denoiser: D(x; sigma, coords) = c_skip x + c_out F(cat(c_in x, coords); c_noise) estimates the clean image.

    The factors are those of a noise process (EDM, arXiv 2206.00364, table 1), around any network F. The coordinates are
    an input only, not scaled and not denoised (Patch Diffusion, arXiv 2304.12526, section 3.1). The factors are for
    data of mean 0; with a ``mean_data`` m, it is D(x) = m + c_skip (x - m) + c_out F(cat(c_in (x - m), coords)).

    With a ``context``, c + 1 more input channels hold a small copy of the whole image, sampled at the coordinates of
    the pixels and divided by sigma_data, and ones; all are zeros without a copy, as when that copy itself is denoised.

    Args:
        network: a callable ``network(x, c_noise, labels)`` that takes ``x`` (n, c + 2, h, w), or (n, c, h, w) if
            ``coords`` is false, or (n, 2 c + 3, h, w) with a ``context``, ``c_noise`` (n,), which is ln(sigma) / 4 for
            the EDM process, and integer ``labels`` (n,) or None, -1 being "no class", and returns (n, c, h, w). Its
            attributes ``image_channels``, ``num_classes``, ``label_dropout``, ``augment_channels``,
            ``attribute_channels``, ``paired_channels``, ``context`` (a bool) and ``stride`` (a divisor that every
            height and width must have) are read if it has them, and ``recompute`` (see `patch_diffusion.config.Engine`)
            is set.
        sigma_data: standard deviation of the data in model space, about ``mean_data``.
        process: noise process, `EDM`, `VE`, `VP`, `XPrediction` or `Flow`.
        coords: if true, the network is given the coordinates.
        context: the shorter side of the small copies of whole images that the network is given, see `small_shape`; None
            if it is given none. The trainer sets it.
        resolution: shape of the images it is trained on, such as (height, width); the trainer sets it.
        class_names: names of the classes, if they have any; the trainer sets them.
        columns: what the network is told of an image by name, see `Attribute`; the trainer sets it.
        inputs: the paired inputs that it is shown, see `PairedInput`; the trainer sets them.
        codec: the codec that maps model space to pixel values and back; the trainer sets it.
        sigma_min, sigma_max: the lowest and highest noise level in sampling; None uses the process' own.
        mean_data: mean of each channel of the data in model space, or one for all; None is 0. Sampling starts from it.
        levels: rising noise levels at which losses are measured; None: those of `SIGMAS`.
        few_steps: the number of steps of sampling that it is made for by consistency tuning, see `tune`; None: it is an
            ordinary denoiser.

    >>> denoiser = Denoiser(lambda x, c_noise, labels: x[:, :3], sigma_data=0.5)
    >>> denoiser(torch.zeros(2, 3, 8, 8), torch.ones(2), torch.zeros(2, 8, 8)).shape
    torch.Size([2, 3, 8, 8])
    """

    _mean_data: Tensor | None

    def __init__(
        self,
        network: Callable[..., Tensor],
        sigma_data: float = 0.5,
        *,
        process: Process | None = None,
        coords: bool = True,
        context: int | None = None,
        resolution: tuple[int, ...] | None = None,
        class_names: tuple[str, ...] = (),
        columns: tuple[Attribute, ...] = (),
        inputs: tuple[PairedInput, ...] = (),
        codec: Codec | None = None,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        mean_data: Sequence[float] | None = None,
        levels: Sequence[float] | None = None,
        few_steps: int | None = None,
    ) -> None:
        super().__init__()
        self.process: Process = process or EDM()
        sigma_min = self.process.sigma_min if sigma_min is None else sigma_min
        sigma_max = self.process.sigma_max if sigma_max is None else sigma_max
        if not sigma_data > 0:
            raise option_error("noise.sigma_data", f"is a standard deviation above 0, not {sigma_data}")
        if not 0 < sigma_min < sigma_max:
            raise option_error("noise.sigma_min", f"and sigma_max must be 0 < {sigma_min} < {sigma_max}")
        if mean_data is not None and not (mean_data and all(map(math.isfinite, mean_data))):
            raise option_error(
                "noise.mean_data", f"has a finite number for each channel, or one for all, not {list(mean_data)}"
            )
        if levels is not None and not (levels and all(low < high for low, high in pairwise((0.0, *levels, math.inf)))):
            raise option_error("noise.levels", f"are rising numbers above 0, not {list(levels)}")
        if context is not None and not coords:
            raise InputError(NO_PLACES, option="patches.coords")
        self.network = network
        self.sigma_data: float = float(sigma_data)
        self.coords = coords
        self.context = context
        self.few_steps: int | None = few_steps
        self.resolution = resolution
        self.class_names = class_names
        self.columns = columns
        self.inputs = inputs
        self.codec: Codec = codec or PixelCodec()
        self.sigma_min = sigma_min
        self.sigma_max = sigma_max
        self.mean_data: tuple[float, ...] | None = None if mean_data is None else tuple(map(float, mean_data))
        self.levels: tuple[float, ...] | None = None if levels is None else tuple(map(float, levels))
        self.carried: tuple[Mapping[str, str], ...] = ()  # the table of what was carried from another model
        centre = None if mean_data is None else torch.tensor(self.mean_data)
        self.register_buffer("_mean_data", centre, persistent=False)

    @property
    def module(self) -> nn.Module:
        """The network as a torch module; an `InputError` if it is another callable, which has no weights."""
        if not isinstance(self.network, nn.Module):
            raise InputError("to have weights, the denoiser's network must be a torch.nn.Module")
        return self.network

    @property
    def stride(self) -> int:
        """The number that every height and width of the network's input must be a multiple of."""
        return getattr(self.network, "stride", 1)

    @property
    def image_channels(self) -> int | None:
        """Number of image channels, if the network has the attribute; else None."""
        return getattr(self.network, "image_channels", None)

    @property
    def num_classes(self) -> int:
        """Number of classes that the network is conditioned on; 0 if it is unconditional."""
        return getattr(self.network, "num_classes", 0)

    @property
    def label_dropout(self) -> float:
        """Share of the labels that training replaces by "no class"; above 0, sampling without a class works, too."""
        return getattr(self.network, "label_dropout", 0.0)

    @property
    def augment_channels(self) -> int:
        """Length of the augmentation label of an image, which the network is conditioned on; 0 if it is not."""
        return getattr(self.network, "augment_channels", 0)

    @property
    def attribute_channels(self) -> int:
        """Length of the vector of attributes that the network is told of an image; 0 if it is told of none."""
        return getattr(self.network, "attribute_channels", 0)

    @property
    def paired_channels(self) -> int:
        """Number of channels by which the network is shown paired inputs; 0 if it is shown none."""
        return getattr(self.network, "paired_channels", 0)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next((parameter.device for parameter in self.parameters()), torch.device("cpu"))

    def centre(self, images: Float[Tensor, "n c *shape"]) -> Float[Tensor, "..."]:
        """Return the mean of the data as a tensor (c, 1, ...) that can be added to images such as these.

        Sampling starts from noise of the highest level about it.
        """
        mean = images.new_zeros(1) if self._mean_data is None else self._mean_data.to(images)
        return mean.view(-1, *[1] * (images.ndim - 2))

    def forward(
        self,
        noisy: Float[Tensor, "n c *shape"],
        sigma: Levels,
        coords: Float[Tensor, "..."] | Conditions,
        labels: Int[Tensor, "n"] | None = None,
    ) -> Float[Tensor, "n c *shape"]:
        """Return denoised images, given noisy images, their noise levels and their conditions.

        Args:
            noisy: clean + sigma * noise.
            sigma: noise levels, or one for all.
            coords: coordinates (axes, *shape) or (n, axes, *shape), such as (2, h, w); or all `Conditions` with labels.
            labels: classes for a class-conditional network; -1 or None is "no class".
        """
        conditions = coords if isinstance(coords, Conditions) else Conditions(coords, labels)
        num, shape, along = noisy.shape[0], tuple(noisy.shape[2:]), [1] * (noisy.ndim - 1)
        levels = torch.as_tensor(sigma, dtype=noisy.dtype)  # one number stays on the host, as a copy of it would block
        sigma = noisy.new_ones(num) * levels if levels.ndim == 0 else levels.to(noisy.device).expand(num)
        factors = self.process.preconditioning(sigma, self.sigma_data)
        c_skip, c_out, c_in = (factor.view(num, *along) for factor in factors[:3])
        centre = None if self.mean_data is None else self.centre(noisy)
        noisy = noisy if centre is None else noisy - centre
        network_input = c_in * noisy
        if self.coords:
            found = conditions.coords
            if found is None or tuple(found.shape[-len(shape) - 1 :]) != (len(shape), *shape):
                raise ValueError(
                    f"coords {None if found is None else tuple(found.shape)} do not belong to images "
                    f"{tuple(noisy.shape)}: expected {(len(shape), *shape)} or {(num, len(shape), *shape)}"
                )
            found = found.to(noisy).expand(num, *[-1] * len(along))
            network_input = torch.cat([network_input, found], dim=1)
            if self.context is not None:
                network_input = torch.cat([network_input, self._around(conditions.thumbnail, found, noisy)], dim=1)
        if self.paired_channels:
            network_input = torch.cat([network_input, self._paired(conditions, noisy)], dim=1)
        told = [conditions.labels, conditions.augment, conditions.attributes]
        while len(told) > 1 and told[-1] is None:
            told.pop()
        denoised = c_skip * noisy + c_out * self.network(network_input, factors.c_noise, *told)
        return denoised if centre is None else centre + denoised

    def _paired(self, conditions: Conditions, noisy: Tensor) -> Tensor:
        """Return paired inputs and small copies of the whole ones, stretched over the pixels; zeros if not given."""
        num, _, *shape = noisy.shape
        if conditions.inputs is None or conditions.around is None:
            return noisy.new_zeros(num, self.paired_channels, *shape)
        if tuple(conditions.inputs.shape[2:]) != tuple(shape):
            raise ValueError(f"inputs {tuple(conditions.inputs.shape)} do not belong to images {tuple(noisy.shape)}")
        mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(shape)]
        around = F.interpolate(conditions.around.to(noisy), shape, mode=mode, align_corners=True)
        return torch.cat([conditions.inputs.to(noisy), around], dim=1).expand(num, *[-1] * (noisy.ndim - 1))

    def _around(self, thumbnail: Tensor | None, coords: Tensor, noisy: Tensor) -> Tensor:
        """Return the small whole image sampled at the coordinates, and ones (all zeros if None): (n, c + 1, *shape)."""
        num, channels, *shape = noisy.shape
        if thumbnail is None:
            return noisy.new_zeros(num, channels + 1, *shape)
        thumbnail = thumbnail if self.mean_data is None else thumbnail - self.centre(thumbnail)
        shown = F.grid_sample(thumbnail.to(noisy), coords.movedim(1, -1), padding_mode="border", align_corners=True)
        return torch.cat([shown / self.sigma_data, noisy.new_ones(num, 1, *shape)], dim=1)

    def score(
        self,
        noisy: Float[Tensor, "n c *shape"],
        sigma: Levels,
        coords: Float[Tensor, "..."] | Conditions,
        labels: Int[Tensor, "n"] | None = None,
    ) -> Float[Tensor, "n c *shape"]:
        """Return the gradient of the log-density of noisy images, (D(x; sigma) - x) / sigma^2 (EDM, equation 3)."""
        sigma = torch.as_tensor(sigma, dtype=noisy.dtype, device=noisy.device).expand(len(noisy))
        denoised = self(noisy, sigma, coords, labels)
        return (denoised - noisy) / sigma.square().view(-1, *[1] * (noisy.ndim - 1))

    def loss_weight(self, sigma: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return lambda(sigma), the process' loss weight of the squared error at a noise level."""
        return self.process.loss_weight(sigma, self.sigma_data)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, without dropout, inside the with block; restore its mode afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def place(denoiser: Denoiser, device: torch.device) -> Denoiser:
    """Move a denoiser to a device, with its convolution weights in channels-last memory, like the patches."""
    return denoiser.to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
