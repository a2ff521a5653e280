"""The weights of a trained network, carried into one for other images: channels, coordinates, classes and so on.

The new network denoises at step 0 as its source does, wherever what they are told agrees:

- Images of k channels are a linear map away from those of c. For k > c the source's channels are repeated, and for
  k < c several of them share a new one. The first layer takes the map one way and the last layer the other way, so that
  on images whose channels are repeated in that way both networks do the same.
- What the source was not told (coordinates, a small copy, augmentation, conditions, paired inputs) has weights of zero.
- Classes of the same name keep their embedding. All others begin as "no class".
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated as Float, NamedTuple

import torch
from torch import Tensor, nn

from patch_diffusion.data.attributes import Attribute
from patch_diffusion.data.codec import PixelCodec
from patch_diffusion.data.paired import PairedInput, channels_of
from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.denoise.networks.dit import DiT
from patch_diffusion.denoise.networks.edm2 import EDM2UNet
from patch_diffusion.denoise.networks.timestep_unet import TimestepUNet
from patch_diffusion.denoise.networks.unet import UNet
from patch_diffusion.errors import InputError

Weights = dict[str, Tensor]


class Carried(NamedTuple):
    """A line of the table of what was carried: a part of the model, what it was and is, and how it was carried."""

    part: str
    change: str
    how: str


@dataclass(frozen=True)
class _Layout:
    """The places of what depends on the images in a kind of network.

    Args:
        inputs: the weights whose columns are input channels, and the names of the groups of channels in each.
        outputs: the weights and biases whose rows are image channels.
        labels: the weights of the embedding of classes.
        labels_bias: their bias; None if there is none.
        after: the bias to which "no class" is added where there are no classes any more, and the weights in between.
        augment: the weights that take the label of augmentation.
    """

    inputs: Mapping[str, tuple[str, ...]]
    outputs: tuple[str, ...]
    labels: str
    labels_bias: str | None
    after: tuple[str, str | None]
    augment: str = "embed_augment.weight"


_ALL = ("images", "coords", "context", "paired")


def _layout(network: nn.Module) -> _Layout:
    if isinstance(network, UNet):
        late = network.style.late_label
        return _Layout(
            inputs={"first.weight": _ALL, "side.0.weight": _ALL},
            outputs=("last.weight", "last.bias"),
            labels="embed_label.weight",
            labels_bias=None if late else "embed_label.bias",
            after=("embed.2.bias", None) if late else ("embed.0.bias", "embed.0.weight"),
        )
    if isinstance(network, DiT):
        return _Layout(
            inputs={
                "first.weight": ("images",),
                "embed_context.weight": ("context",),
                "embed_paired.weight": ("paired",),
            },
            outputs=("last.weight", "last.bias"),
            labels="embed_label.weight",
            labels_bias=None,
            after=("embed_noise.3.bias", None),
        )
    if isinstance(network, TimestepUNet):
        return _Layout(
            inputs={"unet.conv_in.weight": _ALL},
            outputs=("unet.conv_out.weight", "unet.conv_out.bias"),
            labels="unet.class_embedding.weight",
            labels_bias=None,
            after=("unet.time_embedding.linear_2.bias", None),
        )
    if isinstance(network, EDM2UNet):  # weights are divided by their norms, so that no column can be added or left out
        return _Layout(inputs={}, outputs=(), labels="embed_label.weight", labels_bias=None, after=("", None))
    raise InputError(f"weights are carried between networks of this package, and this is a {type(network).__name__}")


def carry(
    source: Denoiser,
    target: Denoiser,
    *,
    class_names: Sequence[str] = (),
    resolution: tuple[int, ...] | None = None,
) -> list[Carried]:
    """Load the weights of a trained model into a new network of the same shape; return the table of what was carried.

    Args:
        source: the trained model, on the CPU.
        target: the new model, on the CPU, of the same options of the network; other images are told apart by its
            attributes.
        class_names: the names of the classes of the target; empty if they are numbers.
        resolution: shape of the images of the target, for the table.

    Raises:
        InputError: the networks are of other shapes, or one denoises latents and the other pixels.

    >>> old, new = (Denoiser(UNet(channels, 8, (1,), 1)) for channels in (3, 1))
    >>> [row.change for row in carry(old, new) if row.part == "channels"]
    ['3 -> 1']
    """
    layout, before = _layout(source.module), _Facts.of(source, source.class_names)
    now = _Facts.of(target, tuple(class_names) if target.num_classes else ())
    if isinstance(source.module, EDM2UNet) and before != now:
        raise InputError(
            "a network of kind edm2 is trained on with the same channels, coordinates, classes, conditions and "
            "augmentation only, as its layers are normalised"
        )
    old, new = source.module.state_dict(), target.module.state_dict()
    carried = {name: tensor for name, tensor in old.items() if name in new and tensor.shape == new[name].shape}
    for name in layout.inputs.keys() & old.keys() & new.keys():
        carried[name] = _inputs(old[name], layout.inputs[name], before, now)
    if before.columns != now.columns:  # the last layer alone, so that others learn
        attributes = {name: tensor for name, tensor in new.items() if name.startswith("embed_attributes")}
        last = max(attributes, default="")
        carried |= {name: torch.zeros_like(each) if name == last else each for name, each in attributes.items()}
    for name in (*layout.inputs, layout.augment):
        if name in new and name not in carried:
            carried[name] = torch.zeros_like(new[name])
    for name in layout.outputs:
        carried[name] = _outputs(old[name], before, now)
    carried |= _labels(source.module, old, new, layout, before, now)
    if wrong := sorted(new.keys() - carried.keys()):
        raise InputError(f"the network to train on from has another shape: {wrong[0]} does not fit")
    target.module.load_state_dict(carried)
    return _table(source, before, now, class_names, resolution)


class _Facts(NamedTuple):
    """The facts of a model that its network's shape depends on, beside its options."""

    channels: int
    coords: bool
    context: bool
    classes: tuple[str, ...]
    augment: int
    columns: tuple[Attribute, ...]
    inputs: tuple[PairedInput, ...]

    @classmethod
    def of(cls, model: Denoiser, class_names: tuple[str, ...]) -> _Facts:
        classes = class_names or tuple(map(str, range(model.num_classes)))
        assert model.image_channels is not None  # networks of this package have it
        has_context = getattr(model.network, "context", False)
        told = (model.columns, model.inputs)
        return cls(model.image_channels, model.coords, has_context, classes, model.augment_channels, *told)

    def group(self, name: str) -> int:
        """Return the number of input channels of a group."""
        return {
            "images": self.channels,
            "coords": 2 * self.coords,
            "context": (self.channels + 1) * self.context,
            "paired": channels_of(self.inputs),
        }[name]


