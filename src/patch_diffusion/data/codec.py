"""Bytes to model space and back."""

from __future__ import annotations

import torch
from torch import Tensor


class PixelCodec:
    """Pixels 0 to 255 are -1 to 1 in model space."""

    def encode(self, pixels: Tensor) -> Tensor:
        """uint8 (n, c, h, w) to float32 in [-1, 1]."""
        return pixels.float() / 127.5 - 1

    def decode(self, images: Tensor) -> Tensor:
        """Floats to the nearest uint8; what lies outside [-1, 1] is clipped."""
        return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
