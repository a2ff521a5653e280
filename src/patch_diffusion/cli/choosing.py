"""Classes and guides that sampling is asked for by words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import patch_diffusion
from patch_diffusion.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from patch_diffusion.denoise.denoiser import Denoiser


def class_number(text: str | None, names: Sequence[str]) -> int | None:
    """A class by its number or name."""
    if text is None:
        return None
    if text in names:
        return list(names).index(text)
    if text.isdigit():
        return int(text)
    raise InputError(f"there is no class '{text}'" + (did_you_mean(text, names) if names else ": give its number"))


def guide_of(text: str, run: Path, *, device: str) -> str | Denoiser:
    """What guidance leads away from: a name that `Guidance` knows, or the weaker model that the text names.

    Args:
        text: "step:400" for a checkpoint of the run, "ema:0.02" for an average of another length, the folder of
            another run or checkpoint, or any of the names.
        run: the run folder, or one of its checkpoints.
        device: where the model is put.

    Raises:
        InputError: there is no such model, or no such name.
    """
    kind, _, value = text.partition(":")
    folder = run.parent.parent if run.parent.name == "checkpoints" else run
    if kind == "step":
        if not value.isdigit():
            raise InputError(f"--guide step:N is the step of a checkpoint, as in step:400, not '{text}'")
        return patch_diffusion.load(folder, checkpoint=int(value), device=device)
    if kind == "ema":
        try:
            length = float(value)
        except ValueError:
            raise InputError(f"--guide ema:LENGTH is the length of an average, as in ema:0.02, not '{text}'") from None
        return patch_diffusion.load(run, ema_length=length, device=device)
    if kind in ("class", "crops"):
        return text
    if Path(text).is_dir():
        return patch_diffusion.load(text, device=device)
    raise InputError(f"there is no guide '{text}'{did_you_mean(text, ['class', 'crops', 'step:N', 'ema:LENGTH'])}")
