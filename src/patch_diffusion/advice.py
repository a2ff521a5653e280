"""Advice about a data set: settings that fit it, their cost on this machine, and warnings."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from patch_diffusion.config import Config, Watch
from patch_diffusion.config_dict import option_names, to_dict
from patch_diffusion.data.files.collection import MOST_UNUSABLE, passed_over
from patch_diffusion.data.held_out import FEWEST_TO_HOLD_OUT, HELD_OUT, hold_out
from patch_diffusion.data.images import Images, refuse_one_value
from patch_diffusion.data.inspection.as_files import some_images
from patch_diffusion.data.inspection.inspect import Findings
from patch_diffusion.data.inspection.resolution import suggest_resolution
from patch_diffusion.data.latents.folder import is_latents
from patch_diffusion.data.reading.labels import ONE_IMAGE
from patch_diffusion.data.reading.survey import ONE_VALUE
from patch_diffusion.devices import choose_device, memory_of
from patch_diffusion.errors import InputError, counted
from patch_diffusion.evaluation.linear_floor import linear_floor
from patch_diffusion.files import user_path
from patch_diffusion.patches.schedule import PatchSchedule
from patch_diffusion.runs.model import build_network
from patch_diffusion.training.budget import Budget
from patch_diffusion.training.build import build_trainer, note_on_few
from patch_diffusion.training.choices.choose import choose
from patch_diffusion.training.choices.prospects import expected, minutes_of_layout
from patch_diffusion.training.choices.shapes import stride
from patch_diffusion.training.choices.size import smallest
from patch_diffusion.training.choices.suggest import suggest
from patch_diffusion.training.forecast import Forecast, forecast, shares_of
from patch_diffusion.training.hardware.memory import memory_of_weights
from patch_diffusion.training.timing import measure_speed

SIDE_ON_CPU, SIDE_ON_GPU = 64, 128
"""The side in pixels of a square whose area larger images should be reduced to, for training on a CPU and on a GPU."""

SIDES = (32, 64, 96, 128)
"""The sides of images in pixels for which times of training are compared."""

FEW_IMAGES = 5_000
"""The fewest images of a data set that Patch Diffusion was published with (arXiv 2304.12526, abstract)."""

LEAST_TO_SUGGEST = 200
"""The fewest images of a data set of which holding some out is suggested: of fewer, the 64 held out exceed a third."""

_HELD_OUT_OF_FEW = 0.1
_FLIPS_FOR = 50_000  # number of images above which flips gain little
_ENOUGH_TO_TELL = 0.1  # asymmetry by chance above which there are too few images to judge flips
_SYMMETRIC = 0.05
_BALANCED = 10  # largest acceptable ratio of the largest class to the smallest
_MOST_ALIKE = 0.5  # largest share of images that look like another in data whose images differ otherwise
_JUDGES = 64  # held-out images that judge the linear floor, as in training
_MEMORY_USED = 0.8  # fraction of the memory that training may use


@dataclass(frozen=True)
class Prospect:
    """The prospect of a budget: what it will make of the images, by the trainings that were measured.

    Args:
        operations: floating-point operations of the training.
        minutes: its duration on this machine.
        floor: the loss of the best linear denoiser of the images; None: there are too few to tell.
        losses: the lower and the higher held-out loss to expect; None: without a floor nothing is expected.
        layout: minutes of training after which the layout is learned, by the side of the images in pixels.
        is_short: True if the budget ends before that.
    """

    operations: float
    minutes: float
    floor: float | None
    losses: tuple[float, float] | None
    layout: dict[int, float]
    is_short: bool


@dataclass(frozen=True)
class Advice:
    """Advice about training on a data set, as returned by `advise`.

    Args:
        config: the options that fit the data set, including the budget.
        reasons: the reason for each option that differs from the preset, by its name.
        warnings: problems of the data set to look out for, in sentences.
        refusal: the reason why training would refuse the images; empty if it would not.
        sigma_data: standard deviation of the images in model space.
        sizes: the share of the training steps on each image or patch size, by size such as "32x32"; of the budget if
            the schedule is progressive.
        forecast: the cost of training on this machine, if steps were timed.
        memory: bytes of memory that this machine has for training, if known.
        prospect: what the budget will make of the images, if steps were timed.
    """

    config: Config
    reasons: dict[str, str]
    warnings: list[str] = field(default_factory=list)
    refusal: str = ""
    sigma_data: float | None = None
    sizes: dict[str, float] = field(default_factory=dict)
    forecast: Forecast | None = None
    memory: int | None = None
    prospect: Prospect | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the advice as a dict that JSON can store."""
        return {
            **asdict(self),
            "config": to_dict(self.config),
            "forecast": None if self.forecast is None else self.forecast.as_dict(),
        }


