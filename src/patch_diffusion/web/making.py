"""The sampling and editing jobs of the web page: each step is reported as it is taken, and results are zipped."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import patch_diffusion
from patch_diffusion.errors import InputError
from patch_diffusion.files import encoded, write_text
from patch_diffusion.runs.folder import RunFolder, step_in
from patch_diffusion.sampling.editing.edit import usual_covariance
from patch_diffusion.sampling.folder import digest_of
from patch_diffusion.sampling.generate import Sample
from patch_diffusion.sampling.guides import guide_of, named
from patch_diffusion.sampling.options import Sampling, pair
from patch_diffusion.sampling.pictures import MODES, to_image, visible
from patch_diffusion.web.commands import edit_command, sample_command, source_of
from patch_diffusion.web.jobs import Job
from patch_diffusion.web.limits import at_once
from patch_diffusion.web.models import Models
from patch_diffusion.web.requests import EditRequest, ModelChoice, Request, SampleRequest
from patch_diffusion.web.uploads import pixels_of, png

if TYPE_CHECKING:
    from patch_diffusion.denoise.denoiser import Denoiser
    from patch_diffusion.sampling.step import Step

ARCHIVE = "pictures.zip"
_SHEETS = "steps"
_STEPS_OF_EDITS = 32
_LARGEST_TILE = 256  # longest side of a picture in the preview sheet of a step
_LARGE_SHEET = 400_000  # a preview sheet with more pixels is saved as a JPEG


def generate(wanted: SampleRequest, folders: list[RunFolder], models: Models, job: Job) -> None:
    """Sample the requested pictures with each of several models in turn, and write them into the job's folder."""
    with _packed(job.folder):
        for column, (chosen, run) in enumerate(zip(wanted.models, folders, strict=True)):
            job.tell("loading", model=column)
            model = models.load(run, chosen.checkpoint, chosen.ema_length)
            resolution = pair(wanted.sampling.resolution) or model.resolution or (1, 1)
            sampling = _options(wanted, chosen, run, models, model, resolution).settled(model)
            report = Reporter(job, column, model, sampling.steps)
            told: dict[str, Any] = {"labels": wanted.label, "conditions": wanted.conditions}
            samples = patch_diffusion.generate(model, wanted.seeds, sampling, **told, callback=report.step)
            samples = named(samples, sampling.guide, wanted.sampling.guide)
            weights = digest_of(model, sampling.guide)
            report.write(samples, run, chosen, sample_command(wanted, chosen, run), weights)


def edit(wanted: EditRequest, run: RunFolder, models: Models, job: Job) -> None:
    """Fill in, extend or restore the uploaded image, once per seed, and write the results into the job's folder."""
    with _packed(job.folder):
        job.tell("loading", model=0)
        chosen = wanted.model
        model = models.load(run, chosen.checkpoint, chosen.ema_length)
        if model.image_channels not in MODES:
            raise InputError("this page edits pictures in grey, RGB or RGBA, and this model is of other images")
        image = pixels_of(wanted.image, MODES[model.image_channels])
        mask = None if wanted.mask is None else pixels_of(wanted.mask, "L")[0] >= 128
        resolution = wanted.task.resolution(image.shape[1], image.shape[2])
        usual = usual_covariance(exactly=wanted.restore is None, tiled=wanted.sampling.tile is not None)
        backward = (wanted.covariance or usual) == "network"
        sampling = _options(wanted, chosen, run, models, model, resolution, backward=backward)
        sampling = replace(sampling, steps=sampling.steps or _STEPS_OF_EDITS)
        reporter = Reporter(job, 0, model, sampling.steps)
        samples = patch_diffusion.edit(
            model,
            wanted.task.known(model, image, mask),
            wanted.seeds,
            sampling,
            label=wanted.label,
            conditions=wanted.conditions,
            covariance=wanted.covariance,
            callback=reporter.step,
        )
        (job.folder / "image.png").write_bytes(png(to_image(image)))
        if mask is not None:
            (job.folder / "mask.png").write_bytes(png(to_image(mask[None].to(torch.uint8) * 255)))
        samples = named(samples, sampling.guide, wanted.sampling.guide)
        reporter.write(samples, run, chosen, edit_command(wanted, run))


