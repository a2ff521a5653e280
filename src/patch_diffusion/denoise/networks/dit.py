"""A diffusion transformer (DiT, arXiv 2212.09748): tokens instead of pixels, attention instead of convolutions.

It takes images of any height and width divisible by the side of a token, and patches of them. The position of a token
is taken from the coordinates of its pixels, so it is the same in a patch as in the whole image.
"""

from __future__ import annotations

import math
from typing import Annotated as Float, Annotated as Int, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# Lowest and highest angular frequency, and their number, of the sines and cosines that embed a coordinate in [-1, 1] or
# a noise level. Coordinates have periods from 4, which is unambiguous over the whole image, to 1/16, which tells 64
# tokens of a row apart. Noise levels (c_noise) are about -1.6 to 1.1 for the EDM process, and up to 999 for VP.
COORDINATE_BANDS = (math.pi / 2, 32 * math.pi, 8)
NOISE_BANDS = (1e-3, 8.0, 32)
# Lowest and highest angular frequency of the rotation of queries and keys by their coordinates.
TURNS = (1.0, 16 * math.pi)


class DiT(nn.Module):
    """A diffusion transformer that maps scaled noisy images and their coordinates to the raw network output F.

    It is called like `UNet`. Transformer blocks have adaptive normalisation and start as the identity ("adaLN-Zero",
    DiT, section 3.2). A token's position is added to it as an embedding, and rotates its normalised queries and keys,
    so tokens see how far apart they are (RoFormer, arXiv 2104.09864, on both axes; ViT-22B, arXiv 2302.05442).

    Args:
        image_channels: channels of the images, in and out.
        width: channels of a token, a multiple of 4 for each head.
        depth: number of transformer blocks.
        heads: number of attention heads.
        token: side of a token in pixels, which divides height and width. Half the side costs four times as much.
        dropout: probability of dropout at the end of each residual branch.
        num_classes, label_dropout, augment_channels, attribute_channels, paired_channels, context: as for `UNet`.
        coords: if true, the input has the two coordinate channels; if false, every input counts as a whole image.

    >>> network = DiT(image_channels=3, width=32, depth=2, heads=2)
    >>> network(torch.zeros(1, 5, 8, 12), torch.zeros(1)).shape
    torch.Size([1, 3, 8, 12])
    """

    def __init__(
        self,
        image_channels: int,
        width: int = 128,
        depth: int = 6,
        heads: int = 4,
        token: int = 2,
        dropout: float = 0.1,
        *,
        num_classes: int = 0,
        label_dropout: float = 0.1,
        augment_channels: int = 0,
        attribute_channels: int = 0,
        paired_channels: int = 0,
        coords: bool = True,
        context: bool = False,
    ) -> None:
        super().__init__()
        for name, number in (("depth", depth), ("heads", heads), ("token", token)):
            if number < 1:
                raise ValueError(f"network.{name} is at least 1, not {number}")
        if width < 1 or width % (4 * heads):
            raise ValueError(f"network.width is a multiple of 4 for each head, not {width} for {heads} heads")
        for name, share in (("dropout", dropout), ("label_dropout", label_dropout)):
            if not 0 <= share < 1:
                raise ValueError(f"network.{name} is a probability in [0, 1), not {share}")

        self.image_channels = image_channels
        self.num_classes = num_classes
        self.label_dropout: float = label_dropout if num_classes or attribute_channels or paired_channels else 0.0
        self.augment_channels = augment_channels
        self.attribute_channels = attribute_channels
        self.paired_channels = paired_channels
        self.stride = token
        self.coords = coords
        self.context = context
        self.recompute: bool = False  # if true, blocks are computed again in the backward pass, to save memory
        self.settings: dict[str, Any] = {  # the options of config.Network that rebuild this network
            "kind": "dit",
            "width": width,
            "depth": depth,
            "heads": heads,
            "token": token,
            "dropout": dropout,
            "label_dropout": label_dropout,
        }

        token_values = image_channels * token**2
        self.first: nn.Linear = nn.Linear(token_values, width)
        self.embed_context: nn.Linear | None = (
            nn.Linear(token_values + token**2, width, bias=False) if context else None
        )
        self.embed_paired: nn.Linear | None = (
            nn.Linear(paired_channels * token**2, width, bias=False) if paired_channels else None
        )
        self.embed_coords: nn.Sequential = nn.Sequential(
            Waves(*COORDINATE_BANDS), nn.Linear(2 * 2 * COORDINATE_BANDS[-1], width)
        )
        self.turns: Waves = Waves(*TURNS, width // heads // 4)
        self.embed_noise: nn.Sequential = nn.Sequential(
            Waves(*NOISE_BANDS), nn.Linear(2 * NOISE_BANDS[-1], width), nn.SiLU(), nn.Linear(width, width)
        )
        # The last row is "no class".
        self.embed_label: nn.Embedding | None = nn.Embedding(num_classes + 1, width) if num_classes else None
        self.embed_augment: nn.Linear | None = (
            nn.Linear(augment_channels, width, bias=False) if augment_channels else None
        )
        self.embed_attributes: nn.Sequential | None = (
            nn.Sequential(nn.Linear(attribute_channels, width), nn.SiLU(), nn.Linear(width, width, bias=False))
            if attribute_channels
            else None
        )
        self.blocks: nn.ModuleList = nn.ModuleList([Block(width, heads, dropout) for _ in range(depth)])
        self.last_modulation: nn.Linear = nn.Linear(width, 2 * width)
        self.last: nn.Linear = nn.Linear(width, token_values)
        self._initialise()

    def forward(
        self,
        x: Float[Tensor, "n channels height width"],
        c_noise: Float[Tensor, "n"],
        labels: Int[Tensor, "n"] | None = None,
        augment: Float[Tensor, "n augment_channels"] | None = None,
        attributes: Float[Tensor, "n attribute_channels"] | None = None,
    ) -> Float[Tensor, "n image_channels height width"]:
        """Run the transformer on noisy images; return its raw output. It is called as `UNet.forward` is."""
        height, width = x.shape[-2:]
        if height % self.stride or width % self.stride:
            raise ValueError(f"height and width must be multiples of {self.stride}, not {height} x {width}")
        pixels = x[:, : self.image_channels]
        beside = self.image_channels + 2 * self.coords
        coords = x[:, self.image_channels : beside] if self.coords else _whole_grid(height, width, x)
        tokens = self.first(_rows(F.pixel_unshuffle(pixels, self.stride)))
        for embed, channels in (
            (self.embed_context, self.image_channels + 1),
            (self.embed_paired, self.paired_channels),
        ):
            if embed is not None:
                tokens = tokens + embed(_rows(F.pixel_unshuffle(x[:, beside : beside + channels], self.stride)))
                beside += channels
        places = _rows(F.avg_pool2d(coords, self.stride))
        tokens = tokens + self.embed_coords(places)
        turn = self.turns(places)[:, None]  # the same for all heads
        condition = self._condition(c_noise, labels, augment, attributes)
        for block in self.blocks:
            tokens = self._run(block, tokens, turn, condition)
        scale, shift = self.last_modulation(condition)[:, None].chunk(2, dim=-1)
        values = self.last(modulated(tokens, scale, shift)).transpose(1, 2)
        return F.pixel_shuffle(values.unflatten(2, (height // self.stride, width // self.stride)), self.stride)

    def _run(self, block: nn.Module, *inputs: Tensor) -> Tensor:
        """Call a block; with ``recompute``, none of its intermediate results are kept for the backward pass."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)

    def _condition(
        self, c_noise: Tensor, labels: Tensor | None, augment: Tensor | None, attributes: Tensor | None
    ) -> Tensor:
        """Return the sum of the embeddings of noise level, class, augmentation and attributes, (n, width)."""
        condition = self.embed_noise(c_noise[:, None])
        if self.embed_label is not None:
            if labels is None:
                labels = torch.full_like(c_noise, -1, dtype=torch.long)
            condition = condition + self.embed_label(labels.where(labels >= 0, self.num_classes))
        if self.embed_augment is not None and augment is not None:
            condition = condition + self.embed_augment(augment.to(condition))
        if self.embed_attributes is not None and attributes is not None:
            condition = condition + self.embed_attributes(attributes.to(condition))
        return F.silu(condition)

    def _initialise(self) -> None:
        """Initialise the weights: Xavier uniform; zero at each residual branch and at the end of the network."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            if isinstance(module, Block):
                nn.init.zeros_(module.modulation.weight)
        nn.init.zeros_(self.last_modulation.weight)
        nn.init.zeros_(self.last.weight)


class Block(nn.Module):
    """A transformer block: attention among all tokens, then two layers per token, both modulated by the conditions."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.modulation: nn.Linear = nn.Linear(width, 6 * width)
        self.qkv: nn.Linear = nn.Linear(width, 3 * width)
        self.proj: nn.Linear = nn.Linear(width, width)
        self.up: nn.Linear = nn.Linear(width, 4 * width)
        self.down: nn.Linear = nn.Linear(4 * width, width)
        self.dropout: nn.Dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, turn: Tensor, condition: Tensor) -> Tensor:
        """Map tokens (n, tokens, width), given rotations (n, 1, tokens, width / heads) and conditions (n, width)."""
        scale0, shift0, gate0, scale1, shift1, gate1 = self.modulation(condition)[:, None].chunk(6, dim=-1)
        x = x + gate0 * self.dropout(self._attend(modulated(x, scale0, shift0), turn))
        h = self.down(F.gelu(self.up(modulated(x, scale1, shift1)), approximate="tanh"))
        return x + gate1 * self.dropout(h)

    def _attend(self, x: Tensor, turn: Tensor) -> Tensor:
        num, tokens, width = x.shape
        # The fast attention kernels need contiguous queries, keys and values.
        qkv = self.qkv(x).view(num, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).contiguous()
        q, k = turned(F.rms_norm(qkv[:2], qkv.shape[-1:]), turn)
        v = qkv[2]
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(num, tokens, width))


class Waves(nn.Module):
    """An embedding of numbers by sines and cosines at ``num`` angular frequencies, evenly spaced on a log axis."""

    frequencies: Tensor

    def __init__(self, lowest: float, highest: float, num: int) -> None:
        super().__init__()
        frequencies = torch.logspace(math.log10(lowest), math.log10(highest), num, dtype=torch.float32)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Embed k numbers (..., k) as their sines and cosines (..., 2 num k)."""
        angles = (x[..., None] * self.frequencies).flatten(-2)
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


def modulated(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Normalise each token (n, tokens, width) to zero mean and unit variance, then scale and shift it."""
    return F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift


def turned(x: Tensor, turn: Tensor) -> Tensor:
    """Rotate pairs of channels of x (..., tokens, channels) by angles, given as their sines and cosines in ``turn``."""
    sin, cos = turn.chunk(2, dim=-1)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


def _rows(x: Tensor) -> Tensor:
    """Flatten images (n, c, h, w) to tokens, one for each pixel, (n, h w, c)."""
    return x.flatten(2).transpose(1, 2)


def _whole_grid(height: int, width: int, like: Tensor) -> Tensor:
    """Return the coordinate grid of a whole image of this shape, (1, 2, height, width): x, then y."""
    x, y = (torch.linspace(-1, 1, side, device=like.device, dtype=like.dtype) for side in (width, height))
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width)])[None]
