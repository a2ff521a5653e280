"""A GPU that is not there, on a CPU build of torch, which shows where a program would wait for one or fail on one.

Tensors of the host are torch's own. A tensor on the pretended device says that it is there, and holds its numbers in a
tensor of the host, so that all that depends on numbers goes on as it would. Modes of torch, in every thread, see each
operation, and note what a GPU could not do or would wait for: these are the events of `Record`.

Nothing is shown of backward kernels, since autograd in a CPU build refuses nodes of another device: `backward` gives
gradients of one small number. Nothing is shown of speed, of kernels, or of the order of work on a device.
"""

from __future__ import annotations

import ctypes
import platform
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

READS_BACK = "the host reads a result"
TO_DEVICE = "a copy to the device waits"
UNSAFE = "a copy to the device that torch may make after the memory is free"
MIXED = "tensors of two devices"
GENERATOR = "a generator of another device"
NO_TYPE = "a type that the device lacks"
SYNCHRONIZES = "the host waits for all work"

STAGED = 2**16
"""Bytes of pageable memory that CUDA takes over at once; a larger copy waits, whether it is asked to or not."""

_GRADIENT = 1e-3
_KNOWN = ("2.13.",)  # versions of torch with which this was tried
_REGISTRY = "_ZN3c104impl26device_guard_impl_registryE"
_PLACES = {"cuda": 1, "mps": 13, "meta": 14}  # of devices in the registry of guards
_UNSIGNED = frozenset([torch.uint16, torch.uint32, torch.uint64])


@dataclass(frozen=True)
class Rules:
    """The rules of a kind of device.

    Args:
        lacks: types that the device does not hold.
        only_copies: types that it holds and converts, but has few other kernels for.
        queues_copies: True if a copy to the device may be queued; where it may not, it always waits, and rightly.
    """

    lacks: frozenset[torch.dtype] = frozenset()
    only_copies: frozenset[torch.dtype] = frozenset()
    queues_copies: bool = True


RULES = {
    # On CUDA, indexing is not implemented for the larger types without sign.
    "cuda": Rules(only_copies=_UNSIGNED),
    # Torch before 2.9 has none of them on Apple GPUs, and copies that are not awaited go wrong: pytorch#189690.
    "mps": Rules(lacks=_UNSIGNED | {torch.float64, torch.complex128}, queues_copies=False),
}
"""The rules by kind of device."""


class Event(NamedTuple):
    """An event: what a GPU could not do or would wait for, the file and function of the package, and the details."""

    kind: str
    where: str
    details: str = ""

    def __str__(self) -> str:
        return f"{self.kind}: {self.where} ({self.details})"


@dataclass
class Record:
    """The events on a pretended device, of all threads, in order."""

    events: list[Event] = field(default_factory=list)

    def add(self, kind: str, operation: object, tensor: torch.Tensor | None = None) -> None:
        """Note an event, with the innermost function of the package that is being called."""
        where, line = _caller()
        shape = "" if tensor is None else f", {str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
        self.events.append(Event(kind, where, f"line {line}, {operation}{shape}"))

    def take(self) -> list[Event]:
        """Return the events since the last call."""
        found, self.events[:] = [*self.events], []
        return found


def told(events: list[Event]) -> str:
    """Return the events as lines of text, equal ones once, with their number."""
    return "\n".join(f"{number} x {event}" for event, number in sorted(Counter(events).items()))


class Held(torch.Tensor):
    """A tensor on a pretended device, whose numbers are in ``held``, a tensor of the host."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor, device: torch.device) -> Held:
        """Make a tensor that says that it is on the device, with the shape, strides and type of ``held``."""
        made = torch.Tensor._make_wrapper_subclass(  # pyright: ignore[reportAttributeAccessIssue]
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=device,
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Refuse an operation outside of `pretended`, whose mode otherwise comes first."""
        raise RuntimeError(f"{func}: the pretended device is gone")

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"Held({self.held}, {self.device})"

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        """Copy the numbers; a parameter stays one."""
        copied = memo.get(id(self))
        if copied is None:
            copied = Held(self.held.clone(), self.device)
            if isinstance(self, torch.nn.Parameter):
                copied = torch.nn.Parameter(copied, self.requires_grad)
            memo[id(self)] = copied
        return copied

    def untyped_storage(self) -> torch.UntypedStorage:
        """Return the memory of the numbers, which pieces of one tensor share."""
        return self.held.untyped_storage()

    def tolist(self) -> Any:
        """Copy the numbers to the host, as torch does before it makes a list of them."""
        return self.cpu().tolist()

    def backward(self, *args: Any, **kwargs: Any) -> None:
        """Add a gradient of one number to each parameter that this tensor was computed from."""
        for leaf in _leaves(self):
            gradient = torch.full_like(leaf, _GRADIENT)
            leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient


