"""The published U-Nets DDPM++, NCSN++ and ADM, built from one configurable residual block.

DDPM++ and NCSN++ are score-SDE's (arXiv 2011.13456), ADM is Dhariwal and Nichol's (arXiv 2105.05233), all as EDM uses
them (arXiv 2206.00364, table 7). They take images of any height and width divisible by their stride, and patches of
them, with their coordinates as two more input channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated as Float, Annotated as Int, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class Style:
    """The architecture choices by which the published U-Nets (DDPM++, NCSN++ and ADM) differ."""

    norm_epsilon: float = 1e-6
    residual_scale: float = math.sqrt(0.5)  # factor of each sum of two branches, which keeps its variance
    fourier: bool = False  # noise levels as random Fourier features, not as sines and cosines of fixed frequencies
    side_branch: bool = False  # the downsampled image is added to the encoder at each lower level
    filter: tuple[int, ...] = (1, 1)  # taps of the filter for downsampling and upsampling
    scale_and_shift: bool = False  # the embedding scales and shifts after the norm, or is added before it
    head_channels: int | None = None  # channels of an attention head; None: one head
    attends_in_whole_decoder: bool = False  # or only in the last decoder block of a level
    plain_resampling: bool = False  # no convolution on the skip path of a block that resizes
    cosines_first: bool = False  # cosines come before sines, and the last frequency is left out
    late_label: bool = False  # the label joins the embedding after its two layers, not before
    xavier: bool = True  # Xavier uniform initial weights, or PyTorch's defaults


STYLES = {
    "ddpmpp": Style(),
    "ncsnpp": Style(fourier=True, side_branch=True, filter=(1, 3, 3, 1)),
    "adm": Style(
        norm_epsilon=1e-5,
        residual_scale=1.0,
        scale_and_shift=True,
        head_channels=64,
        attends_in_whole_decoder=True,
        plain_resampling=True,
        cosines_first=True,
        late_label=True,
        xavier=False,
    ),
}


class UNet(nn.Module):
    """A U-Net that maps scaled noisy images and their coordinates to the raw network output F of the denoiser.

    Args:
        image_channels: channels of the images, in and out.
        width: channels at full resolution, a multiple of 4.
        multipliers: channels of each level as multiples of ``width``. Every level after the first halves height and
            width, so both must be multiples of ``stride`` = 2^(levels - 1).
        blocks: residual blocks per level.
        attention: levels with self-attention, 0 being full resolution; None: the level above the lowest. The middle of
            the network always has self-attention.
        dropout: probability of dropout in the residual blocks.
        kind: "ddpmpp", "ncsnpp" or "adm", see `Style`.
        num_classes: number of classes it is conditioned on; 0 for none.
        label_dropout: share of the labels, and of each attribute and paired input, that training leaves out, which
            makes guidance possible.
        augment_channels: length of an image's augmentation label (EDM, appendix F.2), see `Augment`; 0 for none.
        attribute_channels: length of the vector of an image's attributes, see `Attribute`; 0 for none.
        paired_channels: channels of the input that show paired inputs, see `PairedInput`; 0 for none.
        coords: if true, the input has the two coordinate channels.
        context: if true, it has image_channels + 1 more, for a small copy of the whole image, see `Denoiser`.

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
        kind: str = "ddpmpp",
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
        if kind not in STYLES:
            raise ValueError(f"network.kind of a U-Net is one of {', '.join(STYLES)}, not {kind}")
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
            "kind": kind,
            "width": width,
            "multipliers": tuple(multipliers),
            "blocks": blocks,
            "attention": tuple(attention),
            "dropout": dropout,
            "label_dropout": label_dropout,
        }
        self.style: Style = STYLES[kind]
        style = self.style

        noise_width, embedding_width = (2 if style.fourier else 1) * width, 4 * width
        self.embed_noise: nn.Module = (
            FourierFeatures(width) if style.fourier else Sinusoids(width, cosines_first=style.cosines_first)
        )
        self.embed_augment: nn.Linear | None = (
            nn.Linear(augment_channels, noise_width, bias=False) if augment_channels else None
        )
        self.embed_attributes: nn.Linear | None = (
            nn.Linear(attribute_channels, noise_width, bias=False) if attribute_channels else None
        )
        label_width = embedding_width if style.late_label else noise_width
        self.embed_label: nn.Linear | None = (
            nn.Linear(num_classes, label_width, bias=not style.late_label) if num_classes else None
        )
        self.embed: nn.Sequential = nn.Sequential(
            nn.Linear(noise_width, embedding_width), nn.SiLU(), nn.Linear(embedding_width, embedding_width), nn.SiLU()
        )

        def block(in_channels: int, out_channels: int, *, attends: bool = False, resize: str = "") -> ResidualBlock:
            return ResidualBlock(
                in_channels, out_channels, embedding_width, style, attends=attends, resize=resize, dropout=dropout
            )

        channels = width
        input_channels = image_channels + 2 * coords + (image_channels + 1) * context + paired_channels
        self.first: nn.Conv2d = nn.Conv2d(input_channels, channels, 3, padding=1)
        self.encoder: nn.ModuleList = nn.ModuleList()
        self.side: nn.ModuleList = nn.ModuleList()
        skips, side_channels = [channels], input_channels
        for level, multiplier in enumerate(multipliers):
            if level > 0:
                self.encoder.append(block(channels, channels, resize="down"))
                if style.side_branch:
                    self.side.append(SideConv(side_channels, channels, style.filter))
                    side_channels = channels
                skips.append(channels)
            for _ in range(blocks):
                self.encoder.append(block(channels, width * multiplier, attends=level in attention))
                channels = width * multiplier
                skips.append(channels)

        self.middle: nn.ModuleList = nn.ModuleList([block(channels, channels, attends=True), block(channels, channels)])

        # Every decoder block, except those that upsample, also takes an encoder output.
        self.decoder: nn.ModuleList = nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(multipliers))):
            for index in range(blocks + 1):
                attends = level in attention and (index == blocks or style.attends_in_whole_decoder)
                self.decoder.append(block(channels + skips.pop(), width * multiplier, attends=attends))
                channels = width * multiplier
            if level > 0:
                self.decoder.append(block(channels, channels, resize="up"))

        self.last_norm: nn.GroupNorm = group_norm(channels, style.norm_epsilon)
        self.last: nn.Conv2d = nn.Conv2d(channels, image_channels, 3, padding=1)
        self._initialise()

    def forward(
        self,
        x: Float[Tensor, "n channels height width"],
        c_noise: Float[Tensor, "n"],
        labels: Int[Tensor, "n"] | None = None,
        augment: Float[Tensor, "n augment_channels"] | None = None,
        attributes: Float[Tensor, "n attribute_channels"] | None = None,
    ) -> Float[Tensor, "n image_channels height width"]:
        """Run the U-Net on noisy images; return its raw output, see `Denoiser`.

        Args:
            x: images, two channels of coordinates, and those of the context and of paired inputs if it takes them;
                height and width are multiples of ``stride``.
            c_noise: the noise levels in the form that the network takes.
            labels: classes, -1 for "no class"; None if no image has a class.
            augment: augmentation labels; None means no augmentation, like zeros.
            attributes: vectors of attributes; None, like zeros, means that none is given.
        """
        if x.shape[-2] % self.stride or x.shape[-1] % self.stride:
            raise ValueError(f"height and width must be multiples of {self.stride}, not {x.shape[-2]} x {x.shape[-1]}")
        embedding = self._embedding(c_noise, labels, augment, attributes)
        influence = iter(self._influences(embedding))

        beside, side = x, iter(self.side)
        x = self.first(x)
        skips = [x]
        for block in self.encoder:
            x = self._run(block, x, embedding, next(influence))
            if block.reduces and self.style.side_branch:
                beside = x = (x + next(side)(beside)) * math.sqrt(0.5)
            skips.append(x)
        for block in self.middle:
            x = self._run(block, x, embedding, next(influence))
        for block in self.decoder:
            if not block.enlarges:
                x = torch.cat([x, skips.pop()], dim=1)
            x = self._run(block, x, embedding, next(influence))
        return self.last(F.silu(self.last_norm(x)))

    def _influences(self, embedding: Tensor) -> list[Tensor | None]:
        """Return the ``influence`` of each block; None for all where blocks compute their own.

        In training one product is computed for all blocks, forward and backward, as many small ones keep a GPU waiting.
        """
        blocks: list[Any] = [block for each in (self.encoder, self.middle, self.decoder) for block in each]
        if not (self.training and torch.is_grad_enabled() and all(block.is_plain() for block in blocks)):
            return [None for _ in blocks]
        weight, bias = (torch.cat([getattr(block.affine, name) for block in blocks]) for name in ("weight", "bias"))
        influences = F.linear(embedding, weight, bias)
        if not self.style.scale_and_shift:
            # Added here and not to the other bias, with which it would share its gradient's memory.
            influences = influences + torch.cat([block.conv0.bias for block in blocks])
        return list(influences.split([block.affine.out_features for block in blocks], dim=1))

    def _run(self, block: nn.Module, *inputs: Tensor | None) -> Tensor:
        """Call a block; with ``recompute``, none of its intermediate results are kept for the backward pass."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)

    def _embedding(
        self, c_noise: Tensor, labels: Tensor | None, augment: Tensor | None, attributes: Tensor | None
    ) -> Tensor:
        """Embed noise level, class, augmentation and attributes as one vector for each sample, (n, 4 width)."""
        embedding = self.embed_noise(c_noise)
        if self.embed_augment is not None and augment is not None:
            embedding = embedding + self.embed_augment(augment.to(embedding))
        if self.embed_attributes is not None and attributes is not None:
            embedding = embedding + self.embed_attributes(attributes.to(embedding))
        label = (
            None if self.embed_label is None else self.embed_label(self._one_hot(labels, c_noise.shape[0], embedding))
        )
        if label is not None and not self.style.late_label:
            embedding = embedding + label
        first, activation, second, last_activation = self.embed
        embedding = second(activation(first(embedding)))
        if label is not None and self.style.late_label:
            embedding = embedding + label
        return last_activation(embedding)

    def _one_hot(self, labels: Tensor | None, num: int, like: Tensor) -> Tensor:
        """Return class labels as one-hot vectors (n, num_classes), of unit variance; all zero for "no class"."""
        if labels is None:
            return like.new_zeros(num, self.num_classes)
        classes = torch.arange(self.num_classes, device=like.device)
        one_hot = (labels[:, None] == classes).to(like)
        return one_hot if self.style.late_label else one_hot * math.sqrt(self.num_classes)

    def _initialise(self) -> None:
        """Initialise the weights: Xavier uniform for DDPM++ and NCSN++, PyTorch's defaults for ADM.

        The end of each residual branch is zero in ADM, and nearly zero in the others, for gradients that are not zero.
        """
        if not self.style.xavier:
            for module in self.modules():
                ends = {ResidualBlock: ("conv1",), Attention: ("proj",), UNet: ("last",)}.get(type(module), ())
                for name in ends:
                    nn.init.zeros_(getattr(module, name).weight)
                    nn.init.zeros_(getattr(module, name).bias)
            return
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
    """A residual block: two convolutions, with an embedding added in between, plus a skip path; then attention."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_width: int,
        style: Style,
        *,
        attends: bool = False,
        resize: str = "",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.reduces: bool = resize == "down"
        self.enlarges: bool = resize == "up"
        self.style = style
        self.resize: nn.Module = {"": nn.Identity, "down": Reduce, "up": Enlarge}[resize](style.filter)
        self.norm0: nn.GroupNorm = group_norm(in_channels, style.norm_epsilon)
        self.conv0: nn.Conv2d = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.affine: nn.Linear = nn.Linear(embedding_width, out_channels * (2 if style.scale_and_shift else 1))
        self.norm1: nn.GroupNorm = group_norm(out_channels, style.norm_epsilon)
        self.dropout: nn.Dropout = nn.Dropout(dropout)
        self.conv1: nn.Conv2d = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        plain = in_channels == out_channels and (not resize or style.plain_resampling)
        self.skip: nn.Module = nn.Identity() if plain else nn.Conv2d(in_channels, out_channels, 1)
        self.attention: Attention | None = Attention(out_channels, style) if attends else None

    def is_plain(self) -> bool:
        """Return True if ``affine`` and ``conv0`` are torch's own layers, whose weights this process holds whole."""
        ours = type(self.affine) is nn.Linear and type(self.conv0) is nn.Conv2d
        return ours and not hasattr(self.affine.weight, "full_tensor")

    def forward(self, x: Tensor, embedding: Tensor, influence: Tensor | None = None) -> Tensor:
        """Map features (n, in_channels, h, w), given embeddings (n, embedding_width), to (n, out_channels, h', w').

        The ``influence`` of the embedding is computed, or given: then with the bias of the first convolution, unless it
        comes after the norm.
        """
        h = self.resize(F.silu(self.norm0(x)))
        if influence is None or self.style.scale_and_shift:
            h = self.conv0(h)
        else:
            h = F.conv2d(h, self.conv0.weight, padding=1)
        found = (self.affine(embedding) if influence is None else influence)[:, :, None, None]
        if self.style.scale_and_shift:
            scale, shift = found.chunk(2, dim=1)
            h = self.norm1(h) * (1 + scale) + shift
        else:
            h = self.norm1(h + found)
        h = self.conv1(self.dropout(F.silu(h)))
        x = (self.skip(self.resize(x)) + h) * self.style.residual_scale
        return x if self.attention is None else (x + self.attention(x)) * self.style.residual_scale


