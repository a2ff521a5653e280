"""A safe pickle reader, which neither imports nor calls anything that a file names.

A pickle is a program for a small stack machine, and Python's own machine imports and calls whatever the program names.
This one builds only plain values. A name in the file stands for a function that the caller provides; every other name
raises an InputError. The operations are those that ``pickletools`` documents, as far as protocols 3 to 5 write them.
"""

from __future__ import annotations

import mmap
import pickletools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patch_diffusion.errors import InputError

Makers = Mapping[str, Callable[..., Any]]


@dataclass
class Instance:
    """An inert record of an object in a pickle: class name, constructor arguments and state. No class is called."""

    class_name: str
    arguments: tuple[Any, ...] = ()
    state: Any = None


@dataclass(frozen=True)
class _Global:
    name: str


_Plain = str | int | float | bytes | None
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
_LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
    *("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}


def read_pickle(path: Path, makers: Makers) -> Any:
    """Read the value in a pickle without running anything in it.

    Args:
        path: the path of the pickle.
        makers: for every name that the file may use, ``"module.name"``, our function that makes the value from the
            arguments in the file. If it returns an `Instance`, the file may set that object's state.

    Raises:
        InputError: the file uses any other name, is no pickle, or is damaged.

    >>> import pickle, tempfile
    >>> file = Path(tempfile.mkdtemp()) / "harmless.pkl"
    >>> _ = file.write_bytes(pickle.dumps({"width": 64, "kept": [True, None]}))
    >>> read_pickle(file, {})
    {'width': 64, 'kept': [True, None]}
    """
    if not path.stat().st_size:
        raise InputError(f"{path} is empty")
    # The file is memory-mapped, so that a false length in it yields only the bytes that exist and reserves no memory.
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        try:
            return _Machine(makers).run(pickletools.genops(content))  # pyright: ignore[reportArgumentType]
        except InputError as error:
            raise error.reworded(f"{path} is refused, and nothing in it was run: {error}") from None
        # A hostile or damaged file can fail in any operation, in any way; all of them mean the same to the user.
        except Exception as error:
            raise InputError(f"{path} is damaged, or no pickle: {printable(error)}") from None


def plain_keys(keys: Sequence[Any]) -> Sequence[Any]:
    """Return keys of a dict or set; raise TypeError for nested ones: hashing tuples of tuples can take for ever."""
    for key in keys:
        if not isinstance(key, _Plain):
            raise TypeError(f"a {type(key).__name__} is a key")
    return keys


def printable(text: str | float | Exception, length: int = 160) -> str:
    """Return text for an error message: in one line, ASCII only, cut to ``length`` characters."""
    shown = ascii(" ".join(str(text).split()))[1:-1]
    return shown if len(shown) <= length else shown[: length - 3] + "..."


class _Machine:
    def __init__(self, makers: Makers) -> None:
        self.makers = makers
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self, operations: Iterable[tuple[pickletools.OpcodeInfo, Any, int | None]]) -> Any:
        """Execute the operations of a pickle, and return the one value that is on the stack at STOP."""
        for operation, argument, _ in operations:
            if operation.name == "STOP":
                break
            self.step(operation.name, argument)
        (value,) = self.stack
        if self.outer:
            raise ValueError("a mark is left")
        return value

    def step(self, operation: str, argument: Any) -> None:
        """Execute one operation of a pickle, which changes the stack or the memo."""
        if operation in _LITERALS:
            self.stack.append(argument)
            return
        if operation in _CONSTANTS:
            self.stack.append(_CONSTANTS[operation]())
            return
        match operation:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                self.outer.append(self.stack)
                self.stack = []
            case "POP":
                self.stack.pop()
            case "POP_MARK":
                self.since_mark()
            case "TUPLE":
                items = tuple(self.since_mark())
                self.stack.append(items)
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                length = int(operation[-1])
                items = tuple(self.stack.pop() for _ in range(length))[::-1]
                self.stack.append(items)
            case "FROZENSET":
                items = frozenset(plain_keys(self.since_mark()))
                self.stack.append(items)
            case "APPEND" | "APPENDS":
                items = self.since_mark() if operation == "APPENDS" else [self.stack.pop()]
                self.top(list).extend(items)
            case "SETITEM" | "SETITEMS":
                items = self.since_mark() if operation == "SETITEMS" else [self.stack.pop(), self.stack.pop()][::-1]
                self.top(dict).update(zip(plain_keys(items[::2]), items[1::2], strict=True))
            case "ADDITEMS":
                items = self.since_mark()
                self.top(set).update(plain_keys(items))
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self.stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.stack[-1]
            case "BINGET" | "LONG_BINGET":
                self.stack.append(self.memo[argument])
            case "GLOBAL" | "INST":
                self.stack.append(self.named(argument.replace(" ", ".", 1)))
                if operation == "INST":
                    raise InputError("it uses the operation INST, which no published file does")
            case "STACK_GLOBAL":
                name, module = self.stack.pop(), self.stack.pop()
                if type(name) is not str or type(module) is not str:
                    raise TypeError("a name is no text")
                self.stack.append(self.named(f"{module}.{name}"))
            case "REDUCE" | "NEWOBJ":
                arguments, made = self.stack.pop(), self.stack.pop()
                if type(made) is not _Global or type(arguments) is not tuple:
                    raise InputError(f"it calls a {type(made).__name__}, which no published file does")
                self.stack.append(self.makers[made.name](*arguments))
            case "BUILD":
                state = self.stack.pop()
                self.top(Instance).state = state
            case _:
                raise InputError(f"it uses the operation {operation}, which no published file does")

    def since_mark(self) -> list[Any]:
        """Remove the last mark from the stack, and return the values that were pushed after it."""
        items, self.stack = self.stack, self.outer.pop()
        return items

    def top(self, kind: type) -> Any:
        """Return the last value on the stack; raise TypeError if it is not exactly of the type ``kind``."""
        if type(self.stack[-1]) is not kind:
            raise TypeError(f"{kind.__name__} is expected, not {type(self.stack[-1]).__name__}")
        return self.stack[-1]

    def named(self, name: str) -> _Global:
        """Return a record of a function name in the file; raise InputError if it is not an expected name."""
        if name not in self.makers:
            raise InputError(f"it names {printable(name, 80)}, which no published network needs")
        return _Global(name)