def advise(
    findings: Findings, base: Config, given: Collection[str] = (), *, timed: bool = True, show: bool = False
) -> Advice:
    """Suggest training options for a data set, with their cost on this machine and warnings.

    Args:
        findings: the findings of an inspection of the data set.
        base: options to start from, including the data set: a preset with the user's own options.
        given: names of the options that the user gave, which are not changed.
        timed: if true, run some training steps, to forecast how long training takes.
        show: if true, show a progress bar on a terminal.

    Raises:
        InputError: an option is invalid for any images.
    """
    reasons: dict[str, str] = {}
    num = findings.num_images
    if LEAST_TO_SUGGEST <= num < FEWEST_TO_HOLD_OUT and base.data.held_out is None and "data.held_out" not in given:
        base = replace(base, data=replace(base.data, held_out=_HELD_OUT_OF_FEW))
        reasons["data.held_out"] = (
            "by default nothing is held out of so few images; about 64 held-out ones show when samples begin to copy, "
            "and --checkpoint-best needs them"
        )
    if findings.folders and "data.classes" not in given:
        base = replace(base, data=replace(base.data, classes=True))
        reasons["data.classes"] = (
            f"there are {len(findings.folders)} sub-folders; leave the option out if they are not classes"
        )
    device = choose_device(base.engine.device)
    config = _at_a_resolution(findings, base, given, SIDE_ON_GPU if device.type == "cuda" else SIDE_ON_CPU, reasons)
    warnings = [*_of_classes(findings, config), *_of_files(findings), *_of_few(findings), *_of_flips(findings, config)]
    warnings += findings.pairs
    refusal = _refusal(findings)
    if findings.problems:
        return Advice(config, reasons, warnings=warnings, refusal=refusal)
    try:
        images = some_images(config.data, without=findings.unusable.keys(), show=show)
        refuse_one_value(images)
    except InputError as error:
        return Advice(config, reasons, warnings=warnings, refusal=str(error))
    room, foreseen = memory_of(device), None
    try:
        if timed:
            config, why = choose(images, config, given, measure=lambda config: measure_speed(images, config))
        else:  # the size is chosen in training; the levels of networks are the same in all sizes
            config, why = suggest(images, replace(config, network=smallest(config.network)), given)
        for reason in why:
            option, _, because = reason.partition(": ")
            if option.split()[0] in option_names():
                reasons[option.split()[0]] = because
        sizes = shares_of(images, PatchSchedule.of(config.patches), stride(config.network))
        if timed:
            config, foreseen = _forecast(images, config, given, room, reasons)
    except InputError as error:
        return Advice(config, reasons, warnings=warnings, refusal=str(error))
    told = [ONE_VALUE] * bool(findings.nearly_constant) + [ONE_IMAGE] * any("only 1:" in text for text in warnings)
    warnings += [note for note in images.notes if not any(words in note for words in told)]
    deviation = images.moments.deviation(config.noise.mean_data)
    if timed and foreseen is None:
        warnings.append("the network needs more memory than this machine has: choose a smaller --network.width")
    prospect = None if foreseen is None else _prospect(images, config, foreseen)
    return Advice(config, reasons, warnings, refusal, deviation, sizes, foreseen, room, prospect)


def _at_a_resolution(
    findings: Findings, config: Config, given: Collection[str], side: int, reasons: dict[str, str]
) -> Config:
    """Return the config, with a resolution to resize images to if they are large or of several sizes."""
    if "data.resolution" in given or not findings.sizes or is_latents(user_path(config.data.source)):
        return config
    found = suggest_resolution(findings.sizes, side)
    if found is None:
        return config
    height, width = found.size
    reasons["data.resolution"] = found.reason
    data = replace(config.data, resolution=height if height == width else found.size)
    if "data.fit" not in given:
        data = replace(data, fit=found.fit)
    return replace(config, data=data)


