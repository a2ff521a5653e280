"""The command line: ``patch-diffusion VERB``. Each verb calls one public function.

Results go to stdout, progress and messages to stderr. Exit status 0: done; 1: failed, with a one-line reason; 2: wrong
usage; 130: interrupted after a checkpoint was written. Heavy libraries are imported only when a verb runs.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import Positional, arg

import patch_diffusion
from patch_diffusion.config import Config, read_yaml
from patch_diffusion.errors import InputError, did_you_mean
from patch_diffusion.presets import DEFAULT_PRESET, PRESETS

_BUDGETS = ("steps", "images", "minutes")


@dataclass(frozen=True)
class Train:
    """Train a model on images, or continue a stopped run.

    patch-diffusion train photos.zip --resolution 64 --out runs/photos

    patch-diffusion train --out runs/photos
    """

    source: Annotated[Positional[str], arg(metavar="DATA")] = ""
    """A folder, a zip, or "digits". Not needed to continue."""
    out: Annotated[Path | None, arg(metavar="RUN")] = None
    """The run folder."""
    preset: Annotated[str, arg(metavar="|".join(PRESETS))] = DEFAULT_PRESET
    """Settings to start from."""
    config: Annotated[Path | None, arg(metavar="FILE.yaml")] = None
    """A file of options that go before the preset's."""
    json: bool = False
    """Print the result as JSON on stdout."""
    options: Annotated[Config, arg(name="")] = field(default_factory=Config)


