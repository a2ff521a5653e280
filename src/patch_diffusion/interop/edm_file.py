"""Reading of published EDM and Patch-Diffusion files: their tensors and settings, under the published names.

There are three kinds of file, recognised by their first bytes: a pickle of whole objects, as EDM (arXiv 2206.00364) and
Patch Diffusion (arXiv 2304.12526) publish their networks; a torch file of tensors; a safetensors file of tensors, whose
metadata may hold the settings. Class names, plain values and tensors are taken from the objects of a pickle; the source
text that it carries along is ignored.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from patch_diffusion.errors import InputError
from patch_diffusion.interop.safe_pickle import Instance, Makers, plain_keys, printable, read_pickle

_ZIP = b"PK\x03\x04"
# Every torch file from before the zip format begins with this number, as a pickle of protocol 2.
_OLD_TORCH = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."


@dataclass(frozen=True)
class Published:
    """The tensors and settings in a published EDM or Patch-Diffusion file, under their published names.

    ``outer_class`` names the class of the preconditioning, ``inner_class`` that of the network in it; both are empty
    if the file holds only tensors.
    """

    weights: dict[str, Tensor]
    settings: dict[str, str | float] = field(default_factory=dict)
    outer_class: str = ""
    inner_class: str = ""


def read_published(path: Path) -> Published:
    """Read a published EDM or Patch-Diffusion network from a file, without running any code in the file.

    Raises:
        InputError: the file is missing, names something that no network needs, or holds no network.
    """
    if not path.is_file():
        raise InputError(f"there is no file at {path}")
    with path.open("rb") as file:
        start = file.read(16)
    if start.startswith((_ZIP, _OLD_TORCH)):
        return Published(_state_dict(path))
    if start[8:9] == b"{":
        return _from_safetensors(path)
    return _from_pickle(path)


def _from_pickle(path: Path) -> Published:
    content = read_pickle(path, _MAKERS)
    network = content.get("ema") if isinstance(content, dict) else None
    if not isinstance(network, Instance):
        raise InputError(f"{path} holds no network: a published file is a dictionary with the network as 'ema'")
    try:
        inner = network.state["_modules"].get("model")
        settings = {**_values(inner), **_values(network)} if inner else _values(network)
        weights = _tensors(network)
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise InputError(f"{path} does not hold its network as published files do: {printable(error)}") from None
    return Published(weights, settings, network.class_name, inner.class_name if inner else "")


def _values(module: Instance) -> dict[str, str | float]:
    """Return the constructor arguments and attributes of an unpickled module, by name, if they are text or numbers."""
    return _plain_settings({**module.state.get("_init_kwargs", {}), **module.state})


def _plain_settings(values: Mapping[str, Any]) -> dict[str, str | float]:
    """Return the items of a dict whose values are text or numbers, without integers that a float cannot hold."""
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, str | float) or (isinstance(value, int) and abs(value) < 2**53)
    }


def _tensors(network: Instance) -> dict[str, Tensor]:
    """Return the parameters and buffers of a module and its submodules by path: ``model.enc.16x16_conv.weight``."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    waiting = [("", network)]
    while waiting:
        place, module = waiting.pop()
        # A hostile file can hold a module inside itself.
        if id(module) in seen:
            raise ValueError("a module has two places")
        seen.add(id(module))
        passing = module.state.get("_non_persistent_buffers_set", ())
        for name, tensor in {**module.state["_parameters"], **module.state["_buffers"]}.items():
            if tensor is not None and name not in passing:
                if not isinstance(tensor, Tensor):
                    raise TypeError(f"{place}{name} is no tensor")
                found[place + name] = tensor
        waiting += [(f"{place}{name}.", inner) for name, inner in module.state["_modules"].items() if inner is not None]
    return found


def _from_safetensors(path: Path) -> Published:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no dictionary
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise InputError(f"{path} is damaged: {printable(error)}") from None
    settings = {name: _parsed(text) for name, text in metadata.items()}
    architecture = settings.pop("architecture", None)
    return Published(weights, _plain_settings({**settings, **(architecture if isinstance(architecture, dict) else {})}))


