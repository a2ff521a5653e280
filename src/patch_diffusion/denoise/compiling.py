"""Networks that torch compiles: what training and sampling share, and a denoiser whose network is compiled."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from copy import copy
from typing import Annotated as Float, Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.errors import option_error

BACKEND = "inductor"
"""The compiler of torch that makes kernels of a graph."""

_ATTRIBUTES = ("image_channels", "num_classes", "label_dropout", "augment_channels", "attribute_channels")
_ATTRIBUTES += ("paired_channels", "stride")
_WAYS = 8
"""Graphs of a shape in sampling, at most: with labels or without, with gradients or without, in each number format."""

_graphs: WeakKeyDictionary[Denoiser, dict[Any, Callable[..., Tensor]]] = WeakKeyDictionary()


def arguments(graphs: int) -> dict[str, Any]:
    """Return arguments of ``torch.compile`` for a function that becomes as many graphs, each made when first called.

    torch stops compiling after some graphs, by default 8, so these come on top of what it allows.
    """
    config: Any = torch._dynamo.config
    own: dict[str, Any] = {}
    if "isolate_recompiles" in inspect.signature(torch.compile).parameters:
        own = {"recompile_limit": config.cache_size_limit + graphs, "isolate_recompiles": True}
    else:
        config.cache_size_limit += graphs
    config.accumulated_cache_size_limit += graphs
    return {"dynamic": False, "backend": BACKEND, **own}


@contextmanager
def explain_failure(option: str) -> Iterator[None]:
    """Replace an error of the compiler in the with block by an InputError of one sentence, about this option."""
    from torch._dynamo.exc import TorchDynamoException

    try:
        yield
    except TorchDynamoException as error:
        reason = reason_of(error)
    except RuntimeError as error:
        if "torch.compile" not in str(error) and "Dynamo" not in str(error):  # as on a Python that is too new for it
            raise
        reason = reason_of(error)
    else:
        return
    raise option_error(option, f"cannot compile the network on this machine ({reason}): leave it out")


def reason_of(error: BaseException) -> str:
    """Return the first line of what went wrong, without the compiler's advice on where to look."""
    lines = str(getattr(error, "inner_exception", error)).strip().splitlines() or [type(error).__name__]
    return lines[0][:160].rstrip(".: ")


def compiled(model: Denoiser) -> Denoiser:
    """Return a denoiser with the weights of a model whose network is compiled, for one number of images of each shape.

    What is compiled is kept for as long as the model is there. The model itself stays as it is.

    >>> model = Denoiser(lambda x, c_noise, labels: x[:, :3])
    >>> compiled(compiled(model)).network is model.network
    False
    """
    if isinstance(model.network, CompiledNetwork):
        return model
    other = copy(model)
    other._modules = dict(model._modules)  # as a copy has the same dict
    other.network = CompiledNetwork(model.network, _graphs.setdefault(model, {}))
    return other


class CompiledNetwork(nn.Module):
    """A network that is called like the given one, with zeros added to batches that are smaller than one before.

    A batch of another size would be compiled anew. CPU threads do not share its batches, see `can_share`.

    Args:
        network: the network of a denoiser.
        graphs: compiled networks by the shapes of their inputs, to which new ones are added.
    """

    def __init__(self, network: Callable[..., Tensor], graphs: dict[Any, Callable[..., Tensor]]) -> None:
        super().__init__()
        self.network = network
        self._graphs = graphs
        self._most: dict[tuple[int, ...], int] = {}
        for name in _ATTRIBUTES:
            if hasattr(network, name):
                setattr(self, name, getattr(network, name))

    def forward(self, x: Float[Tensor, "n c *shape"], *told: Tensor | None) -> Float[Tensor, "n c_out *shape"]:
        """Return what the network makes of images, their noise levels and labels, all of n rows."""
        num, shape = len(x), tuple(x.shape[1:])
        most = self._most[shape] = max(num, self._most.get(shape, 0))
        # All are copied, full batches too, as a graph also depends on whether inputs were made in inference mode.
        inputs = [None if each is None else _with_rows(each, most) for each in (x, *told)]
        key = (self.network, most, shape)
        with explain_failure("compile"), _for_edits() if torch.is_grad_enabled() else nullcontext():
            if key not in self._graphs:
                self._graphs[key] = torch.compile(self.network, **arguments(_WAYS))
            return self._graphs[key](*inputs)[:num]


@contextmanager
def _for_edits() -> Iterator[None]:
    """Let torch make graphs that can be gone back through several times, inside the with block."""
    from torch._functorch import config  # not at the top, as it takes long

    with config.patch(donated_buffer=False), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")  # torch looks at it
        yield


def _with_rows(tensor: Tensor, num: int) -> Tensor:
    return F.pad(tensor, (*[0, 0] * (tensor.ndim - 1), 0, num - len(tensor)))
