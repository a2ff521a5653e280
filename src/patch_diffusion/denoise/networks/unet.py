"""A U-Net of the DDPM++ kind (score-SDE, arXiv 2011.13456; EDM, arXiv 2206.00364, table 7).

It takes images of any height and width divisible by its stride, and patches of them, with their coordinates as two more
input channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class UNet(nn.Module):
    """Maps scaled noisy images and their coordinates to the raw network output F of the denoiser.

    Args:
        image_channels: channels of the images, in and out.
        width: channels at full resolution, a multiple of 4.
        multipliers: channels of each level as multiples of ``width``. Every level after the first halves height and
            width, so both must be multiples of ``stride`` = 2^(levels - 1).
        blocks: residual blocks per level.
        attention: levels with self-attention, 0 being full resolution; the level above the lowest where None. The
            middle of the network always has it.
        dropout: probability of dropout in the residual blocks.
        num_classes: classes it is conditioned on; 0 for none.
        label_dropout: share of the labels that the trainer hides, which makes guidance possible.
        coords: whether the input has the two coordinate channels.

    >>> network = UNet(image_channels=3, width=16, multipliers=(1, 2))
    >>> network(torch.zeros(1, 5, 8, 12), torch.zeros(1)).shape
    torch.Size([1, 3, 8, 12])
    """

    def __init__(
        self,
        image_channels: int,
        width: int = 64,
        multipliers: Sequence[int] = (1, 2, 2),
        blocks: int = 2,
        attention: Sequence[int] | None = None,
        dropout: float = 0.1,
        *,
        num_classes: int = 0,
        label_dropout: float = 0.1,
        coords: bool = True,
    ) -> None:
        super().__init__()
        levels = len(multipliers)
        if levels < 1 or min(multipliers) < 1:
            raise ValueError(f"network.multipliers need one number of at least 1 per level, not {tuple(multipliers)}")
        if width < 4 or width % 4:
            raise ValueError(f"network.width is a multiple of 4, not {width}")
        if blocks < 1:
            raise ValueError(f"network.blocks is at least 1, not {blocks}")
        for name, share in (("dropout", dropout), ("label_dropout", label_dropout)):
            if not 0 <= share < 1:
                raise ValueError(f"network.{name} is a probability in [0, 1), not {share}")
        if attention is None:
            attention = (max(levels - 2, 0),)
        if any(not 0 <= level < levels for level in attention):
            raise ValueError(f"network.attention names levels 0 to {levels - 1}, not {tuple(attention)}")

        self.image_channels = image_channels
        self.num_classes = num_classes
        self.label_dropout = label_dropout if num_classes else 0.0
        self.stride = 2 ** (levels - 1)
        self.settings = {  # what rebuilds it: the options of config.Network
            "width": width,
            "multipliers": tuple(multipliers),
            "blocks": blocks,
            "attention": tuple(attention),
            "dropout": dropout,
            "label_dropout": label_dropout,
        }

        embedding_width = 4 * width
        self.embed_noise = NoiseEmbedding(width)
        self.embed_label = nn.Linear(num_classes, width) if num_classes else None
        self.embed = nn.Sequential(
            nn.Linear(width, embedding_width), nn.SiLU(), nn.Linear(embedding_width, embedding_width), nn.SiLU()
        )

        def block(in_channels: int, out_channels: int, *, attends: bool = False, resample: str = "") -> ResidualBlock:
            return ResidualBlock(
                in_channels, out_channels, embedding_width, attends=attends, resample=resample, dropout=dropout
            )

        channels = width
        self.first = nn.Conv2d(image_channels + 2 * coords, channels, 3, padding=1)
        self.encoder = nn.ModuleList()
        skips = [channels]
        for level, multiplier in enumerate(multipliers):
            if level > 0:
                self.encoder.append(block(channels, channels, resample="down"))
                skips.append(channels)
            for _ in range(blocks):
                self.encoder.append(block(channels, width * multiplier, attends=level in attention))
                channels = width * multiplier
                skips.append(channels)

        self.middle = nn.ModuleList([block(channels, channels, attends=True), block(channels, channels)])

        # Every decoder block is fed an encoder output, but for those that enlarge.
        self.decoder = nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(multipliers))):
            for index in range(blocks + 1):
                attends = level in attention and index == blocks
                self.decoder.append(block(channels + skips.pop(), width * multiplier, attends=attends))
                channels = width * multiplier
            if level > 0:
                self.decoder.append(block(channels, channels, resample="up"))

        self.last_norm = group_norm(channels)
        self.last = nn.Conv2d(channels, image_channels, 3, padding=1)
        self._initialise()

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """Run the network.

        Args:
            x: images and coordinates (n, image_channels + 2, h, w); h and w multiples of ``stride``.
            c_noise: the noise level as the network sees it (n,).
            labels: classes (n,), -1 for "no class"; None for no class at all.

        Returns:
            (n, image_channels, h, w)
        """
        if x.shape[-2] % self.stride or x.shape[-1] % self.stride:
            raise ValueError(f"height and width must be multiples of {self.stride}, not {x.shape[-2]} x {x.shape[-1]}")
        embedding = self.embed_noise(c_noise)
        if self.embed_label is not None:
            embedding = embedding + self.embed_label(self._one_hot(labels, len(x), embedding))
        embedding = self.embed(embedding)

        x = self.first(x)
        skips = [x]
        for block in self.encoder:
            x = block(x, embedding)
            skips.append(x)
        for block in self.middle:
            x = block(x, embedding)
        for block in self.decoder:
            if not block.enlarges:
                x = torch.cat([x, skips.pop()], dim=1)
            x = block(x, embedding)
        return self.last(F.silu(self.last_norm(x)))

    def _one_hot(self, labels: Tensor | None, num: int, like: Tensor) -> Tensor:
        """(n, num_classes), scaled to unit variance; all zero for "no class"."""
        if labels is None:
            return like.new_zeros(num, self.num_classes)
        classes = torch.arange(self.num_classes, device=like.device)
        return (labels[:, None] == classes).to(like) * math.sqrt(self.num_classes)

    def _initialise(self) -> None:
        """As in score-SDE's DDPM++: Xavier uniform; what ends a residual branch starts at nearly nothing."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, ResidualBlock):
                nn.init.xavier_uniform_(module.conv1.weight, gain=1e-5)
            if isinstance(module, Attention):
                nn.init.xavier_uniform_(module.qkv.weight, gain=math.sqrt(0.2))
                nn.init.xavier_uniform_(module.proj.weight, gain=1e-5)
        nn.init.xavier_uniform_(self.last.weight, gain=1e-5)


