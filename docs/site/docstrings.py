"""Docstrings as Markdown: their examples become blocks of code, and names of the package links."""

from __future__ import annotations

import re
from typing import Any

import griffe

import patch_diffusion

_EXAMPLE = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)
_NAME = re.compile(r"(?<![`\[\w])`(\w+)((?:\.\w+)?)`(?!`)")


def as_markdown(docstring: str) -> str:
    """The same text for Markdown, to which ``>>>`` would be a quotation.

    >>> as_markdown("See `Denoiser`.")
    'See [`Denoiser`][patch_diffusion.Denoiser].'
    """

    def linked(found: re.Match[str]) -> str:
        name, member = found.groups()
        known = name in patch_diffusion.__all__
        return f"[`{name}{member}`][patch_diffusion.{name}{member}]" if known else found[0]

    linked_text = _NAME.sub(linked, docstring)
    return _EXAMPLE.sub(lambda found: f"```pycon\n{found[0]}\n```", linked_text)


class Docstrings(griffe.Extension):
    """Changes every docstring that is read for the site."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called with everything that was read."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
