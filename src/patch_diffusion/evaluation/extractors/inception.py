"""The Inception-v3 network and features that published Frechet distances ("FID") use.

The network is that of Szegedy et al., arXiv 1512.00567, with the weights of TensorFlow's ``inception-2015-12-05``. It
differs from later ones in three places: 1,008 classes, average pools that do not count the padding, and a max pool in
the last block. Images are enlarged and scaled as in that graph (see `enlarge`).
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patch_diffusion.errors import InputError
from patch_diffusion.evaluation.extractors.extractor import Extractor
from patch_diffusion.evaluation.extractors.weights import check_shapes, digest_of, read_weights

SIDE = 299
FILE = "pt_inception-2015-12-05-6726825d.pth"
"""The file name under which the weights are published for torch."""

_NUM_CLASSES = 1008


def is_inception(names: set[str]) -> bool:
    """True if the tensors of a weight file are named like those of FID's Inception-v3."""
    return "Conv2d_1a_3x3.conv.weight" in names


def inception(path: Path, device: torch.device | str = "cpu") -> Extractor:
    """Open an Inception-v3 extractor of 2,048 features, the output of the last block averaged over the image.

    Args:
        path: weights by the names of the common port of ``inception-2015-12-05`` to torch, such as
            ``Conv2d_1a_3x3.conv.weight`` and ``fc.weight``, as ``.pth`` or safetensors.
        device: the device of the network.

    Raises:
        InputError: the file does not hold the weights of this network.
    """
    weights = read_weights(path)
    with torch.device("meta"):
        network = Inception()
    counters = {name for name in network.state_dict() if name.endswith("num_batches_tracked")}
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items() if name not in counters}
    check_shapes(path, weights, expected, "the Inception-v3 of FID")
    given = {name: weights[name].float() for name in expected}
    network.load_state_dict(given | {name: torch.zeros((), dtype=torch.long) for name in counters}, assign=True)
    network = network.to(device).eval()
    return Extractor(
        "inception",
        lambda images: network(images.to(device)),
        {"kind": "Inception-v3 of 2015-12-05", "weights": digest_of(path)},
    )


class Inception(nn.Module):
    """The Inception-v3 network of FID: images to features (n, 2048). The unused ``fc`` is part of the weight files."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3: _Convolution = _Convolution(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3: _Convolution = _Convolution(32, 32, 3)
        self.Conv2d_2b_3x3: _Convolution = _Convolution(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1: _Convolution = _Convolution(64, 80, 1)
        self.Conv2d_4a_3x3: _Convolution = _Convolution(80, 192, 3)
        self.Mixed_5b: _At35 = _At35(192, pooled=32)
        self.Mixed_5c: _At35 = _At35(256, pooled=64)
        self.Mixed_5d: _At35 = _At35(288, pooled=64)
        self.Mixed_6a: _To17 = _To17(288)
        self.Mixed_6b: _At17 = _At17(768, inner=128)
        self.Mixed_6c: _At17 = _At17(768, inner=160)
        self.Mixed_6d: _At17 = _At17(768, inner=160)
        self.Mixed_6e: _At17 = _At17(768, inner=192)
        self.Mixed_7a: _To8 = _To8(768)
        self.Mixed_7b: _At8 = _At8(1280, largest=False)
        self.Mixed_7c: _At8 = _At8(2048, largest=True)
        self.fc: nn.Linear = nn.Linear(2048, _NUM_CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Return the features (n, 2048) of uint8 images (n, 3, h, w)."""
        x = (enlarge(images.float(), SIDE) - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, stride=2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, stride=2))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        return x.mean(dim=(2, 3))


def enlarge(images: Tensor, side: int) -> Tensor:
    """Resize images (n, c, h, w) to ``side`` x ``side`` pixels, bilinearly as TensorFlow 1 does it.

    Pixel i of the result lies at i * height / side of the image: the first pixels coincide, not the corners nor the
    centres, and there is no antialiasing. Published distances depend on it.
    """
    height, width = images.shape[-2:]
    if min(height, width) < 1:
        raise InputError("images have at least one pixel")
    rows, columns = (_places(length, side, images.device) for length in (height, width))
    images = torch.lerp(images[:, :, rows[0]], images[:, :, rows[1]], rows[2][:, None])
    return torch.lerp(images[..., columns[0]], images[..., columns[1]], columns[2])