class Attention(nn.Module):
    """A self-attention layer among all pixels."""

    def __init__(self, channels: int, style: Style) -> None:
        super().__init__()
        self.heads: int = 1 if style.head_channels is None else max(channels // style.head_channels, 1)
        if channels % self.heads:
            raise ValueError(
                f"attention with heads of {style.head_channels} channels cannot split {channels}: choose network.width "
                "and network.multipliers so that their product divides"
            )
        self.norm: nn.GroupNorm = group_norm(channels, style.norm_epsilon)
        self.qkv: nn.Conv2d = nn.Conv2d(channels, 3 * channels, 1)
        self.proj: nn.Conv2d = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Let the pixels of features (n, c, h, w) attend to each other."""
        num, channels, height, width = x.shape
        # Channels of qkv are ordered (head, channel, q | k | v). The fast attention kernels need each of q, k and v
        # contiguous; the pixels of an image in channels-last memory are its tokens already.
        qkv = self.qkv(self.norm(x)).permute(0, 2, 3, 1).reshape(num, height * width, self.heads, -1, 3)
        q, k, v = qkv.permute(4, 0, 2, 1, 3).contiguous()
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.proj(out.reshape(num, height, width, channels).permute(0, 3, 1, 2))


class Reduce(nn.Module):
    """A downsampling layer to half the height and width: a filter, then every second pixel."""

    kernel: Tensor

    def __init__(self, taps: tuple[int, ...], padding: int | None = None) -> None:
        super().__init__()
        self.register_buffer("kernel", _kernel(taps), persistent=False)
        self.padding: int = (len(taps) - 1) // 2 if padding is None else padding

    def forward(self, x: Tensor) -> Tensor:
        """Downsample features (n, c, h, w) to (n, c, h / 2, w / 2)."""
        if self.kernel.shape[-1] == 2:
            return F.avg_pool2d(x, 2)
        return filtered(F.conv2d, x, self.kernel, self.padding)


class Enlarge(nn.Module):
    """An upsampling layer to twice the height and width, by a transposed convolution with a fixed filter."""

    kernel: Tensor

    def __init__(self, taps: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("kernel", 4 * _kernel(taps), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Upsample features (n, c, h, w) to (n, c, 2 h, 2 w)."""
        side = self.kernel.shape[-1]
        if side == 2:
            return F.interpolate(x, scale_factor=2.0)
        return filtered(F.conv_transpose2d, x, self.kernel, (side - 1) // 2)


def filtered(convolution: Callable[..., Tensor], x: Tensor, kernel: Tensor, padding: int) -> Tensor:
    """Filter each channel of images (n, c, h, w) separately with stride 2: downsample, or upsample if transposed.

    It computes in float32 under autocast on CPUs, where torch's grouped convolutions in bf16 take ten times as long.
    """

    def apply(x: Tensor) -> Tensor:
        channels = x.shape[1]
        return convolution(
            x, kernel.to(x.dtype).expand(channels, 1, -1, -1), stride=2, padding=padding, groups=channels
        )

    if x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        return apply(x)
    with torch.autocast("cpu", enabled=False):
        return apply(x.float()).to(x.dtype)


class SideConv(nn.Conv2d):
    """A step of NCSN++'s side branch to the next level: a convolution, then half the height and width."""

    def __init__(self, in_channels: int, out_channels: int, taps: tuple[int, ...]) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1 + (len(taps) - 1) // 2)
        self.reduce: Reduce = Reduce(taps, padding=0)

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Convolve and downsample features (n, in_channels, h, w) to (n, out_channels, h / 2, w / 2)."""
        return self.reduce(super().forward(x))


class Sinusoids(nn.Module):
    """A sinusoidal embedding of the noise level, at frequencies from 1 to 1/10000 (just above if cosines first)."""

    frequencies: Tensor

    def __init__(self, width: int, *, cosines_first: bool = False) -> None:
        super().__init__()
        exponents = torch.arange(width // 2, dtype=torch.float32) / (width // 2 - (0 if cosines_first else 1))
        self.register_buffer("frequencies", 1e-4**exponents, persistent=False)
        self.cosines_first = cosines_first

    def forward(self, c_noise: Tensor) -> Tensor:
        """Embed noise levels (n,) as (n, width)."""
        angles = c_noise.to(self.frequencies)[:, None] * self.frequencies
        waves = [angles.sin(), angles.cos()]
        return torch.cat(waves[::-1] if self.cosines_first else waves, dim=1)


class FourierFeatures(nn.Module):
    """A Fourier embedding of the noise level: sines and cosines at random frequencies, saved with the weights."""

    frequencies: Tensor

    def __init__(self, width: int, scale: float = 16.0) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(width) * scale)

    def forward(self, c_noise: Tensor) -> Tensor:
        """Embed noise levels (n,) as (n, 2 width)."""
        angles = 2 * math.pi * c_noise.to(self.frequencies)[:, None] * self.frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1)


class GroupNorm(nn.GroupNorm):
    """Group normalisation that returns features in their own dtype, and on CUDA in their own memory layout.

    On CPUs it computes in the dtype of its weights: torch's own takes four times as long if input and weights differ.
    On CUDA, autocast would make features float32, and so all that follows up to the next convolution, and torch's
    kernel would leave channels-last memory. The kernel computes means and variances in float32 in any case.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise features (n, c, h, w) by groups of channels."""
        if input.device.type == "cuda" and torch.compiler.is_dynamo_compiling():
            return self.in_parts(input)
        if input.device.type == "cuda" and input.dtype in (torch.bfloat16, torch.float16):
            return self.in_half(input)
        if input.dtype == self.weight.dtype or input.device.type != "cpu":
            return super().forward(input)
        return super().forward(input.to(self.weight.dtype)).to(input.dtype)

    def in_half(self, input: Tensor) -> Tensor:
        """Normalise by torch's kernel for features in bf16 or fp16, which wants its weights in the same format."""
        with torch.autocast(input.device.type, enabled=False):
            weight, bias = self.weight.to(input.dtype), self.bias.to(input.dtype)
            result = F.group_norm(input, self.num_groups, weight, bias, self.eps)
        last = input.is_contiguous(memory_format=torch.channels_last)
        return result.contiguous(memory_format=torch.channels_last) if last else result

    def in_parts(self, input: Tensor) -> Tensor:
        """Normalise by simple operations, which a compiler joins with those around them, in whatever memory layout."""
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        x = x.unflatten(1, (self.num_groups, -1))
        variance, mean = torch.var_mean(x, dim=(2, 3, 4), correction=0, keepdim=True)
        weight, bias = (each.view(1, self.num_groups, -1, 1, 1) for each in (self.weight, self.bias))
        scale = weight * (variance + self.eps).rsqrt()
        return (x * scale + (bias - mean * scale)).flatten(1, 2).to(input.dtype)


def group_norm(channels: int, epsilon: float) -> GroupNorm:
    """Make a group norm with as many groups as divide the channels, up to 32, each of at least 4 channels."""
    groups = max(n for n in range(1, max(1, min(32, channels // 4)) + 1) if channels % n == 0)
    return GroupNorm(groups, channels, eps=epsilon)


def _kernel(taps: tuple[int, ...]) -> Tensor:
    """Return the outer product of a filter with itself, normalized to sum 1, as a kernel (1, 1, len, len)."""
    line = torch.tensor(taps, dtype=torch.float32)
    square = torch.outer(line, line)
    return (square / square.sum())[None, None]
