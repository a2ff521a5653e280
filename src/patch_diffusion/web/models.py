"""The web server's cache of loaded models, so that the next picture does not wait for weights."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING

import patch_diffusion
from patch_diffusion.runs.folder import RunFolder

if TYPE_CHECKING:
    from patch_diffusion.denoise.denoiser import Denoiser

_MOST = 3


class Models:
    """A cache of the three most recently used models.

    Args:
        device: see `choose_device`.
    """

    def __init__(self, device: str = "auto") -> None:
        self._device = device
        self._models: OrderedDict[tuple[Path, int, int, float | None], Denoiser] = OrderedDict()

    def load(self, folder: RunFolder, checkpoint: int | None = None, ema_length: float | None = None) -> Denoiser:
        """Return the newest model of a run folder, or that of a checkpoint, from the cache unless its file has changed.

        ``ema_length`` has the same meaning as in `load`.

        Raises:
            InputError: there is no such model, or it is damaged.
        """
        path = folder.model_file if checkpoint is None else folder.checkpoint(checkpoint) / "ema.safetensors"
        if not path.exists():  # loading raises the error that names the existing checkpoints
            return self._load(folder, checkpoint, ema_length)
        status = path.stat()
        key = (path, status.st_mtime_ns, status.st_size, ema_length)
        if key not in self._models:
            while len(self._models) >= _MOST:  # old models go first, so that memory is free for the new one
                self._models.popitem(last=False)
            self._models[key] = self._load(folder, checkpoint, ema_length)
        self._models.move_to_end(key)
        return self._models[key]

    def _load(self, folder: RunFolder, checkpoint: int | None, ema_length: float | None) -> Denoiser:
        return patch_diffusion.load(folder.path, checkpoint=checkpoint, ema_length=ema_length, device=self._device)