@dataclass(frozen=True)
class Sample:
    """Sample whole images from a run, as PNG files named by their seeds.

    patch-diffusion sample runs/photos --seeds 0-63 --out pictures --grid grid.png
    """

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """The run folder, or one of its checkpoints."""
    out: Annotated[Path, arg(metavar="DIR")]
    """Folder for 000000.png ... and samples.json."""
    seeds: Annotated[str, arg(metavar="0-63")] = "0-15"
    """Seeds, as in 0-63 or 3,5,8-11. A seed always gives the same picture."""
    label: Annotated[str | None, arg(name="class", metavar="K")] = None
    """Class, by number or name. Without it, seed k gets class k mod classes."""
    steps: int = 18
    """Solver steps."""
    solver: Annotated[str, arg(metavar="heun|euler")] = "heun"
    """heun evaluates the network twice a step, euler once."""
    guidance: float = 1.0
    """Scale of classifier-free guidance; 1 is none."""
    resolution: int | tuple[int, int] | None = None
    """Side, or height and width. None: that of the training images."""
    grid: Annotated[Path | None, arg(metavar="FILE.png")] = None
    """One picture of the first 100 samples, sorted by class."""
    batch: int = 64
    """Images at a time."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    json: bool = False
    """Print the result as JSON on stdout."""


@dataclass(frozen=True)
class Info:
    """Tell what is in a run folder.

    patch-diffusion info runs/photos
    """

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """The run folder."""
    json: bool = False
    """Print all of it as JSON on stdout."""


def train(command: Train) -> dict[str, Any]:
    """Train, then say where everything is."""
    assert command.out is not None  # _parse has seen to it
    patch_diffusion.train(command.options, command.out)
    _say(f"the model is in {command.out}; to sample from it: patch-diffusion sample {command.out} --out pictures")
    return patch_diffusion.describe(command.out)


def sample(command: Sample) -> dict[str, Any]:
    """Sample, write the pictures, then say where they are."""
    from rich.console import Console
    from rich.progress import track

    from patch_diffusion.sampling.pictures import picture_grid, write_picture
    from patch_diffusion.training.checkpoint import read_json, write_text

    seeds = _parse_seeds(command.seeds)
    if command.out.exists() and not command.out.is_dir():
        raise InputError(f"{command.out} is a file: give a folder for the pictures")
    model = patch_diffusion.load(command.run, device=command.device)
    names = _class_names(command.run)
    samples = patch_diffusion.generate(
        model,
        seeds,
        steps=command.steps,
        solver=command.solver,
        labels=_parse_class(command.label, names),
        guidance=command.guidance,
        resolution=command.resolution,
        batch=command.batch,
    )
    index = command.out / "samples.json"
    entries = {entry["seed"]: entry for entry in read_json(index)["samples"]} if index.exists() else {}
    pictures = []
    for made in track(
        samples, "sampling", total=len(seeds), console=Console(stderr=True), disable=not sys.stderr.isatty()
    ):
        path = made.save(command.out)
        entries[made.seed] = {
            "file": path.name,
            "seed": made.seed,
            "class": made.label,
            "class_name": names[made.label] if made.label is not None and names else None,
            "settings": made.settings,
        }
        pictures.append(made)
    write_text(
        index, json.dumps({"run": str(command.run), "samples": [entries[seed] for seed in sorted(entries)]}, indent=1)
    )
    result: dict[str, Any] = {"samples": len(pictures), "out": str(command.out)}
    if command.grid is not None:
        shown = sorted(pictures[:100], key=lambda made: (made.label or 0, made.seed))
        write_picture(picture_grid([made.pixels for made in shown]), command.grid)
        result["grid"] = str(command.grid)
    _say(f"{len(pictures)} pictures in {command.out}" + (f", a grid of them in {command.grid}" if command.grid else ""))
    return result


def info(command: Info) -> dict[str, Any]:
    """Tell what is in a run folder, in a few lines on stdout."""
    found = patch_diffusion.describe(command.run)
    if not command.json:
        model, options, progress = found["model"], found["options"], found["progress"]
        height, width = model["resolution"]
        sizes = ", ".join(f"{size}: {share:.3g}" for size, share in options["patches"]["sizes"].items())
        rows = [
            ("run", f"{found['run']}, {'complete' if found['complete'] else 'not complete'}"),
            ("data", f"{options['data']['source'] or 'given in Python'}, {model['num_images']:,} images"),
            ("images", f"{height}x{width}x{model['image_channels']}, {model['num_classes'] or 'no'} classes"),
            ("network", f"{options['network']['kind']}, {model['parameters']:,} parameters"),
            ("patches", f"whole {options['patches']['whole']:g}, the rest {sizes} ({options['patches']['kind']})"),
        ]
        if progress:
            losses = ", ".join(f"{size} {loss:.3f}" for size, loss in progress["loss"].items())
            rows += [
                ("seen", f"{progress['step']:,} steps, {progress['images']:,} images"),
                ("trained", f"{progress['seconds'] / 60:,.1f} minutes"),
                ("loss", losses),
            ]
        rows.append(("checkpoints", ", ".join(f"{step:,}" for step in found["checkpoints"]) or "none yet"))
        if found["pictures"]:
            rows.append(("samples", found["pictures"][-1]))
        for name, value in rows:
            print(f"{name:<12} {value}")
    return found


VERBS: dict[str, tuple[type[Any], Callable[[Any], dict[str, Any]]]] = {
    "train": (Train, train),
    "sample": (Sample, sample),
    "info": (Info, info),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    verb = arguments[0] if arguments else "--help"
    if verb in ("-h", "--help"):
        print(_overview())
        return 0 if arguments else 2
    if verb == "--version":
        print(f"patch-diffusion {patch_diffusion.__version__}")
        return 0
    if verb not in VERBS:
        what = "option" if verb.startswith("-") else "verb"
        _say(f"patch-diffusion: there is no {what} '{verb}'{did_you_mean(verb, [*VERBS, '--help', '--version'])}")
        return 2
    kind, run = VERBS[verb]
    try:
        command = _parse(kind, verb, arguments[1:])
    except InputError as error:
        _say(f"patch-diffusion {verb}: {error}")
        return 2
    try:
        result = run(command)
    except InputError as error:
        _say(f"patch-diffusion {verb}: {error}")
        return 1
    except OSError as error:
        _say(f"patch-diffusion {verb}: {error.strerror or error}{f': {error.filename}' if error.filename else ''}")
        return 1
    except KeyboardInterrupt:
        _say(f"patch-diffusion {verb}: interrupted" + _how_to_continue(command))
        return 130
    if command.json:
        print(json.dumps(result, indent=1))
    return 0


def _overview() -> str:
    verbs = "\n".join(f"  {verb:<8} {(kind.__doc__ or '').splitlines()[0]}" for verb, (kind, _) in VERBS.items())
    return (
        "usage: patch-diffusion VERB ...\n\n"
        "Train image diffusion models from scratch by Patch Diffusion, and sample whole\nimages from them.\n\n"
        f"{verbs}\n\n"
        "  patch-diffusion VERB --help   all options of a verb\n"
        "  patch-diffusion --version"
    )


def _parse(kind: type[Any], verb: str, arguments: Sequence[str]) -> Any:
    """The verb's options; a wrong one is an `InputError` of one line."""
    if kind is not Train:
        return _tyro(kind, verb, arguments)
    base = _base_config(arguments)
    command = _tyro(kind, verb, arguments, Train(options=base))
    if command.out is None:
        raise InputError("train needs --out RUN, the folder for the run")
    if command.source:
        return _finish(command, base)
    if base.data.source:  # named in the config file
        return _finish(replace(command, source=base.data.source), base)
    from patch_diffusion.training.run import RunFolder

    run = RunFolder(command.out)
    if not run.is_run():
        raise InputError(
            f"there is no run to continue in {command.out}: give DATA to train on, a folder, a zip, or digits"
        )
    base, _ = run.read_config()
    command = _tyro(kind, verb, arguments, Train(options=base))
    return _finish(replace(command, source=base.data.source), base)


