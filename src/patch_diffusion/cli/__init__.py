"""The command line: ``patch-diffusion COMMAND``. Each command is a `Verb` with a module of its own.

A command has its options as fields, and calls one public function.

Results go to stdout, progress and messages to stderr. Exit status 0: done; 1: failed, with a one-line reason; 2: wrong
usage; 130: interrupted, in training after a checkpoint was written. Heavy libraries are imported when a command runs.
"""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import patch_diffusion
from patch_diffusion.cli.completion import Completion
from patch_diffusion.cli.detect import Detect
from patch_diffusion.cli.doctor import Doctor
from patch_diffusion.cli.edit import Edit
from patch_diffusion.cli.evaluate import Evaluate
from patch_diffusion.cli.export import Export
from patch_diffusion.cli.import_ import Import
from patch_diffusion.cli.info import Info
from patch_diffusion.cli.inspect import Inspect
from patch_diffusion.cli.prepare import Prepare
from patch_diffusion.cli.race import Race
from patch_diffusion.cli.sample import Sample
from patch_diffusion.cli.say import say
from patch_diffusion.cli.serve import Serve
from patch_diffusion.cli.train import Train
from patch_diffusion.cli.tune import Tune
from patch_diffusion.cli.verb import Verb, tell
from patch_diffusion.errors import InputError, Note, did_you_mean, is_out_of_memory, shown
from patch_diffusion.processes import is_first, listen

_KINDS = (
    Train,
    Tune,
    Sample,
    Evaluate,
    Edit,
    Detect,
    Info,
    Inspect,
    Prepare,
    Race,
    Import,
    Export,
    Serve,
    Doctor,
    Completion,
)
_WITH_PLACE = warnings.showwarning
VERBS: dict[str, type[Verb]] = {kind.__name__.lower(): kind for kind in _KINDS}

_LONGEST = 3000  # characters of a reason, which may quote a word or a name of any length


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``patch-diffusion`` with these arguments, or those of the process if None; return the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal's encoding lacks is escaped
            stream.reconfigure(errors="backslashreplace")
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = partial(_show_warning, set[str]())
            status = _run(words)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as head, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (MemoryError, RuntimeError) as error:  # the limits of a machine that nobody has asked for before
        name = f"patch-diffusion {words[0]}"
        if isinstance(error, RecursionError):
            return _fail(1, name, "a file that was given is nested too deeply to be read")
        if not is_out_of_memory(error):
            raise
        return _fail(1, name, "this takes more memory than there is: choose a smaller network, batch or data set")
    return status


def _run(arguments: Sequence[str]) -> int:
    verb = arguments[0] if arguments else "--help"
    if verb in ("-h", "--help", "--help-all"):
        say(_overview())
        return 0 if arguments else 2
    if verb == "--version":
        say(f"patch-diffusion {patch_diffusion.__version__}")
        return 0
    if verb not in VERBS:
        what = "option" if verb.startswith("-") else "command"
        return _fail(2, "patch-diffusion", f"there is no {what} '{verb}'", did_you_mean(verb, [*VERBS, "--version"]))
    name = f"patch-diffusion {verb}"
    try:
        command = VERBS[verb].parse(arguments[1:])
    except InputError as error:
        return _fail(2, name, str(error))
    try:
        command.check_given()
        command.check_outputs()
        tell(command, command.run())
    except InputError as error:
        return _fail(1, name, str(error))
    except BrokenPipeError:
        raise
    except OSError as error:
        return _fail(1, name, error.strerror or str(error), f": {error.filename}" if error.filename else "")
    except KeyboardInterrupt:
        if not is_first():
            return 130
        return _fail(130, name, "interrupted", command.after_interrupt())
    return 0


def _show_warning(told: set[str], message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
    """Print a note for the user, once in a command, and leave other warnings to Python."""
    if issubclass(category, Note):
        if is_first() and str(message) not in told:
            say(str(message), aside=True)
        told.add(str(message))
    else:
        _WITH_PLACE(message, category, *where, **more)


def _fail(status: int, name: str, *reason: str) -> int:
    listen()
    text = "".join(reason)
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"
    say(shown(f"{name}: {text}"), aside=True)
    return status


def _overview() -> str:
    verbs = "\n".join(f"  {verb:<10} {(kind.__doc__ or '').splitlines()[0]}" for verb, kind in VERBS.items())
    return (
        "usage: patch-diffusion COMMAND ...\n\n"
        "Train image diffusion models from scratch by Patch Diffusion, and sample whole\nimages from them.\n\n"
        f"{verbs}\n\n"
        "  patch-diffusion COMMAND --help               its most used options\n"
        "  patch-diffusion COMMAND --help-all [GROUP]   all of its options, or one group\n"
        "  patch-diffusion --version"
    )
