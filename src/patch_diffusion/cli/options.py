"""Conversions between training options and command-line arguments: which were given, and words that set others."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from patch_diffusion.config import BUDGETS, Config
from patch_diffusion.config_dict import flat, flat_options, yaml_options
from patch_diffusion.presets import PRESETS

Preset = Annotated[
    str | None,
    arg(
        metavar="NAME",
        help=f"Settings to start from: {', '.join(PRESETS)}. Default: settings chosen for the images, the budget and "
        "this machine.",
    ),
]
"""The type of the option ``--preset``."""

_ALIASES = {"resolution": "data.resolution", "held_out": "data.held_out", "from": "start"}
_NAMES = {name: alias for alias, name in _ALIASES.items()}


def given_options(arguments: Sequence[str], file: Path | None = None) -> frozenset[str]:
    """Return the names of the options, such as "patches.sizes", that the user gave on the command line or in a file."""
    words = [word[2:].partition("=")[0] for word in arguments if word.startswith("--")]
    names = [word.replace("-", "_") for word in words]
    names = [_ALIASES.get(name, name).replace(".no_", ".") for name in names]
    if file is not None:
        names += flat(yaml_options(file)).keys()
    return frozenset(names)


def option_words(config: Config, base: Config, *, without: Collection[str] = ()) -> list[str]:
    """Return the words of a command line, such as ["--batch", "32"], that turn ``base`` into ``config``."""
    words: list[str] = []
    old = flat_options(base)
    for name, value in flat_options(config).items():
        if value is None and name in BUDGETS:
            continue  # the budget that is given replaces the others
        if value != old[name] and name not in without:
            words += _words(_NAMES.get(name, name).replace("_", "-"), value, like=old[name])
    return words


def value_words(config: Config, name: str) -> list[str]:
    """Return the value of one option of a config as command-line words, without the option's name."""
    value = flat_options(config)[name]
    return _words("", value, like=None)[1:]


def _words(name: str, value: Any, like: Any) -> list[str]:
    if isinstance(value, bool) and isinstance(like, bool):
        group, _, option = name.rpartition(".")
        return [f"--{name}" if value else f"--{group}.no-{option}"]
    if isinstance(value, dict):
        return [f"--{name}", *[f"{key}={_word(share)}" for key, share in value.items()]]
    values = value if isinstance(value, list) else [value]
    return [f"--{name}", *map(_word, values)]


def _word(value: Any) -> str:
    """Format a value as one command-line word, a float in its shortest exact form."""
    short = f"{value:g}" if isinstance(value, float) else str(value)
    return short if not isinstance(value, float) or float(short) == value else repr(value)
