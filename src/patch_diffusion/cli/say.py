"""Printing for the command line, through which all its lines go but those of progress bars and live views."""

from __future__ import annotations

import sys

from patch_diffusion.errors import shown


def say(text: str, *, aside: bool = False, flush: bool = False) -> None:
    """Print text of one or more lines on stdout, or ``aside`` on stderr; what a terminal would obey is escaped."""
    print(shown(text, lines=True), file=sys.stderr if aside else sys.stdout, flush=flush)
