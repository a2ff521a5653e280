"""The base class of the verbs of the command line, and the printing of their results."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Annotated, Any, ClassVar, get_args

from typing_extensions import Self, get_type_hints
from tyro.conf import arg

from patch_diffusion.cli.choosing import read_from
from patch_diffusion.cli.parsing import parse, parse_seeds
from patch_diffusion.cli.say import say
from patch_diffusion.data.named import check_source
from patch_diffusion.errors import Checked, InputError
from patch_diffusion.files import check_apart, check_writable, to_json, user_path, write_json
from patch_diffusion.runs.paths import check_model, check_run

Json = Annotated[str | None, arg(metavar="[FILE.json]")]
"""The type of the option ``--json``: None if it is not given, "" for JSON on stdout, or the file for it."""


def _check_file(path: Path) -> None:
    if not user_path(path).exists():
        raise InputError(f"there is no file at {path}")


RunPath = Annotated[Path, Checked(check_run)]
"""The type of an option that is a run folder, or one of its checkpoints."""

ModelPath = Annotated[Path, Checked(check_model)]
"""The type of an option that is a run folder with a model, or one of its checkpoints."""

FilePath = Annotated[Path, Checked(_check_file)]
"""The type of an option that is a file or a folder to read."""

Seeds = Annotated[str, Checked(parse_seeds)]
"""The type of an option of seeds, such as ``0-63``."""

DataName = Annotated[str, Checked(check_source)]
"""The type of an option that names a data set."""


class Verb(ABC):
    """A verb of the command line; each is a frozen dataclass of its options, with the verb's name as its own."""

    endings: ClassVar[dict[str, tuple[str, ...]]] = {"--json": (".json",)}
    """Options that may stand alone or with a file, and the endings by which a word after them is their file."""
    json: Json

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> Self:
        """Parse the command-line arguments that follow the verb; raise an `InputError` if they are wrong."""
        return cls.parsed(arguments)

    @classmethod
    def parsed(cls, arguments: Sequence[str], default: Self | None = None) -> Self:
        """Parse arguments over defaults, without what a verb adds to them in `parse`."""
        words = [
            word if word not in cls.endings or following.lower().endswith(cls.endings[word]) else f"{word}="
            for word, following in zip_longest(arguments, arguments[1:], fillvalue="")
        ]
        return parse(cls, cls.__name__.lower(), words, default)

    @property
    def prints_json(self) -> bool:
        """True if the result is printed on stdout as JSON, in place of text."""
        return self.json == ""

    def check_given(self) -> None:
        """Raise an `InputError` if an option cannot be right, before the libraries are imported that take long."""
        _check_marked(self)

    def check_outputs(self) -> None:
        """Raise an `InputError` if ``out`` or the file for the result cannot be written, before the work begins.

        The file must not be a folder either, nor replace what the verb works on.
        """
        given = vars(self)
        out = given.get("out")
        if out is not None:
            check_writable(user_path(out))
        if not self.json:
            return
        path = user_path(self.json)
        if path.is_dir():
            raise InputError(f"{path} is a folder: give a file for the result")
        check_writable(path)
        if out is not None and user_path(out).resolve() in (path.resolve(), *path.resolve().parents):
            raise InputError(f"{path} is in the folder that the command writes: choose another place for the result")
        values = chain.from_iterable(map(_each, given.values()))
        sources = [user_path(value) for value in values if isinstance(value, str | Path) and value != self.json]
        check_apart([path], [part for source in sources for part in read_from(source)])

    @abstractmethod
    def run(self) -> dict[str, Any]:
        """Execute the verb and return its result as a dict; an empty one if nothing is left to print."""

    def message(self, result: dict[str, Any]) -> str:
        """Return the message that is printed to stderr after success, or an empty string."""
        return ""

    def after_interrupt(self) -> str:
        """Return the text that follows "interrupted" in the message after Ctrl-C."""
        return ""


def _check_marked(options: Any) -> None:
    """Check the options of a dataclass that have a mark, and those of the groups in it."""
    for name, kind in get_type_hints(type(options), include_extras=True).items():
        value = getattr(options, name, None)
        if is_dataclass(value):
            _check_marked(value)
        for mark, one in ((mark, one) for mark in _marks(kind) for one in _each(value)):
            mark.check(one)


def _marks(kind: Any) -> Iterator[Checked]:
    """Yield the marks of a type and of the types it is made of."""
    for part in get_args(kind):
        yield from [part] if isinstance(part, Checked) else _marks(part)


def _each(value: Any) -> tuple[Any, ...]:
    """Return the values of an option that was given; none for one that was not."""
    return value if isinstance(value, tuple) else () if value in (None, "") else (value,)


def tell(command: Verb, result: dict[str, Any]) -> None:
    """Print the result of a command: as JSON on stdout, or as a short message on stderr, and JSON in a file."""
    if not result:  # a followed run has printed its own lines; of several processes, only rank 0 has a result
        return
    if command.prints_json:
        say(to_json(result))
        return
    lines = [command.message(result)]
    if command.json:
        path = user_path(command.json)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, result)
        lines.append(f"the result is in {path}")
    if message := "\n".join(filter(None, lines)):
        say(message, aside=True)
