"""Parsing of command-line arguments into typed options, with one-line errors."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Sequence
from itertools import chain, pairwise, zip_longest
from typing import Any, TypeVar

import tyro

from patch_diffusion.cli.help import help_text, options_of
from patch_diffusion.cli.mistakes import sentence
from patch_diffusion.cli.say import say
from patch_diffusion.config_dict import OLD_VALUES
from patch_diffusion.errors import InputError, decimal

_MOST_SEEDS = 1_000_000

T = TypeVar("T")

_OLD_NAMES = {
    "prepare": {f"--{name}": f"--data.{name}" for name in ("fit", "mode", "classes", "labels", "key", "layout")}
}
"""Options of verbs that were renamed since the last release."""


def parse(kind: type[T], verb: str, arguments: Sequence[str], default: T | None = None) -> T:
    """Parse a command's arguments into its dataclass of options; turn tyro's boxed errors into one-line InputErrors."""
    for place, word in enumerate(arguments):
        if word in ("-h", "--help", "--help-all"):
            group = None if word != "--help-all" else "".join(arguments[place + 1 : place + 2])
            say(help_text(kind, verb, group, default))
            raise SystemExit(0)
    arguments = _sides_apart(_switched(_renamed(verb, arguments)))
    errors = io.StringIO()
    known: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(kind, prog=f"patch-diffusion {verb}", args=arguments, **known)
    except SystemExit:
        told = _first_paragraph(errors.getvalue())
        told = sentence(told, verb, list(options_of(kind, default)), arguments)
        option = re.search(r"--([\w.-]+)", told)
        raise InputError(
            f"{told}; see patch-diffusion {verb} --help", option=option and option[1].replace("-", "_")
        ) from None


def _renamed(verb: str, arguments: Sequence[str]) -> list[str]:
    """Replace options and values that were renamed since the last release by their new names; report each on stderr."""
    words = list(arguments)
    for old, new in _OLD_NAMES.get(verb, {}).items():
        if value_of(old, words) is not None:
            say(f"{old} is {new} now; the old name works for one more release", aside=True)
            words = [new + word[len(old) :] if word == old or word.startswith(f"{old}=") else word for word in words]
    for option, renamed in OLD_VALUES.items():
        for old, new in renamed.items():
            if value_of(f"--{option}", words) == old:
                say(f"--{option} {old} is {new} now; the old name works for one more release", aside=True)
                words = [word.replace(f"--{option}={old}", f"--{option}={new}") for word in words]
                if f"--{option}" in words:
                    words[words.index(f"--{option}") + 1] = new
    return words


def _switched(arguments: Sequence[str]) -> list[str]:
    """Write out a switch that has a third value, too: ``--engine.compile``, also as ``--engine.no-compile``."""
    words: list[str] = []
    for word, following in zip_longest(arguments, arguments[1:], fillvalue=""):
        alone = word == "--engine.compile" and following not in ("True", "False", "auto")
        words += ["--engine.compile", "False"] if word == "--engine.no-compile" else [word, *["True"] * alone]
    return words


def _sides_apart(arguments: Sequence[str]) -> list[str]:
    """Take height and width apart where a size is written as messages write it: ``--resolution 36x52``."""
    words = list(arguments)
    for option in ("--resolution", "--data.resolution", "--tile"):
        sides = re.fullmatch(r"(\d+)x(\d+)", value_of(option, words) or "")
        if sides:
            place = next(place for place, word in enumerate(words) if word.partition("=")[0] == option)
            words[place : place + 1 + (words[place] == option)] = [option, *sides.groups()]
    return words


def value_of(option: str, arguments: Sequence[str]) -> str | None:
    """Return the value of one option, None if it is not given, before the command line as a whole can be parsed."""
    for word, following in zip_longest(arguments, arguments[1:]):
        if word == option:
            return following
        if word.startswith(option + "="):
            return word.partition("=")[2]
    return None


def parse_seeds(text: str) -> list[int]:
    """Parse the text of --seeds, such as ``0-63`` or ``3,5,8-11``, into a list of different numbers."""
    ranges: list[range] = []
    num = 0
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        least, most = decimal(first), decimal(last if dash else first)
        if least is None or most is None:
            raise InputError(f"--seeds are numbers below 2^63, and ranges, such as 0-63 or 3,5,8-11, not '{text}'")
        if least > most:
            raise InputError(f"--seeds {part.strip()} names no seed: the first of a range is the smaller")
        ranges.append(range(least, most + 1))
        num += most + 1 - least
    if num > _MOST_SEEDS:
        raise InputError(f"--seeds names {num:,} pictures, and at most {_MOST_SEEDS:,} are made by one command")
    return list(dict.fromkeys(chain.from_iterable(ranges)))


def _first_paragraph(boxed: str) -> str:
    """Return the first paragraph of tyro's boxed error message as one line, with its first suggestion."""
    lines = [line.strip("│╭╮╰╯ ").strip() for line in boxed.splitlines()]
    text, suggestion = [], ""
    for line in lines[1:]:
        if set(line) <= {"─", "-"}:  # a rule, as a terminal with or without Unicode has it, or an empty line
            if text:
                break
        else:
            text.append(line)
    for line, following in pairwise(lines):
        if line.startswith("Perhaps you meant"):
            suggestion = f"; perhaps you meant {following.split()[0].rstrip(',')}"
    return (" ".join(text) or " ".join(lines)).rstrip(".") + suggestion