def _places(length: int, side: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return the indices of the input pixels before and after each output pixel, and its fraction of the way."""
    places = torch.arange(side, device=device, dtype=torch.float32) * (length / side)
    before = places.long().clamp(max=length - 1)
    return before, (before + 1).clamp(max=length - 1), places - before


class _Convolution(nn.Module):
    def __init__(
        self, inputs: int, outputs: int, kernel: int | tuple[int, int], **options: int | tuple[int, int]
    ) -> None:
        super().__init__()
        self.conv: nn.Conv2d = nn.Conv2d(inputs, outputs, kernel, bias=False, **options)  # pyright: ignore[reportArgumentType]
        self.bn: nn.BatchNorm2d = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)).relu()


def _average_pool(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class _At35(nn.Module):
    """An Inception block for feature maps of 35 x 35, figure 5 of the paper."""

    def __init__(self, inputs: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1: _Convolution = _Convolution(inputs, 64, 1)
        self.branch5x5_1: _Convolution = _Convolution(inputs, 48, 1)
        self.branch5x5_2: _Convolution = _Convolution(48, 64, 5, padding=2)
        self.branch3x3dbl_1: _Convolution = _Convolution(inputs, 64, 1)
        self.branch3x3dbl_2: _Convolution = _Convolution(64, 96, 3, padding=1)
        self.branch3x3dbl_3: _Convolution = _Convolution(96, 96, 3, padding=1)
        self.branch_pool: _Convolution = _Convolution(inputs, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        single = self.branch5x5_2(self.branch5x5_1(x))
        return torch.cat([self.branch1x1(x), single, double, self.branch_pool(_average_pool(x))], dim=1)


class _To17(nn.Module):
    """The Inception block that reduces feature maps from 35 x 35 to 17 x 17, figure 10 of the paper."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3: _Convolution = _Convolution(inputs, 384, 3, stride=2)
        self.branch3x3dbl_1: _Convolution = _Convolution(inputs, 64, 1)
        self.branch3x3dbl_2: _Convolution = _Convolution(64, 96, 3, padding=1)
        self.branch3x3dbl_3: _Convolution = _Convolution(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, stride=2)], dim=1)


class _At17(nn.Module):
    """An Inception block for feature maps of 17 x 17, its 7 x 7 convolutions in two steps, figure 6 of the paper."""

    def __init__(self, inputs: int, inner: int) -> None:
        super().__init__()
        across, down = {"kernel": (1, 7), "padding": (0, 3)}, {"kernel": (7, 1), "padding": (3, 0)}
        self.branch1x1: _Convolution = _Convolution(inputs, 192, 1)
        self.branch7x7_1: _Convolution = _Convolution(inputs, inner, 1)
        self.branch7x7_2: _Convolution = _Convolution(inner, inner, **across)
        self.branch7x7_3: _Convolution = _Convolution(inner, 192, **down)
        self.branch7x7dbl_1: _Convolution = _Convolution(inputs, inner, 1)
        self.branch7x7dbl_2: _Convolution = _Convolution(inner, inner, **down)
        self.branch7x7dbl_3: _Convolution = _Convolution(inner, inner, **across)
        self.branch7x7dbl_4: _Convolution = _Convolution(inner, inner, **down)
        self.branch7x7dbl_5: _Convolution = _Convolution(inner, 192, **across)
        self.branch_pool: _Convolution = _Convolution(inputs, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), single, double, self.branch_pool(_average_pool(x))], dim=1)


class _To8(nn.Module):
    """The Inception block that reduces feature maps from 17 x 17 to 8 x 8."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3_1: _Convolution = _Convolution(inputs, 192, 1)
        self.branch3x3_2: _Convolution = _Convolution(192, 320, 3, stride=2)
        self.branch7x7x3_1: _Convolution = _Convolution(inputs, 192, 1)
        self.branch7x7x3_2: _Convolution = _Convolution(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3: _Convolution = _Convolution(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4: _Convolution = _Convolution(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        large = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), large, F.max_pool2d(x, 3, stride=2)], dim=1)


class _At8(nn.Module):
    """An Inception block for feature maps of 8 x 8, with 1 x 3 and 3 x 1 side by side, figure 7 of the paper."""

    def __init__(self, inputs: int, largest: bool) -> None:
        super().__init__()
        self.branch1x1: _Convolution = _Convolution(inputs, 320, 1)
        self.branch3x3_1: _Convolution = _Convolution(inputs, 384, 1)
        self.branch3x3_2a: _Convolution = _Convolution(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3_2b: _Convolution = _Convolution(384, 384, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1: _Convolution = _Convolution(inputs, 448, 1)
        self.branch3x3dbl_2: _Convolution = _Convolution(448, 384, 3, padding=1)
        self.branch3x3dbl_3a: _Convolution = _Convolution(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b: _Convolution = _Convolution(384, 384, (3, 1), padding=(1, 0))
        self.branch_pool: _Convolution = _Convolution(inputs, 192, 1)
        self._largest = largest

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch3x3_1(x)
        singles = [self.branch3x3_2a(single), self.branch3x3_2b(single)]
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        doubles = [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)]
        pooled = F.max_pool2d(x, 3, stride=1, padding=1) if self._largest else _average_pool(x)
        return torch.cat([self.branch1x1(x), *singles, *doubles, self.branch_pool(pooled)], dim=1)
