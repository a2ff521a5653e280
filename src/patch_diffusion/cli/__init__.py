"""The command line: ``patch-diffusion VERB``. Each verb has a module with its options, and calls one public function.

Results go to stdout, progress and messages to stderr. Exit status 0: done; 1: failed, with a one-line reason; 2: wrong
usage; 130: interrupted, in training after a checkpoint was written. Heavy libraries are imported only when a verb runs.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from typing import Any, Protocol

import patch_diffusion
from patch_diffusion.cli.edit import Edit
from patch_diffusion.cli.evaluate import Evaluate
from patch_diffusion.cli.export import Export
from patch_diffusion.cli.import_ import Import
from patch_diffusion.cli.info import Info
from patch_diffusion.cli.inspect import Inspect
from patch_diffusion.cli.prepare import Prepare
from patch_diffusion.cli.race import Race
from patch_diffusion.cli.sample import Sample
from patch_diffusion.cli.serve import Serve
from patch_diffusion.cli.train import Train
from patch_diffusion.errors import InputError, did_you_mean
from patch_diffusion.files import to_json
from patch_diffusion.processes import is_first, listen


class Verb(Protocol):
    """The interface of a command-line verb: a dataclass of options that parses its arguments and runs."""

    @property
    def json(self) -> bool:
        """True if the verb prints its result as JSON."""
        ...

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> Verb:
        """Parse the command-line arguments that follow the verb."""
        ...

    def run(self) -> dict[str, Any]:
        """Execute the verb and return its result as a dict."""
        ...

    def message(self, result: dict[str, Any]) -> str:
        """Return the message that is printed to stderr after success, or an empty string."""
        ...

    def after_interrupt(self) -> str:
        """Return the text that follows "interrupted" in the message after Ctrl-C."""
        ...


VERBS: dict[str, type[Verb]] = {
    "train": Train,
    "sample": Sample,
    "evaluate": Evaluate,
    "edit": Edit,
    "info": Info,
    "inspect": Inspect,
    "prepare": Prepare,
    "race": Race,
    "import": Import,
    "export": Export,
    "serve": Serve,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``patch-diffusion`` with these arguments, or those of the process if None; return the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal's encoding lacks is escaped
            stream.reconfigure(errors="backslashreplace")
    try:
        status = _run(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as head, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


def _run(arguments: Sequence[str]) -> int:
    verb = arguments[0] if arguments else "--help"
    if verb in ("-h", "--help"):
        print(_overview())
        return 0 if arguments else 2
    if verb == "--version":
        print(f"patch-diffusion {patch_diffusion.__version__}")
        return 0
    if verb not in VERBS:
        what = "option" if verb.startswith("-") else "verb"
        return _fail(2, "patch-diffusion", f"there is no {what} '{verb}'", did_you_mean(verb, [*VERBS, "--version"]))
    name = f"patch-diffusion {verb}"
    try:
        command = VERBS[verb].parse(arguments[1:])
    except InputError as error:
        return _fail(2, name, str(error))
    try:
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


def tell(command: Verb, result: dict[str, Any]) -> None:
    """Print the result of a command: as JSON on stdout, or as a short message on stderr."""
    if not result:  # a followed run has printed its own lines; of several processes, only rank 0 has a result
        return
    if command.json:
        print(to_json(result))
    elif message := command.message(result):
        print(message, file=sys.stderr)


def _fail(status: int, name: str, *reason: str) -> int:
    listen()
    print(f"{name}: {''.join(reason)}", file=sys.stderr)
    return status


def _overview() -> str:
    verbs = "\n".join(f"  {verb:<8} {(kind.__doc__ or '').splitlines()[0]}" for verb, kind in VERBS.items())
    return (
        "usage: patch-diffusion VERB ...\n\n"
        "Train image diffusion models from scratch by Patch Diffusion, and sample whole\nimages from them.\n\n"
        f"{verbs}\n\n"
        "  patch-diffusion VERB --help   all options of a verb\n"
        "  patch-diffusion --version"
    )
