"""The trainer that a config describes: its network, denoiser and held-out images."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from os import PathLike

import torch

from patch_diffusion.config import Config
from patch_diffusion.data.attributes import width_of
from patch_diffusion.data.augment import Augment
from patch_diffusion.data.held_out import FEWEST_TO_HOLD_OUT, HELD_OUT, least_held_out
from patch_diffusion.data.images import Images, refuse_one_value, with_columns, with_inputs
from patch_diffusion.data.paired import channels_of
from patch_diffusion.denoise.carry import Carried, carry, check_kind
from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.devices import memory_of
from patch_diffusion.errors import about, option_error
from patch_diffusion.files import user_path
from patch_diffusion.interop.start import Start, open_start
from patch_diffusion.runs.folder import RunFolder
from patch_diffusion.runs.model import build_denoiser, build_network
from patch_diffusion.streams import stream_key
from patch_diffusion.training.trainer import Trainer

_VERY_FEW = 500  # images


def build_trainer(
    config: Config,
    images: Images,
    out: str | PathLike[str],
    *,
    start: Start | None = None,
    allow: Collection[str] = (),
    show: bool = True,
) -> Trainer:
    """Build the trainer that `train` fits, with random initial weights that follow from the seed, or those of a model.

    A new run with the option ``start`` gets the weights of that model, which is opened here unless it is given. A run
    that continues does not read it. Nothing is written before the trainer is fitted. A share ``data.held_out`` of the
    images is held out. See `Trainer` for the errors.
    """
    run = RunFolder(user_path(out))
    if config.data.group is not None and config.data.held_out == 0 and not run.is_run():
        raise option_error(
            "data.group",
            f"{config.data.group} says which images are held out together, and none are with "
            "data.held_out 0: leave out one of them",
        )
    images = run.as_trained(images)
    share, notes = _share_held_out(config.data.held_out, images, run)
    if not run.is_run():
        notes += note_on_few(_num(images))
    images, held_out = run.hold_out(replace(images, notes=(*images.notes, *notes)), share, config.seed)
    memory = memory_of(torch.device("cpu")) or math.inf
    torch.manual_seed(stream_key(config.seed, "weights"))
    network = build_network(
        config.network,
        images.channels,
        images.num_classes,
        augment_channels=Augment.of(config.data.augment).channels,
        attribute_channels=width_of(images.columns),
        paired_channels=channels_of(images.inputs),
        coords=config.patches.coords,
        context=config.patches.context,
        most=(memory / 4, f"the {memory / 2**30:,.1f} GB of memory here can hold"),
    )
    sigma_data = config.noise.sigma_data
    sigma_data = _sigma_data(images, run, config.noise.mean_data) if sigma_data is None else sigma_data
    denoiser = build_denoiser(config, network, sigma_data)
    if config.start is not None and not run.is_run():
        source = start or open_start(config.start)
        images = known_as(images, source.model)
        held_out = None if held_out is None else known_as(held_out, source.model)
        begin_from(source, denoiser, images)
    return Trainer(denoiser, images, config, out=out, held_out=held_out, allow=allow, show=show)


def known_as(images: Images, model: Denoiser) -> Images:
    """Return images whose conditions and paired inputs have the scales of a model, if it is told the same."""
    if {column.name for column in images.columns} == {column.name for column in model.columns}:
        images = with_columns(images, model.columns)
    same = [(each.channels, each.categories) for each in images.inputs]
    return (
        with_inputs(images, model.inputs)
        if same == [(each.channels, each.categories) for each in model.inputs]
        else images
    )


@about("start")
def begin_from(start: Start, denoiser: Denoiser, images: Images) -> None:
    """Load the weights of a model into a new one for these images, and note on it what was carried."""
    check_kind(start.model, images.codec)
    denoiser.columns, denoiser.inputs = images.columns, images.inputs
    rows = carry(start.model, denoiser, class_names=images.class_names, resolution=images.resolution)
    rows = [*start.rows, *rows]
    rows.append(Carried("optimizer", "", "not carried: its state, the averages and the counters begin anew"))
    denoiser.carried = tuple(row._asdict() for row in rows)


def note_on_few(num: int) -> list[str]:
    """Return a note for the user, as a list, if images are so few that samples will copy them."""
    images = "1 image is" if num == 1 else f"{num:,} images are"
    return [f"{images} very few: expect samples to copy them, and collect more if you can"] if num < _VERY_FEW else []


def _num(images: Images) -> int:
    """Return the number of images, without mirrored twins."""
    return sum(len(bucket) // bucket.mirrored for bucket in images.buckets)


def _sigma_data(images: Images, run: RunFolder, mean: Sequence[float] | None) -> float:
    """Return the deviation of the images about ``mean``, or their own mean; in a run that continues, that of before.

    A run of an earlier version has no digest of its images, so that this is what tells if they have changed.
    """
    facts = run.read_config()[1] if run.is_run() else None
    if facts is not None and facts.data_digest:
        return facts.sigma_data
    refuse_one_value(images)
    return images.moments.deviation(mean)


def _share_held_out(asked: float | None, images: Images, run: RunFolder) -> tuple[float, list[str]]:
    """Return the share of images to hold out: as asked, else a continued run's, else by their number; and notes on it.

    Runs of earlier versions held out nothing unless they were asked to.
    """
    if asked is not None:
        return asked, []
    if run.is_run():
        return run.read_config()[0].data.held_out or 0.0, []
    if _num(images) >= FEWEST_TO_HOLD_OUT:
        return HELD_OUT, []
    few = f"no images are held out of fewer than {FEWEST_TO_HOLD_OUT}, so the log has no validation loss"
    num = int(least_held_out(images))
    return 0.0, [f"{few}; --held-out 0.1 holds out about {num:,} of them" if num else few]