def _finish(command: Train, base: Config) -> Train:
    options = replace(command.options, data=replace(command.options.data, source=command.source))
    return replace(command, options=_one_budget(base, options))


def _base_config(arguments: Sequence[str]) -> Config:
    """What options that are not given fall back to: the preset, and the config file over it."""
    preset = _value_of("--preset", arguments) or DEFAULT_PRESET
    if preset not in PRESETS:
        raise InputError(f"there is no preset '{preset}'{did_you_mean(preset, PRESETS)}")
    base = PRESETS[preset]
    file = _value_of("--config", arguments)
    return base if file is None else _one_budget(base, read_yaml(file, base))


def _value_of(option: str, arguments: Sequence[str]) -> str | None:
    for word, following in zip_longest(arguments, arguments[1:]):
        if word == option:
            return following
        if word.startswith(option + "="):
            return word.partition("=")[2]
    return None


def _one_budget(base: Config, options: Config) -> Config:
    """A budget that was given takes the place of one of another kind that was not."""
    given = {name for name in _BUDGETS if getattr(options, name) not in (None, getattr(base, name))}
    return replace(options, **{name: None for name in _BUDGETS if name not in given}) if given else options


def _tyro(kind: type[Any], verb: str, arguments: Sequence[str], default: Any = None) -> Any:
    """Parse with tyro; its boxed errors, of many lines, become the one line that matters."""
    errors = io.StringIO()
    known = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(kind, prog=f"patch-diffusion {verb}", args=arguments, **known)
    except SystemExit as stopped:
        if not stopped.code:
            raise
        raise InputError(_first_paragraph(errors.getvalue()) + f"; see patch-diffusion {verb} --help") from None


def _first_paragraph(boxed: str) -> str:
    """What a box says, with the first suggestion."""
    lines = [line.strip("│╭╮╰╯ ").strip() for line in boxed.splitlines()]
    text, suggestion = [], ""
    for line in lines[1:]:
        if set(line) == {"─"} or not line:
            break
        text.append(line)
    for line, following in pairwise(lines):
        if line.startswith("Perhaps you meant"):
            suggestion = f"; perhaps you meant {following.split()[0].rstrip(',')}"
    return (" ".join(text) or " ".join(lines)) + suggestion


def _parse_seeds(text: str) -> list[int]:
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise InputError(f"--seeds are numbers and ranges such as 0-63 or 3,5,8-11, not '{text}'")
        seeds += range(int(first), int(last or first) + 1)
    if not seeds:
        raise InputError(f"--seeds {text} names no seed: the first of a range is the smaller")
    return seeds


def _parse_class(text: str | None, names: Sequence[str]) -> int | None:
    if text is None:
        return None
    if text in names:
        return list(names).index(text)
    if text.isdigit():
        return int(text)
    raise InputError(f"there is no class '{text}'" + (did_you_mean(text, names) if names else ": give its number"))


def _class_names(run: Path) -> tuple[str, ...]:
    from patch_diffusion.training.run import RunFolder

    folder = run.parent.parent if run.parent.name == "checkpoints" else run
    return RunFolder(folder).read_config()[1].class_names


def _how_to_continue(command: Any) -> str:
    if isinstance(command, Train) and command.out is not None and (command.out / "config.json").exists():
        return f"; continue with: patch-diffusion train --out {command.out}"
    return ""


def _say(text: str) -> None:
    print(text, file=sys.stderr)
