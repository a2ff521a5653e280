"""A diffusers pipeline for an exported model: the images that ``patch-diffusion sample`` makes of a seed and class."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import safetensors.torch  # noqa: F401  # diffusers 0.32 uses it and relies on others to import it
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from PIL import Image
from torch import Tensor

from patch_diffusion.data.attributes import Attribute, vectors_of, wanted_of
from patch_diffusion.data.codec import PixelCodec, check_finite
from patch_diffusion.denoise.conditions import Conditions
from patch_diffusion.errors import InputError, checked_seeds, did_you_mean, finite_number, whole_number
from patch_diffusion.patches.coords import coordinate_grid, extended_grid
from patch_diffusion.patches.shapes import no_multiples, patch_shape
from patch_diffusion.sampling.classes import class_place
from patch_diffusion.sampling.guidance.crops import in_crops
from patch_diffusion.sampling.guidance.extrapolation import check_interval, extrapolate, within
from patch_diffusion.sampling.solvers import ONLY_NOISE, TOO_FEW
from patch_diffusion.sampling.step import ConditionalDenoise, Denoise
from patch_diffusion.sampling.tiles import checked_overlap, covering, in_tiles, smooth_window
from patch_diffusion.streams import TORCH_SEEDS, generator as generator_of
from patch_diffusion.transfer import to_device

PICTURES = (1, 3, 4)  # channels that Pillow shows
OUTPUTS = ("pil", "np", "pt", "pixels", "latent")
COORDS = ("stretch", "extend", "repeat")
GUIDES = ("class", "crops")
TILES_AT_ONCE = 64


class PatchDiffusionPipeline(DiffusionPipeline):
    """A pipeline that samples whole images from a model that was trained on patches.

    Args:
        network: maps scaled noisy images with their coordinates to the raw output of the denoiser.
        scheduler: preconditioning, noise levels and solver; or one of diffusers' EDM schedulers, or for a model of
            flow matching its FlowMatchEulerDiscreteScheduler.
        vae: the decoder of a model of latents; None if it was not exported.
        height, width: the size of the images, or latents, of the training.
        image_channels: the channels of these images or latents.
        stride: every height and width must be a multiple of it.
        coords: whether the network is given the coordinates of its pixels.
        num_classes: the number of classes of the conditioning; 0 for none.
        label_dropout: the share of labels dropped in training; guidance needs it above 0.
        no_class: the label that stands for "no class".
        timestep_scale: the factor from c_noise to the network's timestep.
        id2label: names of the classes by number, if they have any.
        attributes: what the model is told of an image by name: see `Attribute`.
        codec: the pixel values that are -1 and 1 in model space; for latents, mean and scale of each channel.
        process: "edm", "ve", "vp", "x_prediction" or "flow": how the network's inputs and outputs are scaled.
        mean_data: mean of each channel in model space, or one for all, about which it denoises; None: 0.
    """

    model_cpu_offload_seq = "network->vae"
    _optional_components = ["vae"]  # noqa: RUF012  # diffusers reads a list

    def __init__(
        self,
        network: torch.nn.Module,
        scheduler: Any,
        vae: Any = None,
        height: int = 64,
        width: int = 64,
        image_channels: int = 3,
        stride: int = 1,
        coords: bool = True,
        num_classes: int = 0,
        label_dropout: float = 0.0,
        no_class: int = -1,
        timestep_scale: float = 1.0,
        id2label: Mapping[str, str] | None = None,
        codec: Mapping[str, Any] | None = None,
        process: str = "edm",
        mean_data: Sequence[float] | None = None,
        attributes: Sequence[Mapping[str, Any]] = (),
        steps: int = 18,
    ) -> None:
        super().__init__()
        self.register_modules(network=network, scheduler=scheduler, vae=vae)
        self.register_to_config(
            height=height,
            width=width,
            image_channels=image_channels,
            stride=stride,
            coords=coords,
            num_classes=num_classes,
            label_dropout=label_dropout,
            no_class=no_class,
            timestep_scale=timestep_scale,
            id2label=dict(id2label or {}),
            codec=dict(codec or PixelCodec().as_dict()),
            process=process,
            mean_data=list(mean_data or [0.0]),
            attributes=[dict(each) for each in attributes],
            steps=steps,
        )

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        class_labels: int | str | Sequence[int | str] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float = 1.0,
        seeds: int | Sequence[int] | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        height: int | None = None,
        width: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        guidance_interval: tuple[float, float] | None = None,
        coords: str | None = None,
        guide: str = "class",
        tile: int | tuple[int, int] | None = None,
        overlap: int | None = None,
        conditions: Mapping[str, Any] | None = None,
        **options: str | float | None,
    ) -> Any:
        """Sample images, all in one batch, which must fit in memory.

        Args:
            batch_size: the number of images; if there are seeds, their number counts instead.
            class_labels: a class for all images, or one per image, by name, or by its place from 0 on; so 3 is the
                class that is named 3, if there is one. None: seed k, or image k if there are no seeds, gets class k mod
                classes.
            num_inference_steps: the number of solver steps; None: 18, or those that the model is tuned for.
            guidance_scale: the scale of guidance away from what the ``guide`` makes; 1 is none.
            seeds: a seed gives the picture that ``patch-diffusion sample`` makes of it, in any batch, also with a
                solver that adds noise.
            generator: one generator for all images, or one for each, to draw noise from if there are no seeds.
            height, width: the size of the images, or latents; None: that of the training.
            output_type: "pil", "np" (n, h, w, c) or "pt" (n, c, h, w) in [0, 1], "pixels" (n, c, h, w) as in the
                training data, or "latent": the values in model space.
            return_dict: whether to return an ``ImagePipelineOutput``; else a tuple.
            guidance_interval: noise levels (low, high] with guidance; None: all.
            coords: coordinates of an image of another size: "stretch", as those of the training images, "extend",
                beyond them, or "repeat", for tiles, each as an image of its own. None: stretch, or repeat for tiles of
                larger images.
            guide: "class", the model without the class, or "crops", the model on crops, also as in "crops:1/4".
            tile: side, or height and width, of overlapping tiles for images that are too large for the memory.
            overlap: pixels that tiles overlap by; None: a quarter of their side.
            conditions: values by the names of the model's conditions, each for all images or a list of one for each.
            options: options of the scheduler for this call: solver, schedule, sigma_min, sigma_max, rho, shift, churn,
                churn_min, churn_max, churn_noise, eta; None: those of its config.

        Raises:
            InputError: a setting does not suit the model, or some images are not finite.
        """
        config: Any = self.config
        if output_type not in OUTPUTS:
            raise InputError(f"there is no output_type '{output_type}'{did_you_mean(output_type, OUTPUTS)}")
        shape = (
            whole_number("height", config.height if height is None else height),
            whole_number("width", config.width if width is None else width),
        )
        steps = config.steps if num_inference_steps is None else num_inference_steps
        num_inference_steps = whole_number("num_inference_steps", steps)
        guidance_scale = finite_number("guidance_scale", guidance_scale)
        tile = None if tile is None else _pair(tile)
        seen = tile or shape
        if min(*seen, *shape) < 1 or seen[0] % config.stride or seen[1] % config.stride:
            raise InputError(no_multiples(seen if min(shape) > 0 else shape, config.stride))
        overlap = checked_overlap(shape, tile, None if overlap is None else whole_number("overlap", overlap))
        if guidance_scale == 1 and (guidance_interval is not None or guide != "class"):
            raise InputError("guide and guidance_interval are for a guidance_scale other than 1, which is none")
        columns = [Attribute(**_tuples(each)) for each in config.attributes]
        if guidance_scale != 1 and guide == "class" and not ((config.num_classes or columns) and config.label_dropout):
            raise InputError("guidance needs a model of classes that was also trained without them, which this is not")
        if guide.partition(":")[0] not in GUIDES:
            raise InputError(f"there is no guide '{guide}' in a pipeline{did_you_mean(guide, GUIDES)}")
        own = (config.height, config.width)
        is_larger = shape[0] > own[0] or shape[1] > own[1]
        coords = coords or ("repeat" if tile is not None and is_larger else "stretch")
        if coords not in COORDS:
            raise InputError(f"coords cannot be '{coords}'{did_you_mean(coords, COORDS)}")
        if coords == "repeat" and tile is None:
            raise InputError("coords 'repeat' is for tiles: give tile, too")
        scheduler = self._scheduler(options)
        if hasattr(scheduler, "solve") and "heun" in scheduler.config.solver and 1 < num_inference_steps < TOO_FEW:
            warnings.warn(ONLY_NOISE.format(scheduler.config.solver, num_inference_steps), stacklevel=3)
        if guidance_interval is not None:
            levels = scheduler.sigmas(num_inference_steps) if hasattr(scheduler, "solve") else None
            check_interval(guidance_interval, levels)
        interval = guidance_interval or (-1.0, float("inf"))
        chosen = None if seeds is None else checked_seeds(seeds if isinstance(seeds, Iterable) else [seeds])
        num = whole_number("batch_size", batch_size) if chosen is None else len(chosen)
        if num < 1:
            raise InputError("there is at least 1 image to make: give a batch_size or seeds")
        labels = self._labels(class_labels, chosen or range(num))
        noise = self._noise((config.image_channels, *shape), num, chosen, generator)
        device = self._execution_device
        corner = ((own[0] - shape[0]) / 2, (own[1] - shape[1]) / 2)
        grid = extended_grid(shape, own, corner)
        if coords != "extend":
            grid = coordinate_grid(*(tile if coords == "repeat" and tile else shape))
        wanted, notes = wanted_of(columns, conditions or {}, num)
        for note in notes:
            warnings.warn(note, stacklevel=3)
        told = to_device(vectors_of(columns, list(islice(wanted, num))), device) if conditions else None
        known = Conditions(grid.to(device), labels, attributes=told)
        progress: Any = self.progress_bar
        with progress(total=num_inference_steps) as bar:
            if hasattr(scheduler, "solve"):
                denoise = bound = self._bound(scheduler, known, shape, tile, overlap)
                if guidance_scale != 1:
                    if guide == "class":
                        weaker = self._bound(scheduler, _without(known), shape, tile, overlap)
                    else:
                        levels = scheduler.sigmas(num_inference_steps)
                        weaker = self._crops(scheduler, known, guide, shape, tile, chosen or range(num), levels)
                    denoise = within(extrapolate(bound, weaker, guidance_scale), bound, *interval)
                start = noise(None)
                images = scheduler.solve(
                    denoise, noise, start, num_inference_steps, lambda _: bar.update(), self._centre(start)
                )
            elif tile is not None or guide != "class":
                raise InputError(f"tiles and crops take the scheduler of the folder, not a {type(scheduler).__name__}")
            else:
                images = self._by_steps(
                    scheduler, known, guidance_scale, interval, noise(None), num_inference_steps, bar
                )
        images = self._images(images, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _scheduler(self, options: Mapping[str, Any]) -> Any:
        """Return a copy of the scheduler with the given options changed; the scheduler itself if none is given."""
        given = {name: value for name, value in options.items() if value is not None}
        for name in given:
            if name not in self.scheduler.config:
                raise InputError(f"the scheduler, {type(self.scheduler).__name__}, has no option {name}: leave it out")
            if not isinstance(given[name], str):
                given[name] = finite_number(name, given[name])
        return type(self.scheduler).from_config(self.scheduler.config, **given) if given else self.scheduler

    def _output(self, scaled: Tensor, c_noise: Tensor, conditions: Conditions) -> Tensor:
        """Run the network F on c_in x at c_noise, under conditions."""
        config: Any = self.config
        labels = conditions.labels
        if labels is None and config.num_classes:
            labels = torch.full((len(scaled),), config.no_class, device=scaled.device)
        if config.coords and conditions.coords is not None:
            scaled = torch.cat([scaled, conditions.coords.expand(len(scaled), -1, -1, -1)], dim=1)
        times = config.timestep_scale * c_noise
        more = {} if conditions.attributes is None else {"attributes": conditions.attributes}
        found = self.network(scaled.to(self.network.dtype), times, class_labels=labels, return_dict=False, **more)
        return found[0].float()

    def _centre(self, images: Tensor) -> Tensor:
        """Return the mean of the data as a tensor (c, 1, 1) that can be added to images."""
        config: Any = self.config
        return images.new_tensor(config.mean_data)[:, None, None]

    def _model(self, scheduler: Any) -> ConditionalDenoise:
        """Return the denoiser D(x; sigma) = m + c_skip (x - m) + c_out F(c_in (x - m), c_noise), m being the mean."""

        centre = self._centre(torch.zeros(1, device=self._execution_device))

        def denoise(noisy: Tensor, sigma: Tensor, conditions: Conditions) -> Tensor:
            # A number of the host is an argument of the kernel, and not copied.
            factors = scheduler.preconditioning(noisy.new_ones(len(noisy)) * sigma.to(noisy.dtype))
            c_skip, c_out, c_in = (factor[:, None, None, None] for factor in factors[:3])
            noisy = noisy - centre
            return centre + (c_skip * noisy + c_out * self._output(c_in * noisy, factors.c_noise, conditions))

        return denoise

    def _bound(
        self, scheduler: Any, conditions: Conditions, shape: Sequence[int], tile: Sequence[int] | None, overlap: int
    ) -> Denoise:
        """Return ``denoise(noisy, sigma)`` under conditions, of whole images or in tiles; it keeps the dtype."""
        model = self._model(scheduler)
        if tile is not None:
            places = covering(shape, tile, overlap)
            return in_tiles(model, conditions, places, smooth_window(tile, overlap), TILES_AT_ONCE)
        return lambda noisy, sigma: model(noisy.float(), sigma, conditions).to(noisy)

    def _crops(
        self,
        scheduler: Any,
        conditions: Conditions,
        guide: str,
        shape: tuple[int, int],
        tile: Sequence[int] | None,
        seeds: Sequence[int],
        sigmas: Tensor,
    ) -> Denoise:
        """Return ``denoise(noisy, sigma)`` by the model on crops, such as "crops:1/4" names."""
        config: Any = self.config
        size = patch_shape(guide.partition(":")[2] or "1/2", shape)
        if tile is not None or size == shape or size[0] % config.stride or size[1] % config.stride:
            raise InputError(
                f"crops of {size[0]}x{size[1]} are no guide here: give whole images, no tiles, and crops smaller than "
                f"these, in multiples of {config.stride}"
            )
        at_once = max(1, TILES_AT_ONCE * shape[0] * shape[1] // (size[0] * size[1]))
        return in_crops(self._model(scheduler), conditions, size=size, seeds=seeds, sigmas=sigmas, at_once=at_once)

    def _by_steps(
        self, scheduler: Any, told: Conditions, guidance: float, interval: Any, start: Tensor, steps: int, bar: Any
    ) -> Tensor:
        """Sample by a scheduler of diffusers: one for EDM, with its preconditioning, or that of flow matching.

        In the latter "sigma" is the time t, and the noisy images (1 - t) x + t noise are the network's input.
        """
        config: Any = self.config
        flows = type(scheduler).__name__ == "FlowMatchEulerDiscreteScheduler"
        if not flows and not hasattr(scheduler, "precondition_noise"):
            raise InputError(
                f"a {type(scheduler).__name__} cannot make images of this model: take the scheduler of its folder "
                "or one of diffusers' EDM schedulers"
            )
        if config.process != (process := "flow" if flows else "edm"):
            raise InputError(
                f"an {type(scheduler).__name__} scales inputs and outputs as the process '{process}', and this model "
                f"is of '{config.process}': take the scheduler of its folder"
            )
        scheduler.set_timesteps(steps, device=start.device)
        noisy = (start * scheduler.sigmas[0]).float()
        low, high = interval
        for time, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
            scaled = noisy if flows else scheduler.scale_model_input(noisy, time)
            times = time.to(scaled).expand(len(scaled))
            sigma = sigma / (1 - sigma) if flows else sigma
            output = self._output(scaled, times, told)
            if guidance != 1 and low < sigma <= high:
                output = torch.lerp(self._output(scaled, times, _without(told)), output, guidance)
            noisy = scheduler.step(output, time, noisy).prev_sample
            bar.update()
        return noisy + self._centre(noisy)  # such a scheduler's preconditioning knows of no mean

    def _labels(self, given: Any, seeds: Sequence[int]) -> Tensor | None:
        """Return the place of a class for each image (n,), from names or places; None for a model without classes."""
        config: Any = self.config
        if not config.num_classes:
            if given is not None:
                raise InputError("this model was trained without classes, so none can be asked for")
            return None
        if given is None:
            return torch.tensor([seed % config.num_classes for seed in seeds], device=self._execution_device)
        given = list(given) if isinstance(given, Iterable) and not isinstance(given, str) else [given] * len(seeds)
        labels = [label if isinstance(label, str) else str(whole_number("a class", label)) for label in given]
        if len(labels) != len(seeds):
            raise InputError(f"{len(seeds)} images need as many class_labels, not {len(labels)}")
        names = [config.id2label[str(place)] for place in range(len(config.id2label))]
        found = {label: class_place(label, names, config.num_classes) for label in labels}
        for note in filter(None, (note for _, note in found.values())):
            warnings.warn(note, stacklevel=3)
        return torch.tensor([found[label][0] for label in labels], device=self._execution_device)

    def _noise(self, shape: tuple[int, ...], num: int, seeds: Sequence[int] | None, given: Any) -> Any:
        """Return a function that draws normal numbers (n, c, h, w) for a step by its index, for the start if None."""
        device = self._execution_device
        wide = torch.float32 if device.type == "mps" else torch.float64
        if seeds is not None and given is not None:
            raise InputError("seeds stand in the place of a generator: leave one of them out")
        own = list(given) if isinstance(given, list | tuple) else [given] * num
        if len(own) != num:
            raise InputError(f"{num} images need as many generators, not {len(own)}")

        def noise(index: int | None) -> Tensor:
            each = own
            if seeds is not None:
                each = [
                    torch.Generator().manual_seed(seed)
                    if index is None and seed < TORCH_SEEDS
                    else generator_of(seed, "sampling", *([] if index is None else [index]))
                    for seed in seeds
                ]
            drawn = [
                torch.randn(shape, generator=one, device=None if one is None else one.device, dtype=torch.float64)
                for one in each
            ]
            return to_device(torch.stack(drawn).to(wide), device)

        return noise

    def _images(self, images: Tensor, kind: str) -> Any:
        """Convert images (n, c, h, w) from model space to an output type, such as "pil" or "np"."""
        config: Any = self.config
        check_finite(images)
        if kind == "latent":
            return images
        facts = dict(config.codec)
        if facts.pop("kind", "pixels") == "latents":
            mean, scale = (images.new_tensor(facts[name])[:, None, None] for name in ("mean", "scale"))
            latents = (images * scale + mean).float()
            if self.vae is None:
                if kind == "pixels":
                    return latents
                raise InputError(
                    "this model makes latents, and no VAE was carried: take output_type 'pixels' or 'latent'"
                )
            decoded = [self.vae.decode(each[None].to(self.vae.dtype)).sample.float() for each in latents]
            images, facts = torch.cat(decoded), PixelCodec().as_dict()
            check_finite(images)
        if kind in ("np", "pt"):
            shares = ((images + 1) / 2).clamp(0, 1).float()
            return shares if kind == "pt" else shares.permute(0, 2, 3, 1).cpu().numpy()
        pixels = PixelCodec(**facts).decode(images)
        if kind == "pixels":
            return pixels
        if pixels.dtype != torch.uint8 or pixels.shape[1] not in PICTURES:
            raise InputError(
                f"images of {pixels.shape[1]} channels of {facts['dtype']} are no pictures: take output_type 'pixels'"
            )
        arrays = pixels.permute(0, 2, 3, 1).cpu().numpy()
        return [Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array) for array in arrays]


def _without(conditions: Conditions) -> Conditions:
    return conditions.without("labels").without("attributes")


def _tuples(attribute: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in attribute.items()}


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    """Return the height and width of a size that may be given as one side."""
    height, width = size if isinstance(size, Sequence) else (size, size)
    return whole_number("tile", height), whole_number("tile", width)


# Older versions of diffusers read the types in the signature, and fail on postponed annotations, as in this file.
PatchDiffusionPipeline.__init__.__annotations__ = {
    "network": torch.nn.Module,
    **dict.fromkeys(("scheduler", "vae"), object),
    **dict.fromkeys(("height", "width", "image_channels", "stride", "num_classes", "no_class", "steps"), int),
    **dict.fromkeys(("label_dropout", "timestep_scale"), float),
    "coords": bool,
    **dict.fromkeys(("id2label", "codec"), dict),
    "process": str,
    **dict.fromkeys(("mean_data", "attributes"), list),
}
