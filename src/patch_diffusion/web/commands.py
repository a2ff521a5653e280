"""What was asked for on the page, as a command that makes the same pictures."""

from __future__ import annotations

import shlex
from pathlib import Path

from patch_diffusion.runs.folder import RunFolder
from patch_diffusion.web.requests import Asked, Chosen, Edited, Pictures


def sample_command(wanted: Pictures, chosen: Chosen, run: RunFolder) -> str:
    """Of new pictures of one of the models."""
    words = ["--solver", wanted.solver] if wanted.solver != "heun" else []
    words += ["--resolution", *map(str, wanted.resolution)] if wanted.resolution is not None else []
    return _command(["sample", str(source_of(run, chosen))], [*_words(wanted, chosen), *words], "pictures")


def edit_command(wanted: Edited, run: RunFolder) -> str:
    """Of edited ones; ``image.png`` and ``mask.png`` are those of the archive."""
    begin = ["edit", str(source_of(run, wanted.model)), "image.png"]
    return _command(begin, [*_edit_words(wanted), *_words(wanted, wanted.model)], "edited")


def source_of(run: RunFolder, chosen: Chosen) -> Path:
    """The run, or the checkpoint."""
    return run.path if chosen.checkpoint is None else run.checkpoint(chosen.checkpoint)


def _command(begin: list[str], words: list[str], out: str) -> str:
    return shlex.join(["patch-diffusion", *begin, *words, "--out", out])


def _words(wanted: Asked, chosen: Chosen) -> list[str]:
    """Options that both have."""
    last = wanted.seed + wanted.pictures - 1
    words = ["--seeds", f"{wanted.seed}-{last}" if last > wanted.seed else f"{wanted.seed}"]
    words += ["--class", str(wanted.label)] if wanted.label is not None else []
    words += ["--steps", str(wanted.steps)]
    words += ["--ema-length", _number(chosen.ema_length)] if chosen.ema_length is not None else []
    if wanted.guidance != 1:
        words += [
            "--guidance",
            _number(wanted.guidance),
            *(["--guide", wanted.guide] if wanted.guide != "class" else []),
        ]
    if wanted.guidance_interval is not None:
        words += ["--guidance-interval", *map(_number, wanted.guidance_interval)]
    for name in ("coords", "tile", "overlap"):
        if (value := getattr(wanted, name)) is not None:
            words += [f"--{name}", str(value)]
    return words


def _edit_words(wanted: Edited) -> list[str]:
    words = ["--mask", "mask.png"] if wanted.mask is not None else []
    if wanted.extend:
        words += ["--extend", ",".join(f"{side}={pixels}" for side, pixels in wanted.extend.items() if pixels)]
    for name in ("restore", "factor", "blur", "noise", "covariance"):
        if (value := getattr(wanted, name)) is not None:
            words += [f"--{name}", _number(value) if isinstance(value, float) else str(value)]
    return words


def _number(value: float) -> str:
    """As short as it can be and still the same number."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)
