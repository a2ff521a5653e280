"""The command ``patch-diffusion completion``: a script by which a shell completes commands and options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from patch_diffusion.cli.say import say
from patch_diffusion.cli.verb import Json, Verb


@dataclass(frozen=True)
class Completion(Verb):
    """Print a script that completes commands and options in your shell.

    patch-diffusion completion bash >> ~/.bash_completion

    patch-diffusion completion zsh > ~/.zfunc/_patch-diffusion

    patch-diffusion completion fish | source
    """

    shell: Annotated[Positional[Literal["bash", "zsh", "fish"]], arg(metavar="bash|zsh|fish")]
    """The shell that the script is for."""
    json: Json = None
    """Print the script as JSON on stdout, or write it to a file."""

    def run(self) -> dict[str, Any]:
        """Print the script, unless it is wanted as JSON, and return it with the shell's name."""
        import contextlib
        import io
        import re

        import tyro

        from patch_diffusion.cli import VERBS

        script = io.StringIO()
        with contextlib.redirect_stdout(script), contextlib.suppress(SystemExit):
            words = ["--tyro-print-completion", self.shell]
            tyro.extras.subcommand_cli_from_dict({**VERBS}, prog="patch-diffusion", args=words)
        # A shell would offer each line of a description as a word.
        text = re.sub(
            r"^COMPLETION_SPEC = .*$", lambda line: re.sub(r"\\+n", " ", line[0]), script.getvalue(), flags=re.M
        )
        if not self.prints_json:
            say(text.rstrip("\n"))
        return {"shell": self.shell, "script": text}
