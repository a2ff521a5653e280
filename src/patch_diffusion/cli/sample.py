"""The command ``patch-diffusion sample``: whole images from a run."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

import patch_diffusion
from patch_diffusion.cli.choosing import (
    check_guide,
    check_places,
    class_number,
    open_guide,
    pictures_in,
    read_from,
    write_shown,
)
from patch_diffusion.cli.conditions import conditions_and_seeds, inputs_and_seeds, of_seeds, parse_conditions
from patch_diffusion.cli.making import Making
from patch_diffusion.cli.say import say
from patch_diffusion.cli.verb import FilePath, Json, ModelPath, Seeds, Verb
from patch_diffusion.errors import option_error
from patch_diffusion.files import user_path
from patch_diffusion.sampling.guides import named
from patch_diffusion.sampling.options import Sampling

if TYPE_CHECKING:
    from patch_diffusion.sampling.fewest import FewestSteps


@dataclass(frozen=True)
class _Sampling(Sampling):
    """The options of sampling, with a number of steps that can be found."""

    steps: int | Literal["auto"] | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    """Number of solver steps. auto: the fewest with which pictures differ from those of twice as many by at most 2 of
    256 levels (root mean square over four seeds). Default: 18."""

    def __post_init__(self) -> None:
        steps = self.steps
        object.__setattr__(self, "steps", None if steps == "auto" else steps)
        super().__post_init__()
        object.__setattr__(self, "steps", steps if steps == "auto" else self.steps)


@dataclass(frozen=True)
class Sample(Verb):
    """Sample whole images from a run, as PNG files named by their seeds.

    patch-diffusion sample runs/photos --seeds 0-63 --out pictures --grid grid.png
    """

    source: Annotated[Positional[ModelPath], arg(metavar="RUN")]
    """The run folder, or one of its checkpoints."""
    out: Annotated[Path, arg(metavar="DIR")]
    """Folder for the images (000000.png, ...) and samples.json."""
    seeds: Annotated[Seeds, arg(metavar="0-63")] = "0-15"
    """Seeds, one for each image, as in 0-63 or 3,5,8-11. A seed always gives the same image."""
    label: Annotated[str | None, arg(name="class", metavar="K")] = None
    """Class of the images, by name or number (from 0). Default: one after the other, by seed."""
    condition: Annotated[tuple[str, ...], arg(metavar="NAME=VALUE")] = ()
    """Conditions of the images by name, for a run that was trained with --data.conditions, as in age=40 colour=red.
    Those left out are not given."""
    conditions: Annotated[FilePath | None, arg(metavar="TABLE.csv")] = None
    """CSV file with the conditions of each image in a line, in the order of the seeds, and their names at the top."""
    paired: Annotated[tuple[Path, ...] | None, arg(metavar="INPUT")] = None
    """Input pictures, for a run that was trained with --data.paired: a file, or a folder of them, for each of its
    inputs. Pictures are named as their inputs. Default of --seeds: 0, one picture of each."""
    sampling: Annotated[_Sampling, arg(name="")] = field(default_factory=_Sampling)
    ema_length: Annotated[float | None, arg(metavar="0.1")] = None
    """Length of the weight average to use, as a share of the training, such as 0.1. It needs a run that was trained
    with --ema.lengths. Default: the average that every run has."""
    vae: Annotated[FilePath | None, arg(metavar="FOLDER")] = None
    """Autoencoder to decode latents with, as a folder. Default: the one that made them."""
    again: bool = False
    """Sample again the images that are in the folder already, from the same weights and settings."""
    grid: Annotated[Path | None, arg(metavar="FILE.png")] = None
    """File for one picture of the first 100 samples, sorted by class."""
    device: str = "auto"
    """Device to use: auto, cpu, cuda, cuda:1 or mps. auto: a GPU if there is one."""
    json: Json = None
    """Print the result as JSON on stdout, or write it to a file."""

    def check_given(self) -> None:
        """Raise an `InputError` if an option cannot be right."""
        super().check_given()
        check_guide(str(self.sampling.guide))
        parse_conditions(self.condition)
        if self.paired is not None and self.conditions is not None:
            raise option_error(
                "conditions", "are a line for each seed, and --paired has inputs for each: give one of them"
            )

    def run(self) -> dict[str, Any]:
        """Sample the images that are not there yet, write them as pictures, and return their number and paths."""
        from patch_diffusion.runs.folder import step_in
        from patch_diffusion.sampling.folder import MOST_IN_GRID, already_there, digest_of
        from patch_diffusion.sampling.generate import jobs_of

        seeds, conditions = conditions_and_seeds(self.condition, self.conditions, self.seeds, usual=Sample.seeds)
        paired = None
        if self.paired is not None:
            paired, seeds = inputs_and_seeds(self.paired, [0] if self.seeds == Sample.seeds else seeds)
        check_places(self.out, seeds, [*read_from(self.source), *(self.paired or ())], grid=self.grid)
        step = step_in(user_path(self.source))
        model = patch_diffusion.load(self.source, ema_length=self.ema_length, vae=self.vae, device=self.device)
        guide = open_guide(str(self.sampling.guide), self.source, device=self.device)
        sampling, found = replace(self.sampling, guide=guide), None
        labels = class_number(self.label, model)
        if sampling.steps == "auto":
            found = patch_diffusion.fewest_steps(model, sampling, label=labels)
            sampling = replace(sampling, steps=found.steps)
            say(_told(found), aside=True)
        more = {} if found is None else {"auto": found.settings()}
        weights = digest_of(model, guide)
        there: set[int] = set()
        sampling = sampling.settled(model)
        if not self.again and paired is None:
            settings = sampling.settings(model, sampling.view(model), sampling.sigmas(model))
            settings |= more if isinstance(guide, str) else {"guide": self.sampling.guide, **more}
            there = already_there(
                self.out, jobs_of(model, seeds, labels, conditions), settings=settings, weights=weights
            )
            there -= set(() if self.grid is None else seeds[:MOST_IN_GRID])
        new = [seed for seed in seeds if seed not in there]
        assert isinstance(sampling.steps, int)  # it is settled
        making = Making(len(new), sampling.steps)
        told = {"labels": labels, "conditions": of_seeds(conditions, seeds, new), "paired": paired}
        samples = patch_diffusion.generate(model, new, sampling, **told, callback=making.step)
        samples = named(samples, guide, self.sampling.guide)
        samples = (replace(sample, settings={**sample.settings, **more}) for sample in samples)
        given = {"class_names": model.class_names, "source": str(self.source), "weights": weights, "step": step}
        given |= {"ema_length": self.ema_length, "grid": self.grid}
        made = write_shown(samples, self.out, making, **given)
        return {**made, "samples": made["samples"] + len(there), "already": len(there), **more}

    def message(self, result: dict[str, Any]) -> str:
        """Return the message at the end: the number of pictures and where they are."""
        already = f" ({result['already']:,} were there already)" if result["already"] else ""
        return (
            pictures_in(result["samples"], self.out) + already + (f", and a grid in {self.grid}" if self.grid else "")
        )

    def after_interrupt(self) -> str:
        """Return the text that follows "interrupted" in the message after Ctrl-C."""
        return f"; what was sampled is in {self.out}" if self.out.exists() else ""


def _told(found: FewestSteps) -> str:
    """Return the line that tells a number of steps that was found."""
    many = f"{found.steps} steps: pictures of {2 * found.steps} differ by {found.distance:.2g} of 256 levels"
    return many if found.distance <= found.within else f"{many}, which is more than the {found.within:g} asked for"