class _Device(TorchDispatchMode):
    """A mode that computes all operations on the host, and notes the events of the pretended device.

    Args:
        device: the pretended device, with an index.
        record: where events are noted.
        staged: see `STAGED`.
    """

    def __init__(self, device: torch.device, record: Record, staged: int) -> None:
        super().__init__()
        self.device, self.record, self.staged, self.rules = device, record, staged, RULES[device.type]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute an operation, whose result is on the device if its inputs are, or if it asks for that."""
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled() and _is_made_of_others(func):  # autograd otherwise takes it apart
            with self:
                return func.decompose(*args, **kwargs)
        tensors: list[torch.Tensor] = []

        def held(tensor: torch.Tensor) -> torch.Tensor:
            tensors.append(tensor)
            return tensor.held if isinstance(tensor, Held) else tensor

        on_host = _mapped(held, args), _mapped(held, kwargs)
        asked = kwargs.get("device")
        there = any(isinstance(each, Held) for each in tensors)
        if not there and not self._is_there(asked):
            return _on_host(func, *on_host)
        if asked is not None:
            there = self._is_there(asked)
            on_host[1]["device"] = torch.device("cpu")
        name = func.overloadpacket.__name__
        self._note(func, name, args, kwargs, tensors, there)
        known = {id(each.held if isinstance(each, Held) else each): each for each in tensors}

        def made(tensor: torch.Tensor) -> torch.Tensor:
            if id(tensor) not in known:
                known[id(tensor)] = self._made(tensor) if there else tensor
            return known[id(tensor)]

        result = _mapped(made, func(*on_host[0], **on_host[1]))
        self._note_types(func, name, list(known.values()))
        return result

    def _is_there(self, asked: torch.device | None) -> bool:
        """Return True for the pretended device; the borrowed guard says "meta" for the current device."""
        return asked is not None and torch.device(asked).type in (self.device.type, "meta")

    def _made(self, tensor: torch.Tensor) -> Held:
        """Return the result of an operation on the device; inference mode knows it as one that was made before."""
        with torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext():
            return Held(tensor, self.device)

    def _note(
        self, func: Any, name: str, args: Any, kwargs: dict[str, Any], tensors: list[torch.Tensor], there: bool
    ) -> None:
        """Note what an operation would wait for, or that it has tensors of two devices."""
        if name in ("_to_copy", "copy_"):
            source, to_device = (args[1], isinstance(args[0], Held)) if name == "copy_" else (args[0], there)
            waits = not (kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]))
            if isinstance(source, Held) and not to_device:
                self.record.add(READS_BACK, f"{func}{'' if waits else ' not awaited'}", source)
            elif not isinstance(source, Held) and to_device:
                kind = args[0].dtype if name == "copy_" else kwargs.get("dtype") or source.dtype
                self._note_copy(func, source, kind, waits)
        elif name in _READING:
            self.record.add(READS_BACK, func, tensors[0])
        elif name in _INDEXING:
            self._note_index(func, args)
        elif "device" not in kwargs and name != "lift_fresh":
            for each in tensors:
                if each.ndim and not isinstance(each, Held):
                    self.record.add(MIXED, func, each)

    def _note_copy(self, func: Any, source: torch.Tensor, kind: torch.dtype, waits: bool) -> None:
        """Note a copy to the device that is awaited where it need not be, or is not where it must be."""
        if not self.rules.queues_copies:
            if not waits:
                self.record.add(UNSAFE, func, source)
        elif waits:
            self.record.add(TO_DEVICE, func, source)
        # Torch converts on the host, into memory that is not pinned.
        elif (not _is_pinned(source) or kind != source.dtype) and source.nbytes > self.staged:
            self.record.add(TO_DEVICE, f"{func} of more than {self.staged:,} bytes of pageable memory", source)

    def _note_index(self, func: Any, args: Any) -> None:
        """Note an index that is a mask, whose number of places the host must know, or that is on the host."""
        for index in args[1] if isinstance(args[1], list | tuple) else [args[1]]:
            if isinstance(index, torch.Tensor) and not isinstance(index, Held):
                self.record.add(TO_DEVICE, f"{func} by an index on the host", index)
            if isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8):
                self.record.add(READS_BACK, f"{func} by a mask", index)
        for value in args[2:3]:
            if isinstance(value, torch.Tensor) and not isinstance(value, Held) and value.ndim:
                self.record.add(MIXED, func, value)

    def _note_types(self, func: Any, name: str, tensors: list[torch.Tensor]) -> None:
        """Note a type that has no kernel on the device, or that the device lacks altogether."""
        for each in tensors:
            has_no_kernel = each.dtype in self.rules.only_copies and name not in _NO_KERNEL
            if (has_no_kernel or each.dtype in self.rules.lacks) and isinstance(each, Held):
                self.record.add(NO_TYPE, func, each)
                return


_READING = {
    *("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "unique_dim", "_unique", "_unique2"),
    *("unique_consecutive", "unique_dim_consecutive", "bincount", "_linalg_check_errors", "item"),
}
"""Operations whose result, or the size of it, the host must know."""

_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}

_NO_KERNEL = {
    *("alias", "as_strided", "chunk", "clone", "contiguous", "copy_", "detach", "diagonal", "empty", "empty_like"),
    *("empty_strided", "expand", "lift_fresh", "new_empty", "new_empty_strided", "permute", "select", "slice", "split"),
    *("split_with_sizes", "squeeze", "t", "transpose", "unbind", "unfold", "unsqueeze", "view", "_to_copy"),
    *("_reshape_alias", "_unsafe_view"),
}
"""Operations that make views and copies, which every type has."""


class _Generators(TorchFunctionMode):
    """A mode that notes random numbers that are drawn on one device by a generator of another one."""

    def __init__(self, record: Record) -> None:
        super().__init__()
        self.record = record

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of torch."""
        kwargs = kwargs or {}
        generator = kwargs.get("generator")
        if generator is not None:
            like = args[0] if args and isinstance(args[0], torch.Tensor) else None
            device = torch.device(kwargs.get("device") or ("cpu" if like is None else like.device))
            if device.type != generator.device.type:
                self.record.add(GENERATOR, f"{func.__name__} on {device} by one of {generator.device}")
        return func(*args, **kwargs)