def _parsed(text: str) -> Any:
    """Parse a value in the metadata of a safetensors file as JSON; return the text itself if it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _state_dict(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a torch file by name, from the dict that it holds, or from the dict in that under 'ema'."""
    try:
        with path.open("rb") as file:
            content = _load(file)
    except InputError as error:
        raise error.reworded(f"{path} is refused, and nothing in it was run: {error}") from None
    except ValueError as error:
        raise InputError(f"{path} is damaged, or no torch file: {error}") from None
    if isinstance(content, Mapping) and isinstance(content.get("ema"), Mapping):
        content = content["ema"]
    if not isinstance(content, Mapping):
        raise InputError(f"{path} holds a {type(content).__name__} and no tensors by name")
    found = {name: tensor for name, tensor in content.items() if isinstance(name, str) and isinstance(tensor, Tensor)}
    for name, tensor in found.items():
        dense = tensor.layout == torch.strided and not tensor.is_meta
        if not dense or tensor.nbytes > tensor.untyped_storage().nbytes():
            raise InputError(f"{path} claims numbers for {printable(name, 80)} that are not in the file")
    return found


def _load(file: BinaryIO) -> Any:
    """Load a torch file without running any code in it; raise InputError if the file names other functions."""
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    # A hostile or damaged file can fail anywhere in torch's reader, with any exception.
    except Exception as error:
        if named := re.search(r"GLOBAL (\S+)", str(error)):
            raise InputError(f"it names {printable(named[1], 80)}, which no published network needs") from None
        raise ValueError(printable(error)) from None


def _persistent(fields: dict[str, Any]) -> Instance:
    """Return an inert record of a pickled object that carries its own source text, without that text."""
    if type(fields["class_name"]) is not str:
        raise TypeError("the name of a class is no text")
    return Instance(fields["class_name"], state=fields["state"])


def _dictionary(pairs: Iterable[tuple[Any, Any]] = ()) -> dict[Any, Any]:
    keys, values = zip(*pairs, strict=True) if pairs else ((), ())
    return dict(zip(plain_keys(keys), values, strict=True))


def _instance(name: str) -> Callable[..., Instance]:
    return lambda *arguments: Instance(name, arguments)


def _storage(content: bytes) -> Tensor:
    """Return the flat tensor that other tensors are views of; a pickle contains it as a torch file."""
    stored = _load(io.BytesIO(content))
    if not isinstance(stored, torch.TypedStorage | torch.UntypedStorage):
        raise TypeError(f"the data of a tensor is a {type(stored).__name__}")
    untyped = stored if isinstance(stored, torch.UntypedStorage) else stored._untyped_storage
    dtype = torch.uint8 if isinstance(stored, torch.UntypedStorage) else stored.dtype
    return torch.empty(0, dtype=dtype).set_(untyped)  # pyright: ignore[reportCallIssue, reportArgumentType]


def _tensor(stored: Tensor, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> Tensor:
    """Rebuild a pickled tensor as a view of its flat storage."""
    if not isinstance(stored, Tensor) or any(type(number) is not int for number in (offset, *shape, *strides)):
        raise TypeError("a tensor is not described by whole numbers")
    # A few bytes could otherwise claim to be a tensor of any size, by strides of zero.
    if math.prod(shape) > stored.numel():
        raise ValueError("a tensor is larger than its data")
    return stored.as_strided(shape, strides, offset)


def _numpy_scalar(dtype: Instance, content: bytes) -> int | float | bool:
    """Rebuild a number that was pickled as a numpy scalar, such as a setting that was computed by a square root."""
    code, order = dtype.arguments[0], dtype.state[1]
    if not re.fullmatch("[fiub][1248]", code) or order not in ("<", ">", "|"):
        raise ValueError(f"a number is of the type {printable(code, 20)}")
    return np.frombuffer(content, np.dtype(order + code))[0].item()


_MAKERS: Makers = {
    "torch_utils.persistence._reconstruct_persistent_obj": _persistent,
    "dnnlib.util.EasyDict": _dictionary,
    "collections.OrderedDict": _dictionary,
    "builtins.set": lambda items=(): set(plain_keys(items)),
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch.storage._load_from_bytes": _storage,
    "numpy.dtype": _instance("numpy.dtype"),
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy._core.multiarray.scalar": _numpy_scalar,
    **{
        name: _instance(name)
        for name in ("torch.nn.modules.container.ModuleDict", "torch.nn.modules.container.ModuleList")
    },
}