class ResidualBlock(nn.Module):
    """Two convolutions beside a skip path, with the noise embedding added in between; then, if asked, attention."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_width: int,
        *,
        attends: bool = False,
        resample: str = "",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.enlarges = resample == "up"
        self.resample = {"": nn.Identity(), "down": nn.AvgPool2d(2), "up": nn.Upsample(scale_factor=2)}[resample]
        self.norm0 = group_norm(in_channels)
        self.conv0 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.affine = nn.Linear(embedding_width, out_channels)
        self.norm1 = group_norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv1 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        plain = in_channels == out_channels and not resample
        self.skip = nn.Identity() if plain else nn.Conv2d(in_channels, out_channels, 1)
        self.attention = Attention(out_channels) if attends else None

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(n, in_channels, h, w) and (n, embedding_width) to (n, out_channels, h', w')."""
        h = self.conv0(self.resample(F.silu(self.norm0(x))))
        h = h + self.affine(embedding)[:, :, None, None]
        h = self.conv1(self.dropout(F.silu(self.norm1(h))))
        # The variance of the sum of two is halved again after each of the two residual sums.
        x = (self.skip(self.resample(x)) + h) * math.sqrt(0.5)
        return x if self.attention is None else (x + self.attention(x)) * math.sqrt(0.5)


class Attention(nn.Module):
    """Self-attention among all pixels, one head."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) to the same shape."""
        num, channels, height, width = x.shape
        # Channels of qkv lie as (channel, q | k | v). The fast kernels want each of the three contiguous; the pixels of
        # an image in channels-last memory are its tokens already.
        qkv = self.qkv(self.norm(x)).permute(0, 2, 3, 1).reshape(num, 1, height * width, channels, 3)
        q, k, v = qkv.permute(4, 0, 1, 2, 3).contiguous()
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.reshape(num, height, width, channels).permute(0, 3, 1, 2))


class NoiseEmbedding(nn.Module):
    """Sines and cosines of the noise level, at frequencies from 1 down to 1/10000."""

    frequencies: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        exponents = torch.arange(width // 2, dtype=torch.float32) / (width // 2 - 1)
        self.register_buffer("frequencies", 1e-4**exponents, persistent=False)

    def forward(self, c_noise: Tensor) -> Tensor:
        """(n,) to (n, width)."""
        angles = c_noise.to(self.frequencies)[:, None] * self.frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1)


def group_norm(channels: int) -> nn.GroupNorm:
    """Groups of at least 4 channels, at most 32 groups; fewer where these do not divide the channels."""
    groups = max(n for n in range(1, max(1, min(32, channels // 4)) + 1) if channels % n == 0)
    return nn.GroupNorm(groups, channels, eps=1e-6)