def _shared(before: int, now: int) -> Float[Tensor, "{before} {now}"]:
    """Return the matrix of which channels, before (rows) and now (columns), stand for each other: 1, else 0."""
    places = torch.arange(max(before, now))
    matrix = torch.zeros(before, now)
    matrix[places % before, places % now] = 1.0
    return matrix


def channel_means(means: Sequence[float], now: int) -> tuple[float, ...]:
    """Return the mean of each channel of the new images, from the means of the source's, or one for all of them."""
    if len(means) in (1, now):
        return tuple(means)
    matrix = _shared(len(means), now).T
    return tuple((matrix @ torch.tensor(means) / matrix.sum(dim=1)).tolist())


def _inputs(weight: Tensor, groups: Sequence[str], before: _Facts, now: _Facts) -> Tensor:
    """Return the weight of a first layer (out, in, ...) for the channels that the network is given now."""
    images = _shared(before.channels, now.channels)
    images = images / images.sum(dim=1, keepdim=True)
    matrices = {"images": images, "coords": torch.eye(2), "context": torch.block_diag(images, torch.ones(1, 1))}
    if before.inputs == now.inputs:
        matrices["paired"] = torch.eye(channels_of(now.inputs))
    blocks = [
        matrices[name]
        if name in matrices and before.group(name) and now.group(name)
        else torch.zeros(before.group(name), now.group(name))
        for name in groups
    ]
    matrix = torch.block_diag(*blocks).to(weight)
    # A column of a transformer is a pixel of a token, and its columns go by channels first.
    columns = weight.unflatten(1, (len(matrix), -1))
    return torch.einsum("oip...,ij->ojp...", columns, matrix).flatten(1, 2).contiguous()


def _outputs(weight: Tensor, before: _Facts, now: _Facts) -> Tensor:
    """Return the weight or bias (out, ...) of a last layer for the channels of the images now."""
    matrix = _shared(before.channels, now.channels).T
    matrix = (matrix / matrix.sum(dim=1, keepdim=True)).to(weight)
    rows = weight.unflatten(0, (before.channels, -1))
    return torch.einsum("ji,ip...->jp...", matrix, rows).flatten(0, 1).contiguous()