class _Generator(torch.Generator):
    """A generator that says that it is on a device, and draws on the host."""

    named: torch.device

    def __new__(cls, device: torch.device | str = "cpu") -> _Generator:
        """Make a generator of the host with the name of a device."""
        made = super().__new__(cls, "cpu")  # pyright: ignore[reportCallIssue]
        made.named = torch.device(device)
        return made

    @property
    def device(self) -> torch.device:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The device that was asked for."""
        return self.named


def why_not(kind: str) -> str | None:
    """Return why a device of this kind cannot be pretended here; None if it can."""
    if platform.system() != "Linux":
        return "a GPU is pretended on Linux only"
    if not torch.__version__.startswith(_KNOWN):
        return (
            f"a GPU is pretended by what is known of the inside of torch {', '.join(_KNOWN)}, not {torch.__version__}"
        )
    if torch.backends.cuda.is_built() or torch.backends.mps.is_built():
        return f"this torch is built for real GPUs: no {kind} is pretended"
    return None if _guards() else "this torch has no registry of device guards as it is known"


@contextmanager
def pretended(kind: str, *, staged: int = STAGED) -> Iterator[Record]:
    """Pretend in the with block that there is a GPU, of CUDA or of Apple ("mps"); yield the record of its events.

    Args:
        kind: "cuda" or "mps".
        staged: see `STAGED`; with fewer bytes, small batches show what large ones do.
    """
    device, record = torch.device(kind, 0), Record()

    def modes() -> ExitStack:  # each thread has its own
        entered = ExitStack()
        entered.enter_context(_Generators(record))
        entered.enter_context(_Device(device, record, staged))
        return entered

    with ExitStack() as stack:
        stack.enter_context(_guarded(kind))
        for target, value in {**_EVERYWHERE, **_ANSWERS[kind], **_waits(kind, record)}.items():
            stack.enter_context(patch(target, value, create=True))
        stack.enter_context(patch("torch.Generator", _Generator))
        stack.enter_context(patch("torch.autograd.grad", _gradients(torch.autograd.grad)))
        stack.enter_context(patch("threading.Thread.run", _within(threading.Thread.run, modes)))
        stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
        _call_until_closed(stack, torch._C._set_only_lift_cpu_tensors)
        _call_until_closed(stack, torch.__future__.set_overwrite_module_params_on_conversion)
        stack.enter_context(modes())
        yield record


def _call_until_closed(stack: ExitStack, switch: Callable[[bool], None]) -> None:
    switch(True)
    stack.callback(switch, False)


def _waits(kind: str, record: Record) -> dict[str, Any]:
    """Return functions in the place of those that wait for all work on the device."""
    return {f"torch.{kind}.synchronize": lambda *args: record.add(SYNCHRONIZES, "synchronize")}


_EVERYWHERE: dict[str, Any] = {"torch.is_autocast_available": lambda kind: True}

_ANSWERS: dict[str, dict[str, Any]] = {
    "cuda": {
        "torch.cuda.is_available": lambda: True,
        "torch.cuda.is_initialized": lambda: True,
        "torch.cuda.is_bf16_supported": lambda *args, **options: True,
        "torch.cuda.is_current_stream_capturing": lambda: False,
        "torch.cuda.device_count": lambda: 1,
        "torch.cuda.current_device": lambda: 0,
        "torch.cuda.set_device": lambda device: None,
        "torch.cuda.get_device_capability": lambda *args: (9, 0),
        "torch.cuda.get_device_name": lambda *args: "a pretended GPU",
        "torch.cuda.mem_get_info": lambda *args: (100 * 2**30, 139 * 2**30),
        "torch.cuda.manual_seed_all": lambda seed: None,
        "torch.cuda.empty_cache": lambda: None,
        "torch.cuda.amp.common.amp_definitely_not_available": lambda: False,
    },
    "mps": {
        "torch.backends.mps.is_available": lambda: True,
        "torch.mps.manual_seed": lambda seed: None,
        "torch.mps.recommended_max_memory": lambda: 20 * 2**30,
        "torch.mps.driver_allocated_memory": lambda: 2**30,
        "torch.mps.empty_cache": lambda: None,
        "torch.nn.functional.scaled_dot_product_attention": lambda *args, **options: (
            torch.ops.aten._scaled_dot_product_attention_math(*args, **options)[0]
        ),
    },
}
"""What torch's functions say of a device that is there."""


