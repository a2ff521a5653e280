"""Guides as text on the command line and the web page: a name, or a weaker model of the same run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from patch_diffusion.errors import InputError, about, did_you_mean

if TYPE_CHECKING:
    from patch_diffusion.denoise.denoiser import Denoiser
    from patch_diffusion.sampling.generate import Sample

KINDS = ("class", "crops", "step", "ema")
"""The words that a guide can begin with, up to a colon."""


@about("guide")
def parse_guide(text: str) -> tuple[int | None, float | None]:
    """Parse the text of a guide: return the step of a checkpoint, or the length of an average, and None for the other.

    Raises:
        InputError: there is no such name, or no such number.

    >>> parse_guide("step:400"), parse_guide("crops:1/4")
    ((400, None), (None, None))
    """
    kind, _, value = text.partition(":")
    if kind == "step":
        if not value.isdecimal() or len(value) > 18:  # Python converts no number of thousands of digits
            raise InputError(f"guide step:N is the step of a checkpoint, as in step:400, not '{text}'")
        return int(value), None
    if kind == "ema":
        try:
            return None, float(value)
        except ValueError:
            raise InputError(f"guide ema:LENGTH is the length of an average, as in ema:0.02, not '{text}'") from None
    if kind in ("class", "crops"):
        return None, None
    raise InputError(f"there is no guide '{text}'{did_you_mean(text, ['class', 'crops', 'step:N', 'ema:LENGTH'])}")


@about("guide")
def guide_of(text: str, weaker: Callable[[int | None, float | None], Denoiser]) -> str | Denoiser:
    """Return a guide for `Sampling` by its text: its name, or the weaker model that the text names.

    Args:
        text: "class", "crops", "crops:1/4"; "step:400" for a checkpoint of the run, "ema:0.02" for an average of
            another length.
        weaker: a function that loads a model of the run, by the step of a checkpoint or by the length of an average.

    Raises:
        InputError: there is no such model, or no such name.
    """
    step, length = parse_guide(text)
    return text if step is None and length is None else weaker(step, length)


def named(samples: Iterable[Sample], guide: str | Denoiser, text: str | Denoiser) -> Iterator[Sample]:
    """Yield the samples with the guide in their settings as the text that the user gave, in case it is a model."""
    for sample in samples:
        yield sample if guide == text else replace(sample, settings=sample.settings | {"guide": text})