def _labels(network: nn.Module, old: Weights, new: Weights, layout: _Layout, before: _Facts, now: _Facts) -> Weights:
    """Return the weights of the embedding of classes, and what follows it, for the classes now."""
    if before.classes == now.classes:
        return {}
    one_hot = isinstance(network, UNet)
    late = isinstance(network, UNet) and network.style.late_label

    def unit(num: int) -> float:
        return math.sqrt(num) if one_hot and not late else 1.0

    if not before.classes:
        return {name: torch.zeros_like(new[name]) for name in (layout.labels, layout.labels_bias) if name in new}
    vectors = old[layout.labels]
    vectors, none = (vectors.T * unit(len(before.classes)), 0.0) if one_hot else (vectors[:-1], vectors[-1])
    if getattr(network, "label_dropout", 0.0) == 0:  # it has never learned what no class is
        none = vectors.mean(dim=0)
    none = none + torch.zeros_like(vectors[0])
    bias = old[layout.labels_bias] if layout.labels_bias is not None else torch.zeros_like(none)
    after, between = layout.after
    if not now.classes:
        added = none + bias if between is None else old[between] @ (none + bias)
        return {after: old[after] + added}
    found = {name: vectors[place] for place, name in enumerate(before.classes)}
    rows = torch.stack([found.get(name, none) for name in now.classes])
    if not one_hot:
        return {layout.labels: torch.cat([rows, none[None]])}
    kept = {layout.labels: ((rows - none) / unit(len(now.classes))).T.contiguous()}
    return kept | ({after: old[after] + none} if layout.labels_bias is None else {layout.labels_bias: bias + none})


def _table(
    source: Denoiser, before: _Facts, now: _Facts, class_names: Sequence[str], resolution: tuple[int, ...] | None
) -> list[Carried]:
    """Return the lines of the table of what was carried."""
    num = sum(parameter.numel() for parameter in source.module.parameters())
    rows = [Carried("weights", f"{num:,}", "carried")]
    if before.channels == now.channels:
        how = "carried as they are"
    elif now.channels > before.channels:
        how = "shared out in the first layer, repeated in the last"
    else:
        how = "summed in the first layer, averaged in the last"
    rows.append(Carried("channels", _arrow(before.channels, now.channels), how))
    for part, was, has in (
        ("coordinates", before.coords, now.coords),
        ("small copy", before.context, now.context),
        ("augmentation", before.augment > 0, now.augment > 0),
        ("conditions", bool(before.columns), bool(now.columns)),
        ("paired inputs", bool(before.inputs), bool(now.inputs)),
    ):
        if was or has:
            how = "carried" if was and has else "new, with weights of zero" if has else "not carried"
            others = {
                "augmentation": before.augment != now.augment,
                "conditions": before.columns != now.columns,
                "paired inputs": before.inputs != now.inputs,
            }
            if was and has and others.get(part):
                how = "not carried: other kinds; new, with weights of zero"
            rows.append(Carried(part, _arrow(_yes(was), _yes(has)), how))
    if before.classes or now.classes:
        kept = len(set(before.classes) & set(now.classes))
        told = {
            f"carried by {'name' if class_names or source.class_names else 'number'}": kept,
            "new, which begin as 'no class'": len(now.classes) - kept,
            "not carried": len(before.classes) - kept,
        }
        how = "; ".join(f"{number} {words}" for words, number in told.items() if number)
        rows.append(Carried("classes", _arrow(len(before.classes), len(now.classes)), how))
    if source.resolution is not None and resolution is not None:
        shapes = ["x".join(map(str, each)) for each in (source.resolution, resolution)]
        rows.append(Carried("resolution", _arrow(*shapes), "the same weights at every resolution"))
    mean = " ".join(f"{number:g}" for number in source.mean_data or (0.0,))
    rows.append(
        Carried(
            "noise", source.process.name, f"sigma_data {source.sigma_data:.4g} and mean {mean} of the source are kept"
        )
    )
    return rows


def table(rows: Iterable[Mapping[str, str]]) -> list[str]:
    """Return a table of what was carried as lines of at most 80 columns.

    >>> table([{"part": "channels", "change": "3 -> 1", "how": "summed"}])
    ['channels      3 -> 1: summed']
    """
    lines: list[str] = []
    for row in rows:
        text = ": ".join(filter(None, (row["change"], row["how"])))
        first, *others = textwrap.wrap(text, 66, break_on_hyphens=False)
        lines += [f"{row['part']:<14}{first}", *(" " * 14 + other for other in others)]
    return lines


def check_kind(source: Denoiser, codec: object) -> None:
    """Raise InputError if a source denoises latents and the images to train on are pixels, or the other way around."""
    kinds = ["pixels" if isinstance(each, PixelCodec) else "latents" for each in (source.codec, codec)]
    if kinds[0] != kinds[1]:
        raise InputError(f"the model to train on from denoises {kinds[0]}, and these images are {kinds[1]}")


def _arrow(before: object, now: object) -> str:
    return str(now) if before == now else f"{before} -> {now}"


def _yes(has: bool) -> str:
    return "yes" if has else "no"
