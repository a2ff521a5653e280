"""The help of a command: ``--help`` prints its most used options, ``--help-all [GROUP]`` all of them."""

from __future__ import annotations

import ast
import inspect
import re
import shutil
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from tyro.conf import Positional, Suppress

from patch_diffusion.errors import InputError, did_you_mean

MOST_USED = {
    "--out",
    "--preset",
    "--resolution",
    "--data.classes",
    "--held-out",
    "--patches.whole",
    "--watch.metrics",
    "--data.augment.p",
    "--batch",
    "--steps",
    "--minutes",
    "--samples",
}
"""Options that README, docs and examples use most: those in the short help of a verb that has many."""

GENERAL = "general"
"""The name of the group of the options that are in no group."""

_MOST_LINES = 60
_COLUMN = 26
_NARROW, _WIDE = 80, 100
_WORDS: dict[Any, str] = {int: "N", float: "X", str: "TEXT", Path: "PATH", bool: "True|False"}


@dataclass(frozen=True)
class Option:
    """An option of the command line, or an argument without a name, as its dataclass describes it."""

    names: tuple[str, ...]
    """All of its names, the one to show first; empty for an argument without a name."""
    values: str
    """The values it takes, such as ``N`` or ``crop|stretch``; empty for a switch."""
    text: str
    """Its description."""
    default: Any
    """Its default value; ``dataclasses.MISSING`` if it has to be given."""
    group: str
    """The first part of its name, or `GENERAL`."""

    @property
    def heading(self) -> str:
        """Return its first name with the values it takes."""
        return " ".join(filter(None, (*self.names[:1], self.values)))

    def lines(self, width: int, *, short: bool = False) -> list[str]:
        """Return its lines in a list of options of this width; a short one has the first sentence and the default.

        The last sentence of the description says what a default of None means: ``Default: the model's own.``
        """
        text, _, default = self.text.partition(" Default: ")
        text = re.split(r"(?<=[.;]) ", text)[0].rstrip(".;") + "." if short else text
        if self.default is MISSING:
            text += " Required."
        elif self.values and not (self.default is None or self.default is False or self.default in ("", ())):
            text += f" Default: {shown_value(self.default)}."
        elif default:
            text += f" Default: {re.split('; ', default)[0].rstrip('.') + '.' if short else default}"
        others = self.names[1:]
        text += f" Also {', '.join(others)}." if others and not short else ""
        told = textwrap.wrap(text, width - _COLUMN - 2, break_on_hyphens=False, break_long_words=False)
        if len(self.heading) > _COLUMN - 2:
            return [f"  {self.heading}", *(" " * (_COLUMN + 2) + line for line in told)]
        first, *rest = told or [""]
        return [f"  {self.heading:<{_COLUMN}}{first}".rstrip(), *(" " * (_COLUMN + 2) + line for line in rest)]


def options_of(kind: type, default: Any = None, prefix: str = "") -> Iterator[Option]:
    """Yield the options of a dataclass and of the groups in it, with the defaults of an instance if one is given.

    >>> from patch_diffusion.config import Engine
    >>> next(options_of(Engine)).heading
    '--device TEXT'
    """
    hints, texts = typing.get_type_hints(kind, include_extras=True), _texts(kind)
    for field in fields(kind):
        hint, notes = hints[field.name], ()
        if typing.get_origin(hint) is typing.Annotated:
            hint, *notes = typing.get_args(hint)
        value = getattr(default, field.name) if default is not None else _default(field)
        found = [note for note in notes if hasattr(note, "aliases")]
        name = next((note.name for note in found if note.name is not None), field.name)
        name = f"{prefix}{name}".replace("_", "-")
        if Suppress in notes:
            continue
        if is_dataclass(hint) and isinstance(hint, type):
            yield from options_of(hint, None if value is MISSING else value, f"{name}." if name else "")
            continue
        metavar = next((note.metavar for note in notes if getattr(note, "metavar", None)), None)
        text = next((note.help for note in found if note.help), texts.get(field.name, ""))
        aliases = tuple(alias for note in found for alias in note.aliases or ())
        group = name.partition(".")[0] if "." in name else GENERAL
        if Positional in notes:
            yield Option((), metavar or field.name.upper(), text, value, group)
        elif hint is bool and value:
            own = re.sub(r"([\w-]+)$", r"no-\1", name)
            yield Option((f"--{own}",), "", f"Do not {text[:1].lower()}{text[1:]}", value, group)
        elif hint is bool:
            yield Option((f"--{name}",), "", text, value, group)
        else:
            yield Option((*aliases, f"--{name}"), metavar or _values(hint), text, value, group)


