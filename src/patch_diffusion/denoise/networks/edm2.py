"""The magnitude-preserving U-Net of EDM2 (arXiv 2312.02696, config G): no layer changes the size of what it is given.

Every weight is divided by its norm where it is used, sums and concatenations are scaled, and nothing else normalises
but one division per pixel and encoder block. There are no biases; a channel of ones in the input takes their place.

Constant factors that the paper has between two layers (of SiLU, and of sums) are in the norm of the next weights, which
is the same and costs nothing.
"""

# pyright: reportPrivateImportUsage=false
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated as Float, Annotated as Int, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

EPSILON = 1e-4  # added to the mean square of a pixel's channels
SILU = 0.596  # root mean square of SiLU of standard normal numbers
BRANCH = 0.3  # share of a residual branch, or of attention, in a sum
LARGEST = 256.0  # features in half precision are clamped to this, far from what they cannot hold
HEAD = 64  # most channels of an attention head

# Factors of both terms of a sum with shares 1 - BRANCH and BRANCH, which keep its variance (equation 88).
STAYS, JOINS = (share / math.hypot(1 - BRANCH, BRANCH) for share in (1 - BRANCH, BRANCH))


class EDM2UNet(nn.Module):
    """A U-Net that maps scaled noisy images and their coordinates to the raw network output F of the denoiser.

    It is called like `UNet`. All weights of layers have unit variance: `normalise_weights` gives it back to them, and
    training calls that after each step. The end of the network, and the influence of noise level and class on each
    block, are multiplied by learned gains that begin at 0.

    Args:
        image_channels: channels of the images, in and out.
        width: channels at full resolution, a multiple of 4.
        multipliers, blocks, dropout, num_classes, label_dropout, coords, context: as for `UNet`.
        augment_channels, attribute_channels, paired_channels: as for `UNet`.
        attention: levels with self-attention in all blocks; None: the level above the lowest. The middle of the network
            always has self-attention.

    >>> network = EDM2UNet(image_channels=3, width=16, multipliers=(1, 2))
    >>> network(torch.zeros(1, 5, 8, 12), torch.zeros(1)).shape
    torch.Size([1, 3, 8, 12])
    """

    input_scale: Tensor

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
        augment_channels: int = 0,
        attribute_channels: int = 0,
        paired_channels: int = 0,
        coords: bool = True,
        context: bool = False,
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
        self.label_dropout: float = label_dropout if num_classes or attribute_channels or paired_channels else 0.0
        self.augment_channels = augment_channels
        self.attribute_channels = attribute_channels
        self.paired_channels = paired_channels
        self.context = context
        self.recompute: bool = False  # if true, blocks are computed again in the backward pass, to save memory
        self.stride: int = 2 ** (levels - 1)
        self.settings: dict[str, Any] = {  # the options of config.Network that rebuild this network
            "kind": "edm2",
            "width": width,
            "multipliers": tuple(multipliers),
            "blocks": blocks,
            "attention": tuple(attention),
            "dropout": dropout,
            "label_dropout": label_dropout,
        }

        embedding_width = width * max(multipliers)
        self.embed_noise: FourierFeatures = FourierFeatures(width)
        self.embed: UnitLinear = UnitLinear(width, embedding_width)
        # The last class is "no class".
        self.embed_label: UnitLinear | None = UnitLinear(num_classes + 1, embedding_width) if num_classes else None
        self.embed_augment: UnitLinear | None = (
            UnitLinear(augment_channels, embedding_width) if augment_channels else None
        )
        self.embed_attributes: UnitLinear | None = (
            UnitLinear(attribute_channels, embedding_width) if attribute_channels else None
        )

        def block(in_channels: int, out_channels: int, **options: Any) -> Block:
            return Block(in_channels, out_channels, embedding_width, dropout=dropout, **options)

        # Images have a variance of 1, coordinates from -1 to 1 one of 1/3.
        scales = [1.0] * image_channels + [math.sqrt(3)] * 2 * coords + [1.0] * (image_channels + 1) * context
        scales += [1.0] * paired_channels
        self.register_buffer("input_scale", torch.tensor(scales).view(1, -1, 1, 1), persistent=False)
        channels = width
        self.first: UnitConv2d = UnitConv2d(len(scales) + 1, channels, 3)
        self.encoder: nn.ModuleList = nn.ModuleList()
        skips = [channels]
        for level, multiplier in enumerate(multipliers):
            if level > 0:
                self.encoder.append(block(channels, channels, resize="down"))
                skips.append(channels)
            for _ in range(blocks):
                self.encoder.append(block(channels, width * multiplier, attends=level in attention))
                channels = width * multiplier
                skips.append(channels)

        self.middle: nn.ModuleList = nn.ModuleList(
            [block(channels, channels, decodes=True, attends=True), block(channels, channels, decodes=True)]
        )

        # Every decoder block, except those that upsample, also takes an encoder output.
        self.decoder: nn.ModuleList = nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(multipliers))):
            for _ in range(blocks + 1):
                both, channels = channels + skips.pop(), width * multiplier
                self.decoder.append(block(both, channels, decodes=True, attends=level in attention))
            if level > 0:
                self.decoder.append(block(channels, channels, decodes=True, resize="up"))

        self.last: UnitConv2d = UnitConv2d(channels, image_channels, 3)
        self.last_gain: nn.Parameter = nn.Parameter(torch.zeros(1))
        self.normalise_weights()

    def forward(
        self,
        x: Float[Tensor, "n channels height width"],
        c_noise: Float[Tensor, "n"],
        labels: Int[Tensor, "n"] | None = None,
        augment: Float[Tensor, "n augment_channels"] | None = None,
        attributes: Float[Tensor, "n attribute_channels"] | None = None,
    ) -> Float[Tensor, "n image_channels height width"]:
        """Run the U-Net on noisy images; return its raw output. It is called as `UNet.forward` is."""
        if x.shape[-2] % self.stride or x.shape[-1] % self.stride:
            raise ValueError(f"height and width must be multiples of {self.stride}, not {x.shape[-2]} x {x.shape[-1]}")
        embedding = self._embedding(c_noise, labels, augment, attributes)
        influence = iter(self._influences(embedding))

        x = torch.cat([x * self.input_scale, torch.ones_like(x[:, :1])], dim=1)
        x = self.first(x)
        skips = [x]
        for block in self.encoder:
            x = self._run(block, x, embedding, next(influence))
            skips.append(x)
        for block in self.middle:
            x = self._run(block, x, embedding, next(influence))
        for block in self.decoder:
            if not block.enlarges:
                x = concatenated(x, skips.pop())
            x = self._run(block, x, embedding, next(influence))
        return self.last(x, self.last_gain)

    @torch.no_grad()
    def normalise_weights(self, skipped: Tensor | None = None) -> None:
        """Give the weights of each output of each layer a mean square of 1, in place.

        Training calls this after each step of the optimizer, so that a learning rate stays the relative change of a
        weight (the paper's forced weight normalisation). Of weights that are sharded by rows each rank has whole rows.

        Args:
            skipped: 1 if the step changed nothing, so that weights stay as they are to the last bit, else 0; a tensor,
                for which the host does not wait.
        """
        layers = [layer for layer in self.modules() if isinstance(layer, UnitConv2d | UnitLinear)]
        weights: list[Any] = [layer.weight for layer in layers]
        weights = [weight.to_local() if hasattr(weight, "to_local") else weight for weight in weights]
        factors = []
        for weight in weights:
            norm = torch.linalg.vector_norm(weight, dim=tuple(range(1, weight.ndim)), keepdim=True)
            factors.append(math.sqrt(weight.shape[1:].numel()) / norm)
        if skipped is not None:
            factors = [torch.where(skipped > 0, 1.0, factor) for factor in factors]
        torch._foreach_mul_(weights, factors)

    def _influences(self, embedding: Tensor) -> list[Tensor | None]:
        """Return the ``influence`` of each block; None for all where blocks compute their own.

        In training one product is computed for all blocks, forward and backward, as many small ones keep a GPU waiting.
        """
        blocks: list[Any] = [block for each in (self.encoder, self.middle, self.decoder) for block in each]
        if not (self.training and torch.is_grad_enabled() and all(block.is_plain() for block in blocks)):
            return [None for _ in blocks]
        weight = torch.cat([block.influence.weight for block in blocks])
        gain = torch.cat([block.gain.expand(len(block.influence.weight)) for block in blocks])
        found = F.linear(embedding, unit(weight, gain / SILU)) + 1
        return list(found.split([len(block.influence.weight) for block in blocks], dim=1))

    def _run(self, block: nn.Module, *inputs: Tensor | None) -> Tensor:
        """Call a block; with ``recompute``, none of its intermediate results are kept for the backward pass."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)

    def _embedding(
        self, c_noise: Tensor, labels: Tensor | None, augment: Tensor | None, attributes: Tensor | None
    ) -> Tensor:
        """Embed noise level, class, augmentation and attributes as one vector for each sample, (n, embedding width).

        Its root mean square is `SILU`, which the layers that take it make up for.
        """
        embedding = self.embed(self.embed_noise(c_noise))
        if self.embed_label is not None:
            if labels is None:
                labels = torch.full_like(c_noise, -1, dtype=torch.long)
            classes = torch.arange(self.num_classes + 1, device=embedding.device)
            one_hot = (labels.where(labels >= 0, self.num_classes)[:, None] == classes).to(embedding)
            label = self.embed_label(one_hot * math.sqrt(self.num_classes + 1))
            embedding = (embedding + label) * math.sqrt(0.5)
        if self.embed_augment is not None and augment is not None:
            embedding = embedding + self.embed_augment(augment.to(embedding))
        if self.embed_attributes is not None and attributes is not None:
            embedding = embedding + self.embed_attributes(attributes.to(embedding))
        return F.silu(embedding)


class UnitConv2d(nn.Conv2d):
    """A convolution that keeps the size of images, without biases; weights of each output have the norm ``gain``."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, gain: float = 1.0) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        nn.init.normal_(self.weight)
        self.gain = gain

    def forward(self, x: Tensor, learned: Tensor | float = 1.0) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Convolve features (n, c, h, w); a ``learned`` gain (1,) multiplies the fixed one."""
        return F.conv2d(x, unit(self.weight, self.gain * learned), padding=self.padding)


class UnitLinear(nn.Linear):
    """A linear layer without biases; the weights of each output have the norm ``gain``."""

    def __init__(self, in_features: int, out_features: int, gain: float = 1.0) -> None:
        super().__init__(in_features, out_features, bias=False)
        nn.init.normal_(self.weight)
        self.gain = gain

    def forward(self, x: Tensor, learned: Tensor | float = 1.0) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Map vectors (n, in_features); a ``learned`` gain (1,) multiplies the fixed one."""
        return F.linear(x, unit(self.weight, self.gain * learned))


