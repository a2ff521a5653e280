"""MobileNetV2 features (Sandler et al., arXiv 1801.04381), batch norms folded in: small, and fast on two cores."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from patch_diffusion.evaluation.extractors.extractor import Extractor
from patch_diffusion.evaluation.extractors.weights import check_shapes, digest_of, read_weights

SIDE = 128
"""The height and width to which images are resized, bicubically, with antialiasing if they get smaller."""

# Each block but the first expands its input to six times as many channels (table 2 of the paper).
_OUTPUTS = (16, 24, 24, *[32] * 3, *[64] * 4, *[96] * 3, *[160] * 3, 320)
_STRIDES = {2: 2, 4: 2, 7: 2, 14: 2}
_STEM, _HEAD = 32, 1280


def is_mobilenet(weights: Mapping[str, Tensor]) -> bool:
    """True if the tensors of a weight file are named as `mobilenet` expects a MobileNetV2."""
    return "stem.weight" in weights and "block1.depthwise.weight" in weights


def mobilenet(path: Path, device: torch.device | str = "cpu") -> Extractor:
    """Open a MobileNetV2 extractor of 1,280 features, the output of the last convolution averaged over the image.

    Args:
        path: a file of weights ``stem``, ``block1`` ... ``block17`` with ``.expand`` (but block1), ``.depthwise`` and
            ``.project``, and ``head``, each with ``.weight`` (outputs, inputs, height, width) and ``.bias``.
        device: the device of the network.

    Raises:
        InputError: the file does not hold the weights of this network.
    """
    weights = read_weights(path)
    check_shapes(path, weights, _shapes(), "a MobileNetV2")
    placed = {name: _placed(weights[name], device) for name in _shapes()}
    return Extractor(
        "mobilenet_v2",
        lambda images: _features(images.to(device), placed),
        {"kind": "MobileNetV2", "weights": digest_of(path), "side": SIDE},
        note="features of MobileNetV2 are not those of FID: compare numbers only where the extractor, its side and the "
        "number of images are the same",
    )


def _features(images: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    def convolution(x: Tensor, name: str, stride: int = 1, groups: int = 1) -> Tensor:
        weight = weights[f"{name}.weight"]
        if weight.shape[-1] == 3:
            # TensorFlow's SAME padding puts the odd pixel below and to the right.
            x = F.pad(x, (0, 1, 0, 1) if stride == 2 else (1, 1, 1, 1))
        return F.conv2d(x, weight, weights[f"{name}.bias"], stride, groups=groups)

    x = images.float() / 127.5 - 1
    smaller = max(x.shape[-2:]) > SIDE
    x = F.interpolate(x, (SIDE, SIDE), mode="bicubic", align_corners=False, antialias=smaller)
    x = convolution(x.clamp(-1, 1), "stem", stride=2).clamp(0, 6)
    for block in range(1, len(_OUTPUTS) + 1):
        stride, y = _STRIDES.get(block, 1), x
        if block > 1:
            y = convolution(y, f"block{block}.expand").clamp(0, 6)
        y = convolution(y, f"block{block}.depthwise", stride, groups=y.shape[1]).clamp(0, 6)
        y = convolution(y, f"block{block}.project")
        x = x + y if stride == 1 and x.shape == y.shape else y
    return convolution(x, "head").clamp(0, 6).mean(dim=(2, 3))


def _placed(weight: Tensor, device: torch.device | str) -> Tensor:
    """Move a weight to a device, channels last, which makes the network twice as fast on a CPU."""
    layout = torch.channels_last if weight.ndim == 4 else torch.contiguous_format
    return weight.to(device, torch.float32, memory_format=layout)


def _shapes() -> dict[str, tuple[int, ...]]:
    weights: dict[str, tuple[int, ...]] = {"stem": (_STEM, 3, 3, 3)}
    inputs = _STEM
    for block, outputs in enumerate(_OUTPUTS, start=1):
        wide = inputs
        if block > 1:
            wide = 6 * inputs
            weights[f"block{block}.expand"] = (wide, inputs, 1, 1)
        weights[f"block{block}.depthwise"] = (wide, 1, 3, 3)
        weights[f"block{block}.project"] = (outputs, wide, 1, 1)
        inputs = outputs
    weights["head"] = (_HEAD, inputs, 1, 1)
    biases = {f"{name}.bias": shape[:1] for name, shape in weights.items()}
    return {f"{name}.weight": shape for name, shape in weights.items()} | biases
