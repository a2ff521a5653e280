"""Files in the layout that networks were published in, and files that only look like it."""

import io
import pickle
import struct
import sys
import types
from collections import OrderedDict
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from patch_diffusion.config import Network
from patch_diffusion.interop.edm_import import Architecture, module_names

BLOCK_PARTS = {"attention.norm": "norm2", "attention.qkv": "qkv", "attention.proj": "proj"}


class EasyDict(dict):
    """The published settings are one of these."""


class Persistent(nn.Module):
    """A module that carries its own source text, as published ones do."""

    def __init__(self, class_name, **settings):
        super().__init__()
        self.class_name = class_name
        self._init_args = ()
        self._init_kwargs = EasyDict(settings)
        self.skip_scale = np.sqrt(0.5)

    def __reduce__(self):
        state = {name: value for name, value in self.__dict__.items() if name != "class_name"}
        fields = {
            "type": "class",
            "version": 6,
            "module_src": "raise SystemExit('the source text of the file was run')",
            "class_name": self.class_name,
            "state": state,
        }
        return _reconstruct_persistent_obj, (EasyDict(fields),)


def _reconstruct_persistent_obj(fields):
    return fields


@contextmanager
def published_modules():
    """The modules that published files name, for the time of writing one."""
    names = {"torch_utils.persistence": _reconstruct_persistent_obj, "dnnlib.util": EasyDict}
    before = {content: content.__module__ for content in names.values()}
    for name, content in names.items():
        module = sys.modules[name] = types.ModuleType(name)
        setattr(module, content.__name__, content)
        content.__module__ = name
        sys.modules.setdefault(name.partition(".")[0], types.ModuleType(name.partition(".")[0]))
    try:
        yield
    finally:
        for content, module in before.items():
            content.__module__ = module
        for name in [*names, "torch_utils", "dnnlib"]:
            del sys.modules[name]


def published_network(weights, outer_class, inner_class, outer=(), inner=()):
    """Modules as published from weights by published names without ``model.``; ``outer`` and ``inner`` are settings."""
    outer, inner = dict(outer), dict(inner)
    model = Persistent(inner_class, **inner)
    model.label_dropout = inner.get("label_dropout", 0)
    network = Persistent(outer_class, model_type=inner_class, **outer, **inner)
    for name, value in outer.items():
        setattr(network, name, value)
    network.model = model
    for name, tensor in weights.items():
        *places, last = name.split(".")
        module = model
        for depth, place in enumerate(places):
            if place not in module._modules:
                container = depth == 0 and place in ("enc", "dec")
                module.add_module(place, nn.ModuleDict() if container else Persistent("UNetBlock"))
            module = module._modules[place]
        if isinstance(tensor, Reduced):
            module._parameters[last] = tensor
        elif last in ("resample_filter", "freqs"):
            module.register_buffer(last, tensor)
        else:
            module.register_parameter(last, nn.Parameter(tensor, requires_grad=False))
    return network


def write_published(path, network, protocol=4, **others):
    """A file as published: a dictionary with the network as ``ema``."""
    content = {"ema": network, "dataset_kwargs": EasyDict(path="data.zip", xflip=False), "loss_fn": None, **others}
    with published_modules(), path.open("wb") as file:
        pickle.dump(content, file, protocol=protocol)
    return path


def published_weights(unet, resolution):
    """The weights of one of our U-Nets by their published names, without ``model.``."""
    settings = unet.settings
    inputs = unet.first.in_channels
    architecture = Architecture(
        Network(**{name: settings[name] for name in ("kind", "width", "multipliers", "blocks", "attention")}),
        resolution=resolution,
        image_channels=unet.image_channels,
        coords=inputs > unet.image_channels,
        num_classes=unet.num_classes,
        augment_channels=unet.augment_channels,
    )
    published = {ours: name for name, ours in module_names(architecture).items()}
    weights = {}
    for name, tensor in unet.state_dict().items():
        module = max((ours for ours in published if name.startswith(ours + ".")), key=len)
        inside = name.removeprefix(module + ".")
        for ours, theirs in {**BLOCK_PARTS, "frequencies": "freqs"}.items():
            inside = inside.replace(ours, theirs)
        weights[f"{published[module]}.{inside}"] = tensor.clone()
    return weights


class Reduced:
    """Becomes, in a pickle, a call of ``function`` with the arguments."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def stored_tensor(storage, shape, strides, offset=0):
    """A tensor as published files hold it: a view of what the torch file ``storage`` has."""
    stored = Reduced(torch.storage._load_from_bytes, storage)
    return Reduced(torch._utils._rebuild_tensor_v2, stored, offset, shape, strides, False, OrderedDict())  # pyright: ignore[reportAttributeAccessIssue]


def torch_file(content, *, new=False):
    """What ``torch.save`` writes; storages in pickles are in its old format."""
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=new)
    return file.getvalue()


def text(words):
    """A text, as an operation of a pickle."""
    return b"X" + struct.pack("<I", len(words)) + words.encode()