class Block(nn.Module):
    """A residual block: two convolutions, the channels between them scaled by the embedding; then attention.

    An encoder block normalises each pixel before the branch begins, and changes the number of channels before that. A
    decoder block changes it on the skip path alone.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_width: int,
        *,
        decodes: bool = False,
        attends: bool = False,
        resize: str = "",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.decodes = decodes
        self.reduces: bool = resize == "down"
        self.enlarges: bool = resize == "up"
        self.skip: UnitConv2d | None = None if in_channels == out_channels else UnitConv2d(in_channels, out_channels, 1)
        self.conv0: UnitConv2d = UnitConv2d(in_channels if decodes else out_channels, out_channels, 3, gain=1 / SILU)
        self.influence: UnitLinear = UnitLinear(embedding_width, out_channels, gain=1 / SILU)
        self.gain: nn.Parameter = nn.Parameter(torch.zeros(1))
        self.dropout: nn.Dropout = nn.Dropout(dropout)
        self.conv1: UnitConv2d = UnitConv2d(out_channels, out_channels, 3, gain=JOINS / SILU)
        self.attention: Attention | None = Attention(out_channels) if attends else None

    def is_plain(self) -> bool:
        """Return True if ``influence`` is a layer of this file, whose weights this process holds whole."""
        return type(self.influence) is UnitLinear and not hasattr(self.influence.weight, "full_tensor")

    def forward(self, x: Tensor, embedding: Tensor, influence: Tensor | None = None) -> Tensor:
        """Map features (n, in_channels, h, w), given embeddings (n, embedding width), to (n, out_channels, h', w').

        The ``influence`` of the embedding, factors of channels (n, out_channels), is computed, or given.
        """
        if self.reduces:
            x = F.avg_pool2d(x, 2)
        elif self.enlarges:
            x = F.interpolate(x, scale_factor=2.0)
        if not self.decodes:
            x = normalised(x if self.skip is None else self.skip(x))
        h = self.conv0(F.silu(x))
        factors = self.influence(embedding, self.gain) + 1 if influence is None else influence
        h = self.conv1(self.dropout(F.silu(h * factors[:, :, None, None])))
        if self.decodes and self.skip is not None:
            x = self.skip(x)
        x = torch.add(h, x, alpha=STAYS)
        if self.attention is not None:
            x = torch.add(self.attention(x), x, alpha=STAYS)
        return x if x.dtype == torch.float32 else x.clamp(-LARGEST, LARGEST)


class Attention(nn.Module):
    """A self-attention layer among all pixels, of normalised queries, keys and values."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads: int = next(num for num in range(1, channels + 1) if channels % num == 0 and channels <= HEAD * num)
        self.qkv: UnitConv2d = UnitConv2d(channels, 3 * channels, 1)
        self.proj: UnitConv2d = UnitConv2d(channels, channels, 1, gain=JOINS)

    def forward(self, x: Tensor) -> Tensor:
        """Let the pixels of features (n, c, h, w) attend to each other."""
        num, channels, height, width = x.shape
        # The fast attention kernels need contiguous queries, keys and values.
        qkv = self.qkv(x).permute(0, 2, 3, 1).reshape(num, height * width, 3, self.heads, -1)
        q, k, v = F.rms_norm(qkv.permute(2, 0, 3, 1, 4).contiguous(), qkv.shape[-1:], eps=EPSILON)
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.proj(out.reshape(num, height, width, channels).permute(0, 3, 1, 2))