def _forecast(
    images: Images, config: Config, given: Collection[str], room: int | None, reasons: dict[str, str]
) -> tuple[Config, Forecast | None]:
    """Return the config, with a smaller batch if memory is short, and the cost forecast; None if weights do not fit."""
    most = _MEMORY_USED * (math.inf if room is None else room)
    with torch.device("meta"):
        patches = {"coords": config.patches.coords, "context": config.patches.context}
        network = build_network(config.network, images.channels, images.num_classes, **patches)
    if memory_of_weights(network, len(config.ema.lengths)) > most:
        return config, None
    # A single process is timed, and only its training steps.
    alone = replace(
        config, engine=replace(config.engine, shard=False), watch=Watch(), checkpoint_by="loss", batch_pixels=None
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(alone, images, Path(folder) / "run", show=False)
        foreseen = forecast(trainer, unit=Budget(config.steps, config.images, config.minutes).unit)
    batch = config.batch
    assert batch != "auto", "the command has chosen a number"
    while "batch" not in given and batch > 1 and foreseen.with_batch(batch).memory > most:
        batch //= 2
    if batch != config.batch:
        reasons["batch"] = f"{config.batch} would need {foreseen.memory / 2**30:,.1f} GB of memory"
    return replace(config, batch=batch), foreseen.with_batch(batch)


def _refusal(findings: Findings) -> str:
    """Return the reason why training would refuse the data set, as far as its inspection tells; empty if none."""
    if findings.problems:
        return findings.problems[0]
    if len(findings.unusable) > MOST_UNUSABLE * findings.num_read:
        return (
            f"{len(findings.unusable):,} of {findings.num_read:,} images cannot be read, and training "
            f"{passed_over(findings.num_read)}; patch-diffusion prepare leaves them out"
        )
    return ""


def _of_classes(findings: Findings, config: Config) -> list[str]:
    counts = findings.class_counts or (findings.folders if config.data.classes else {})
    found = []
    if counts and max(counts.values()) > _BALANCED * min(counts.values()):
        least = min(counts, key=counts.__getitem__)
        most = max(counts, key=counts.__getitem__)
        found.append(
            f"class {most} has {counted(counts[most], 'image')} and class {least} only {counts[least]:,}: expect poor "
            f"samples of {least}, or copies"
        )
    return found


def _of_files(findings: Findings) -> list[str]:
    found = []
    copies = sum(len(group) - 1 for group in findings.equal)
    if copies:
        are = "is an exact copy" if copies == 1 else "are exact copies"
        found.append(
            f"{counted(copies, 'image')} {are} of others and would count twice: patch-diffusion prepare leaves "
            "copies out"
        )
    in_pairs = len({name for pair in findings.near for name in pair[:2]})
    if 0 < in_pairs <= _MOST_ALIKE * findings.num_read:  # if most are alike, it is the kind of image, and no fault
        found.append(
            f"{in_pairs:,} images look like another one, see the pairs with --sheet sheet.png: remove copies; hold "
            "frames of a video out together with --data.group; other pairs do no harm"
        )
    if findings.groups:
        pattern, num = findings.groups
        found.append(
            f"the file names form {num:,} groups: if the images of a group belong together (one patient, one video), "
            f"--data.group '{pattern}' holds them out together"
        )
    if findings.nearly_constant:
        found.append(
            f"nearly empty: {counted(len(findings.nearly_constant), 'image')}; remove them, or the model learns to "
            "make empty images"
        )
    return found


def _of_few(findings: Findings) -> list[str]:
    num = findings.num_images - sum(len(group) - 1 for group in findings.equal) - len(findings.unusable)
    if num < 1 or num >= FEW_IMAGES:
        return []
    if very := note_on_few(num):
        return very
    return [
        f"{num:,} images are few, which matters in a long training: samples begin to copy the images. Then look for "
        "copies: patch-diffusion evaluate RUN --metrics memorization"
    ]


def _prospect(images: Images, config: Config, foreseen: Forecast) -> Prospect:
    """Return what the budget will make of the images, by the trainings that were measured."""
    pixels = math.prod(images.resolution)
    budget = Budget.of(config)
    minutes = budget.time or foreseen.minutes_for(steps=budget.steps, images=budget.images)
    operations = 60 * minutes * foreseen.rate
    try:
        parts = hold_out(images, config.data.held_out or HELD_OUT, config.seed)
        floor = linear_floor(*parts, noise=config.noise, most=_JUDGES).loss
    except InputError:  # too few images of one size, or too large ones
        floor = None
    sides = {round(math.sqrt(pixels)), *(side for side in SIDES if side**2 < pixels)}
    return Prospect(
        operations,
        minutes,
        floor,
        None if floor is None else expected(operations, pixels, floor),
        {side: minutes_of_layout(side**2, foreseen.rate) for side in sorted(sides)},
        minutes < minutes_of_layout(pixels, foreseen.rate),
    )


def _of_flips(findings: Findings, config: Config) -> list[str]:
    # Latents cannot be flipped as pictures can.
    told = config.data.augment.flip or config.data.augment.p or is_latents(user_path(config.data.source))
    if (
        told
        or not findings.means
        or findings.num_images >= _FLIPS_FOR
        or findings.asymmetry_by_chance >= _ENOUGH_TO_TELL
    ):
        return []
    if findings.asymmetry >= max(2 * findings.asymmetry_by_chance, _SYMMETRIC):
        return ["mirrored images look different from these: train without flips"]
    return [
        "mirrored images look like these, on average: --data.augment.flip 0.5 doubles their number; do not use it for "
        "images with writing"
    ]
