"""The command ``patch-diffusion doctor``: whether all works on this machine, and how fast."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

import patch_diffusion
from patch_diffusion.cli.say import say
from patch_diffusion.cli.verb import Json, Verb
from patch_diffusion.errors import InputError, shown
from patch_diffusion.files import user_path


@dataclass(frozen=True)
class Doctor(Verb):
    """Check that all works on this machine, and how fast training is.

    patch-diffusion doctor --json doctor.json --out doctor.html

    patch-diffusion doctor --quick

    It takes about six minutes, --quick about one. The two files go well with an issue: they name no user, machine,
    path or data.
    """

    quick: bool = False
    """Check the main things only, and measure one preset."""
    out: Annotated[Path | None, arg(metavar="FILE.html")] = None
    """File for a page with all results. Default: no page."""
    json: Json = None
    """Print all results as JSON on stdout, or write them to a file."""

    def check_outputs(self) -> None:
        """Raise an `InputError` if the page or the file cannot be written."""
        super().check_outputs()
        if self.out is not None and user_path(self.out).is_dir():
            raise InputError(f"--out {self.out} is a folder: give the name of a page, as in --out doctor.html")

    def run(self) -> dict[str, Any]:
        """Examine the machine; print the results as text, unless --json prints all of them, and write the page."""
        from rich.console import Console

        from patch_diffusion.doctor.page import write_page

        console = Console(stderr=True, highlight=False, soft_wrap=True)
        console.print(f"this takes about {'a minute' if self.quick else 'six minutes'}{self._how_to_keep()}")
        with console.status("trying what training needs"):
            found = patch_diffusion.diagnose(
                quick=self.quick, tell=lambda text: console.print(shown(text), markup=False)
            )
        if not self.prints_json:
            say(found.text())
        if self.out is not None:
            write_page(user_path(self.out), found)
        return found.as_dict()

    def message(self, result: dict[str, Any]) -> str:
        """Return the message that says where the page is, or how to get it."""
        if self.out is not None:
            return f"the page is {self.out}"
        return "" if self.json else f"nothing was written{self._how_to_keep()}"

    def after_interrupt(self) -> str:
        """Return the text that follows "interrupted" after Ctrl-C: that nothing was written."""
        return "; nothing was written"

    def _how_to_keep(self) -> str:
        if self.out is not None or self.json:
            return ""
        return "; to keep the results, or to send them: patch-diffusion doctor --json doctor.json --out doctor.html"
