"""Shell commands (``patch-diffusion sample`` and ``edit``) that make the same pictures as a request of the web page."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from patch_diffusion.runs.folder import RunFolder
from patch_diffusion.web.requests import EditRequest, ModelChoice, Request, SampleRequest


def sample_command(wanted: SampleRequest, chosen: ModelChoice, run: RunFolder) -> str:
    """Return the ``patch-diffusion sample`` command for the pictures that a request asks of one of its models."""
    return _command(["sample", str(source_of(run, chosen))], _words(wanted, chosen, run), "pictures")


def edit_command(wanted: EditRequest, run: RunFolder) -> str:
    """Return the ``patch-diffusion edit`` command for a request; ``image.png`` and ``mask.png`` are in the zip."""
    begin = ["edit", str(source_of(run, wanted.model)), "image.png"]
    return _command(begin, [*_edit_words(wanted), *_words(wanted, wanted.model, run)], "edited")


def source_of(run: RunFolder, chosen: ModelChoice) -> Path:
    """Return the path of a run folder, or of one of its checkpoints if the request chose one."""
    return run.path if chosen.checkpoint is None else run.checkpoint(chosen.checkpoint)


def _command(begin: list[str], words: list[str], out: str) -> str:
    return shlex.join(["patch-diffusion", *begin, *words, "--out", out])


def _words(wanted: Request, chosen: ModelChoice, run: RunFolder) -> list[str]:
    """Return command-line words that ``sample`` and ``edit`` share: seeds, class, and options not at their default."""
    last = wanted.seed + wanted.pictures - 1
    words = ["--seeds", f"{wanted.seed}-{last}" if last > wanted.seed else f"{wanted.seed}"]
    names = () if wanted.label is None else run.read_config()[1].class_names
    label = names[wanted.label] if wanted.label is not None and wanted.label < len(names) else wanted.label
    words += _option("class", label) + _option("ema_length", chosen.ema_length)
    words += ["--condition", *(f"{name}={value}" for name, value in wanted.conditions.items())] * bool(
        wanted.conditions
    )
    for option in fields(wanted.sampling):
        value = getattr(wanted.sampling, option.name)
        words += _option(option.name, value) if value != option.default else []
    return words


def _edit_words(wanted: EditRequest) -> list[str]:
    words = ["--mask", "mask.png"] if wanted.mask is not None else []
    if wanted.extend:
        words += ["--extend", ",".join(f"{side}={pixels}" for side, pixels in wanted.extend.items() if pixels)]
    for name in ("restore", "factor", "blur", "noise", "covariance"):
        words += _option(name, getattr(wanted, name))
    return words


def _option(name: str, value: Any) -> list[str]:
    """Return an option as command-line words, such as ["--steps", "18"]; an empty list if it is None or off."""
    if value is None or value is False:
        return []
    return [
        f"--{name.replace('_', '-')}",
        *map(_word, _values(value)),
    ]


def _values(value: Any) -> Iterable[Any]:
    """Return the words that follow an option: none of a switch, several of a tuple, ``name=value`` of a dict."""
    if isinstance(value, dict):
        return [f"{name}={_word(each)}" for name, each in value.items()]
    return value if isinstance(value, tuple) else [] if value is True else [value]


def _word(value: Any) -> str:
    """Format a value as one command-line word; a float in the shortest form that reads back as the same number."""
    short = f"{value:g}" if isinstance(value, float) else str(value)
    return short if not isinstance(value, float) or float(short) == value else repr(value)