class FourierFeatures(nn.Module):
    """An embedding of the noise level by cosines of random frequencies and phases, saved with the weights."""

    frequencies: Tensor
    phases: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(width))
        self.register_buffer("phases", torch.rand(width))

    def forward(self, c_noise: Tensor) -> Tensor:
        """Embed noise levels (n,) as (n, width), of a mean square of 1."""
        turns = c_noise.to(self.frequencies)[:, None] * self.frequencies + self.phases
        return (2 * math.pi * turns).cos() * math.sqrt(2)


def unit(weight: Tensor, gain: Tensor | float) -> Tensor:
    """Return weights (outputs, ...) divided by their norm for each output, times gains (1,), (outputs,) or a number."""
    rows = weight.shape[0]
    ones = [1] * (weight.ndim - 1)
    gains = gain.expand(rows).view(rows, *ones) if isinstance(gain, Tensor) else weight.new_full((rows, *ones), gain)
    if weight.is_contiguous():
        return torch._weight_norm(weight, gains)
    # Weights in channels-last memory stay there: torch's kernel would copy them.
    return torch._weight_norm(weight.permute(0, 2, 3, 1), gains).permute(0, 3, 1, 2)


def normalised(x: Tensor) -> Tensor:
    """Divide the channels of each pixel of features (n, c, h, w) by their root mean square."""
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        return PixelNorm.apply(x)  # pyright: ignore[reportReturnType]
    return F.rms_norm(x.permute(0, 2, 3, 1), x.shape[1:2], eps=EPSILON).permute(0, 3, 1, 2).to(x.dtype)


class PixelNorm(torch.autograd.Function):
    """A division of each pixel by its root mean square, in a third of the time that torch's own takes on CPUs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Divide features (n, c, h, w), and keep the result and the factors."""
        norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        factor = norm.square_().div_(x.shape[1]).add_(EPSILON).rsqrt_()
        result = x * factor
        ctx.save_for_backward(result, factor)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the gradient without its part along the result, times the factors."""
        result, factor = ctx.saved_tensors
        along = (gradient * result).mean(dim=1, keepdim=True)
        return torch.addcmul(gradient, result, along, value=-1).mul_(factor)


def concatenated(x: Tensor, skip: Tensor) -> Tensor:
    """Concatenate features along channels, scaled so that both contribute alike and the mean square stays 1.

    This is equation 103 with a share of a half; features of equally many channels stay as they are.
    """
    sides = [each.shape[1] for each in (x, skip)]
    if sides[0] != sides[1]:
        x, skip = (each * math.sqrt(sum(sides) / (2 * side)) for each, side in zip((x, skip), sides, strict=True))
    return torch.cat([x, skip], dim=1)
