"""Guidance as the options of sampling ask for it: its checks, and a guided denoise function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated as Float, Any

import torch
from torch import Tensor

from patch_diffusion.data.attributes import Attribute, keep_some
from patch_diffusion.denoise.conditions import Conditions
from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.denoise.threads import Shared
from patch_diffusion.errors import InputError, about, did_you_mean
from patch_diffusion.patches.shapes import Shape, patch_shape
from patch_diffusion.sampling.classes import CLASS
from patch_diffusion.sampling.guidance.crops import in_crops
from patch_diffusion.sampling.guidance.extrapolation import check_interval, extrapolate, extrapolate_each, within
from patch_diffusion.sampling.options import Sampling, View
from patch_diffusion.sampling.step import ConditionalDenoise, Denoise

GUIDES = ("class", "crops")
"""The names of guides; a guide can also be another denoiser."""


@about("guide")
def check_guidance(sampling: Sampling, model: Denoiser, view: View, sigmas: Float[Tensor, "levels"]) -> None:
    """Raise InputError if guidance does not suit the model, the images, or the noise levels of the solver."""
    guide = sampling.guide
    if sampling.guidance_interval is not None:
        check_interval(sampling.guidance_interval, sigmas)
    if isinstance(sampling.guidance, dict):
        _check_scales(sampling, model)
    if isinstance(guide, Denoiser):
        _check_weaker(model, guide, view)
    elif guide == "class":
        _check_dropped(model)
    elif guide.partition(":")[0] != "crops":
        raise InputError(f"there is no guide '{guide}'{did_you_mean(guide, GUIDES)}")
    elif model.context is not None:
        raise InputError("crops are no guide for a model with patches.context, which shows them the whole image")
    else:
        _check_crops(model, guide, view)


def guided(
    sampling: Sampling,
    model: ConditionalDenoise,
    view: View,
    conditions: Conditions,
    seeds: Sequence[int],
    sigmas: Float[Tensor, "levels"],
    columns: Sequence[Attribute],
) -> Denoise:
    """Return a function ``denoise(noisy, sigma)`` with the guidance of the options, for images of these seeds."""
    denoise, scale = view.bind(model, conditions), sampling.guidance
    if isinstance(scale, dict):
        weaker = {name: view.bind(model, _without(conditions, name, columns)) for name in scale}
        found = extrapolate_each(denoise, weaker, scale)
        return found if sampling.guidance_interval is None else within(found, denoise, *sampling.guidance_interval)
    if isinstance(sampling.guide, Denoiser):
        weaker = view.bind(sampling.called(Shared(sampling.guide)), conditions)
    elif sampling.guide == "class":
        weaker = view.bind(model, conditions.alone())
    else:
        size = _crop(sampling.guide, view)
        at_once = max(1, view.batch * view.resolution[0] * view.resolution[1] // (size[0] * size[1]))
        conditions = replace(conditions, coords=view.grid)
        weaker = in_crops(model, conditions, size=size, seeds=seeds, sigmas=sigmas, at_once=at_once)
    found = extrapolate(denoise, weaker, scale)
    return found if sampling.guidance_interval is None else within(found, denoise, *sampling.guidance_interval)


def _without(conditions: Conditions, name: str, columns: Sequence[Attribute]) -> Conditions:
    """Return conditions without the class, or without the attribute of this name."""
    names = [column.name for column in columns]
    if name not in names:
        return conditions.without("labels")
    if conditions.attributes is None:
        return conditions
    kept = torch.tensor([[each != name for each in names]])
    return replace(conditions, attributes=keep_some(conditions.attributes, columns, kept))


def _check_scales(sampling: Sampling, model: Denoiser) -> None:
    """Raise InputError if a scale of guidance is for something that the model is not told."""
    if sampling.guide != "class":
        raise InputError(
            f"a scale for each condition guides away from the model without it: leave {sampling.guide} out"
        )
    known = [column.name for column in model.columns] + [CLASS] * bool(model.num_classes)
    for name in sampling.guidance if isinstance(sampling.guidance, dict) else ():
        if name not in known:
            told = did_you_mean(name, known) if known else ": it has no classes and no conditions"
            raise InputError(f"the model knows no condition '{name}'{told}", option="guidance")


def _crop(guide: str, view: View) -> Shape:
    """Return height and width of the crops that a guide such as "crops:1/4" names."""
    return patch_shape(guide.partition(":")[2] or "1/2", view.resolution)


def _check_crops(model: Denoiser, guide: str, view: View) -> None:
    if view.tile is not None:
        raise InputError("the guide 'crops' is for whole images, not for tiles, which are crops already")
    size = _crop(guide, view)
    if size[0] % model.stride or size[1] % model.stride:
        raise InputError(
            f"crops of {size[0]}x{size[1]} cannot pass this network, which needs multiples of {model.stride}: give "
            "others, as in crops:1/2 or crops:16"
        )
    if size == view.resolution:
        raise InputError("crops as large as the image are no guide: give smaller ones, as in crops:1/2")


@about("guidance")
def _check_dropped(model: Denoiser) -> None:
    if not model.num_classes and not model.columns and not model.inputs:
        raise InputError(
            "guidance needs a class-conditional model, and this one has no classes: another guide, such as crops, does "
            "without"
        )
    if not model.label_dropout:
        what = "their class" if model.num_classes else "their conditions"
        raise InputError(
            f"guidance needs a model that has also learned images without {what}, and this one was trained with "
            "network.label_dropout 0: another guide, such as crops, does without"
        )


def _check_weaker(model: Denoiser, weaker: Denoiser, view: View) -> None:
    for name in ("image_channels", "num_classes", "attribute_channels", "paired_channels", "context"):
        own, other = getattr(model, name), getattr(weaker, name)
        if own != other:
            raise InputError(f"the guide must be a model of the same images, but its {name} is {other}, not {own}")
    if _values(model) != _values(weaker):
        raise InputError("the guide must be a model of the same images, but theirs have other values")
    seen = view.tile or view.resolution
    if seen[0] % weaker.stride or seen[1] % weaker.stride:
        raise InputError(f"the guide needs heights and widths that are multiples of {weaker.stride}, not {seen}")


def _values(model: Denoiser) -> dict[str, Any]:
    """Return what the values of a model's images mean, as a dict; an autoencoder's path and digest are left out."""
    return {name: value for name, value in model.codec.as_dict().items() if name not in ("vae", "digest")}