def _within(run: Callable[..., None], modes: Callable[[], AbstractContextManager[Any]]) -> Callable[..., None]:
    """Return a function that runs a thread in the modes of the pretended device, which each thread has for itself."""

    def run_within(thread: threading.Thread) -> None:
        with modes():
            run(thread)

    return run_within


def _gradients(real: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``torch.autograd.grad``, but with a gradient of one number for tensors on the device."""

    def gradients(outputs: Any, inputs: Any, *args: Any, **options: Any) -> tuple[torch.Tensor, ...]:
        several = [inputs] if isinstance(inputs, torch.Tensor) else list(inputs)
        if not any(isinstance(each, Held) for each in several):
            return real(outputs, inputs, *args, **options)
        return tuple(torch.full_like(each, _GRADIENT) for each in several)

    return gradients


def _leaves(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Return the parameters that a tensor was computed from."""
    seen, ahead, found = set(), [tensor.grad_fn], []
    while ahead:
        node = ahead.pop()
        if node is not None and node not in seen:
            seen.add(node)
            found += [leaf] if (leaf := getattr(node, "variable", None)) is not None else []
            ahead += [following for following, _ in node.next_functions]
    return found


def _guards() -> Any:
    """Return torch's registry of device guards, a table of pointers; None if it is not as it is known to be."""
    library = Path(torch.__file__).parent / "lib" / "libc10.so"
    try:
        slots = (ctypes.c_void_p * 16).in_dll(ctypes.CDLL(str(library)), _REGISTRY)
    except (OSError, ValueError):
        return None
    return slots if slots[0] and slots[_PLACES["meta"]] else None


@contextmanager
def _guarded(kind: str) -> Iterator[None]:
    """Lend the guard of the meta device, which does nothing, to another device, without which autograd has no nodes."""
    guards = _guards()
    if not guards[_PLACES[kind]]:  # it stays, since tensors of the device may live on
        guards[_PLACES[kind]] = guards[_PLACES["meta"]]
    yield


@cache
def _is_made_of_others(func: Any) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


def _on_host(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Compute an operation of the host alone; pinned memory is marked as such, and is memory as any other."""
    name, pins = func.overloadpacket.__name__, bool(kwargs.pop("pin_memory", False))
    if name == "is_pinned":
        return _is_pinned(args[0])
    result = args[0].clone() if name == "_pin_memory" else func(*args, **kwargs)
    if pins or name == "_pin_memory":
        result.untyped_storage().pretended_pin = True
    return result


def _is_pinned(tensor: torch.Tensor) -> bool:
    return hasattr(tensor.untyped_storage(), "pretended_pin")


_PLAIN = {int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format}


def _mapped(function: Callable[[torch.Tensor], Any], tree: Any) -> Any:
    """Return nested lists, tuples and dicts with a function called on each tensor."""
    if type(tree) in _PLAIN:
        return tree
    if isinstance(tree, torch.Tensor):
        return function(tree)
    if isinstance(tree, list | tuple):
        found = [_mapped(function, each) for each in tree]
        return found if isinstance(tree, list) else tuple(found)
    return {key: _mapped(function, each) for key, each in tree.items()} if isinstance(tree, dict) else tree


def _caller() -> tuple[str, int]:
    """Return the file, with the function, and the line of the innermost named function of the package that runs."""
    frame = sys._getframe(2)
    while frame is not None:
        file, name = frame.f_code.co_filename.replace("\\", "/"), frame.f_code.co_name
        if "/patch_diffusion/" in file and not name.startswith("<"):
            return f"{file.rpartition('/patch_diffusion/')[2]} {name}", frame.f_lineno
        frame = frame.f_back
    return "outside of the package", 0