class Reporter:
    """A writer of one model's pictures into a job's folder, which reports a preview of each step and the results.

    ``column`` is the index of the model among those of the request, and ``steps`` the number of solver steps.
    """

    def __init__(self, job: Job, column: int, model: Denoiser, steps: int | None) -> None:
        self._job, self._column, self._model, self._steps = job, column, model, steps
        self._done = 0

    def step(self, step: Step) -> None:
        """Report a solver step, with one preview image of the batch's pictures as they form."""
        # A preview shows grey for what is not finite; the end of the sampling tells of it.
        pixels, shown = self._model.codec.decode_with_range(step.denoised.float().nan_to_num(0.0, 0.0, 0.0))
        pictures = [_small(visible(picture, *shown)) for picture in pixels.cpu()]
        columns = math.ceil(len(pictures) ** 0.5)
        sheet = _sheet(pictures, columns)
        is_large = sheet.width * sheet.height > _LARGE_SHEET and sheet.mode in ("L", "RGB")
        name = f"{_SHEETS}/{self._column}-{self._done}-{step.index}.{'jpg' if is_large else 'png'}"
        path = self._job.folder / name
        path.parent.mkdir(exist_ok=True)
        sheet.save(path, **({"quality": 90} if is_large else {"compress_level": 1}))
        self._job.tell(
            "step",
            model=self._column,
            first=self._done,
            num=len(pictures),
            step=step.index + 1,
            steps=self._steps,
            sigma=float(step.sigma),
            sheet=name,
            columns=columns,
            size=[pictures[0].shape[-2], pictures[0].shape[-1]],
        )

    def write(
        self, samples: Iterable[Sample], run: RunFolder, chosen: ModelChoice, command: str, weights: str = ""
    ) -> None:
        """Write the pictures as ``patch-diffusion sample`` does, and report each of them to the page."""
        name = f"{self._column + 1}-{run.path.resolve().name}"
        name += "" if chosen.checkpoint is None else f"-step-{chosen.checkpoint}"
        name += "" if chosen.ema_length is None else f"-ema-{chosen.ema_length:g}"
        folder = self._job.folder / name
        last: list[Sample] = []
        names = self._model.class_names

        def passed() -> Iterator[Sample]:
            for sample in samples:
                yield sample
                # `write_samples` asks for the next sample once it has written this one.
                self._tell(sample, folder)
                last[:] = [sample]

        source = source_of(run, chosen)
        index: dict[str, Any] = {"class_names": names, "source": str(source), "weights": weights}
        index |= {"step": step_in(source), "ema_length": chosen.ema_length}
        patch_diffusion.write_samples(passed(), folder, **index, grid=folder / "grid.png")
        write_text(folder / "command.txt", command + "\n")
        settings: dict[str, Any] = last[0].settings if last else {}
        self._job.tell("finished", model=self._column, settings=settings, command=command)

    def _tell(self, sample: Sample, folder: Path) -> None:
        path = next(folder.glob(f"{sample.seed:06d}.*"))
        shown = path
        if path.suffix != ".png":
            shown = path.with_name(f"{path.stem}-shown.png")
            sample.image.save(shown)
        names = self._model.class_names
        label = None if sample.label is None else names[sample.label] if names else str(sample.label)
        inside = self._job.folder
        self._job.tell(
            "sample",
            model=self._column,
            index=self._done,
            seed=sample.seed,
            label=label,
            file=path.relative_to(inside).as_posix(),
            shown=shown.relative_to(inside).as_posix(),
        )
        self._done += 1


def _options(
    wanted: Request,
    chosen: ModelChoice,
    run: RunFolder,
    models: Models,
    model: Denoiser,
    resolution: tuple[int, ...],
    *,
    backward: bool = False,
) -> Sampling:
    """Return the requested sampling options, with the loaded guide and a batch that fits memory filled in."""

    def weaker(step: int | None, length: float | None) -> Denoiser:
        return models.load(run, chosen.checkpoint if step is None else step, length)

    asked = wanted.sampling
    tile, overlap = pair(asked.tile), asked.overlap
    most = at_once(resolution, model.resolution, wanted.pictures, tile=tile, overlap=overlap, backward=backward)
    guide = guide_of(str(asked.guide), weaker)
    return replace(asked, guide=guide, batch=min(asked.batch, most))


def _small(pixels: torch.Tensor) -> torch.Tensor:
    """Shrink a picture (c, h, w) that is too large for a preview, by keeping every second, third, ... pixel."""
    every = -(-max(pixels.shape[1:]) // _LARGEST_TILE)
    return pixels[:, ::every, ::every]


def _sheet(pictures: list[torch.Tensor], columns: int) -> Any:
    """Return one Pillow image with the pictures in rows of ``columns``, and nothing between them."""
    rows = -(-len(pictures) // columns)
    empty = torch.zeros_like(pictures[0])
    filled = pictures + [empty] * (rows * columns - len(pictures))
    lines = [torch.cat(filled[row * columns : (row + 1) * columns], dim=2) for row in range(rows)]
    return to_image(torch.cat(lines, dim=1))


@contextmanager
def _packed(folder: Path) -> Iterator[None]:
    """Zip all pictures of a folder and their settings when the with block ends, also if the job was stopped."""
    try:
        yield
    finally:
        with zipfile.ZipFile(folder / ARCHIVE, "w") as archive:
            for path in sorted(folder.rglob("*")):
                name = path.relative_to(folder).as_posix()
                if path.is_file() and name != ARCHIVE and not name.startswith(f"{_SHEETS}/") and path.suffix != ".lock":
                    archive.write(path, encoded(name).decode())
