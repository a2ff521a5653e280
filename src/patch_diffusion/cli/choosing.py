"""Helpers of the commands that sample: parsing of a class or guide that is given as text, and writing of samples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import patch_diffusion
from patch_diffusion.cli.making import Making
from patch_diffusion.cli.say import say
from patch_diffusion.errors import InputError, counted
from patch_diffusion.runs.paths import check_model
from patch_diffusion.sampling import guides

if TYPE_CHECKING:
    from patch_diffusion.denoise.denoiser import Denoiser


def class_number(text: str | None, model: Denoiser) -> int | None:
    """Return the place of a model's class given as text, by name or place; None for None."""
    from patch_diffusion.sampling.classes import class_place

    if text is None:
        return None
    place, note = class_place(text, model.class_names, model.num_classes)
    if note:
        say(note, aside=True)
    return place


def open_guide(text: str, run: Path, *, device: str) -> str | Denoiser:
    """Parse ``--guide``: return a guide's name, see `guides.guide_of`, or load the weaker model that the text names.

    Args:
        text: the word after ``--guide``.
        run: the run folder, or one of its checkpoints.
        device: the device to load the model to.

    Raises:
        InputError: there is no model or guide of that name.
    """

    def weaker(step: int | None, length: float | None) -> Denoiser:
        folder = run.parent.parent if step is not None and run.parent.name == "checkpoints" else run
        return patch_diffusion.load(folder, checkpoint=step, ema_length=length, device=device)

    if _is_folder(text):
        return patch_diffusion.load(text, device=device)
    return guides.guide_of(text, weaker)


def check_guide(text: str) -> None:
    """Raise an `InputError` if there is no guide of that name, or no run in the folder, before a model is loaded."""
    if _is_folder(text):
        check_model(Path(text))
    else:
        guides.parse_guide(text)


def _is_folder(guide: str) -> bool:
    return guide.partition(":")[0] not in guides.KINDS and Path(guide).is_dir()


def check_places(
    out: Path, seeds: Sequence[int], inputs: Iterable[Path | None], *, grid: Path | None, mean: bool = False
) -> None:
    """Raise InputError if a picture, their mean or the grid would replace an input, or the grid one of the pictures.

    Args:
        out: the folder of the pictures.
        seeds: the seeds of the pictures, by which they are named.
        inputs: the files, and folders of files, that the command reads.
        grid: the path of the grid; None: none is written.
        mean: True if the mean is written.
    """
    from patch_diffusion.files import check_apart
    from patch_diffusion.sampling.folder import MEAN, written

    if grid is not None:
        own = {f"{seed:06d}" for seed in seeds} | ({MEAN} if mean else set())
        if grid.resolve().parent == out.resolve() and grid.stem in own:
            raise InputError(f"{grid} is the name of one of the pictures in {out}: choose another for the grid")
    check_apart([*written(out, set(seeds), mean=mean), *([] if grid is None else [grid])], inputs)


def read_from(source: Path) -> list[Path]:
    """Return what a command reads of a run, given by its folder or a checkpoint: its files and data; or the source."""
    from patch_diffusion.runs.folder import RunFolder

    run = RunFolder(source.parent.parent if source.parent.name == "checkpoints" else source)
    if not run.is_run():
        return [source]
    data = run.read_config()[0].data.source
    return [run.config_file, run.model_file, run.log_file, *([Path(data)] if data and Path(data).exists() else [])]


def pictures_in(num: int, out: Path) -> str:
    """Return words for the pictures that a command has written, such as "1 picture in out"."""
    return f"{counted(num, 'picture')} in {out}"


def write_shown(samples: Iterable[Any], out: Path, making: Making, **given: Any) -> dict[str, Any]:
    """Write samples by `write_samples`, show the progress, and return the command's result: their number and paths."""
    written = patch_diffusion.write_samples(making.each(samples), out, **given)
    return {"samples": written, "out": str(out), "grid": None if given["grid"] is None else str(given["grid"])}