def help_text(kind: type, verb: str, group: str | None, default: Any = None) -> str:
    """Return the help of a verb.

    Args:
        kind: the verb's dataclass.
        verb: its name.
        group: the name of a group for its options alone, "" for all options, or None for those used most, if all of
            them do not fit on a page.
        default: an instance with the defaults to show.

    Raises:
        InputError: the verb has no such group.
    """
    options, width = list(options_of(kind, default)), _width()
    about = {GENERAL: "Options outside of the groups below."} | _about_groups(kind)
    groups = {option.group: about.get(option.group, "") for option in options if option.names}
    arguments = [option for option in options if not option.names]
    if group:
        if group not in groups:
            raise InputError(f"{verb} has no group of options '{group}'{did_you_mean(group, groups)}")
        return "\n".join(_list(options, {group: groups[group]}, width)[1:])
    words = " ".join(option.values if option.default is MISSING else f"[{option.values}]" for option in arguments)
    head = [f"usage: patch-diffusion {verb} {words}".rstrip() + " [OPTIONS]", "", *_about(kind, width)]
    head += [line for option in arguments for line in ("", *option.lines(width))]
    one = len(groups) == 1
    whole = [*head, *_list(options, {GENERAL: ""} if one else groups, width)]
    if group == "" or one or len(whole) <= _MOST_LINES:
        return "\n".join(whole)
    used = [option for option in options if option.names and (option.default is MISSING or {*option.names} & MOST_USED)]
    rest = {
        name: sum(option.group == name for option in options if option.names and option not in used) for name in groups
    }
    more = [Option((), name, f"{groups[name]} ({num} more)", None, name) for name, num in rest.items() if num]
    return "\n".join(
        [
            *[*head, "", "most used options:"],
            *[line for option in used for line in option.lines(width, short=True)],
            *["", f"more options (patch-diffusion {verb} --help-all [GROUP]):"],
            *[line for option in more for line in option.lines(width)],
        ]
    )


def _list(options: Sequence[Option], groups: Mapping[str, str], width: int) -> list[str]:
    lines = []
    for group, about in groups.items():
        lines += ["", *textwrap.wrap(f"{group}: {about}" if about else "options:", width)]
        lines += [line for option in options if option.names and option.group == group for line in option.lines(width)]
    return lines


def _about(kind: type, width: int) -> Iterator[str]:
    """Yield the lines of a verb's docstring: its sentences wrapped, and its examples as they are."""
    paragraphs = inspect.cleandoc(kind.__doc__ or "").split("\n\n")
    examples = [paragraph for paragraph in paragraphs if paragraph.startswith("patch-diffusion")]
    for paragraph in paragraphs:
        if paragraph not in examples:
            yield from textwrap.wrap(" ".join(paragraph.split()), width)
    yield from ["", *(f" {example}" for example in examples)] if examples else []


def _about_groups(kind: type) -> dict[str, str]:
    """Return what each group of options is for, by name: the first paragraph of its dataclass."""
    found = {}
    for name, hint in typing.get_type_hints(kind).items():
        if isinstance(hint, type) and is_dataclass(hint):
            found |= {name: " ".join(inspect.cleandoc(hint.__doc__ or "").partition("\n\n")[0].split())}
            found |= _about_groups(hint)
    return found


def _texts(kind: type) -> dict[str, str]:
    """Return the text below each field of a dataclass, and of those it extends, by the field's name."""
    inherited = {
        name: text for base in reversed(kind.__bases__) if is_dataclass(base) for name, text in _texts(base).items()
    }
    statements = ast.walk(ast.parse(textwrap.dedent(inspect.getsource(kind))))
    bodies = [statement.body for statement in statements if isinstance(statement, ast.ClassDef)]
    return inherited | {
        ast.unparse(field.target): " ".join(ast.literal_eval(text.value).split())
        for field, text in pairwise(bodies[0])
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    }


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _values(hint: Any) -> str:
    """Return the values that a type takes, such as ``N``, ``crop|stretch`` or ``X X``."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _values(parts[0])
    if origin is typing.Literal:
        return "|".join(map(str, parts))
    if origin in (typing.Union, types.UnionType):
        return "|".join(_values(part) for part in parts if part is not type(None))
    if origin is tuple:
        return f"{_values(parts[0])} ..." if parts[-1] is ... else " ".join(map(_values, parts))
    return _WORDS[hint]


def shown_value(value: Any) -> str:
    """Return a default value as the words that give it."""
    if isinstance(value, dict):
        return " ".join(f"{key}={shown_value(each)}" for key, each in value.items())
    if isinstance(value, list | tuple):
        return " ".join(map(shown_value, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _width() -> int:
    return max(_NARROW, min(_WIDE, shutil.get_terminal_size().columns)) - 1
