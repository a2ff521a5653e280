"""The command ``patch-diffusion serve``: a web page of runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

import patch_diffusion
from patch_diffusion.cli.say import say
from patch_diffusion.cli.verb import Json, Verb, tell
from patch_diffusion.errors import check_library
from patch_diffusion.files import to_json, user_path
from patch_diffusion.web.server import LIBRARIES


@dataclass(frozen=True)
class Serve(Verb):
    """Serve a web page: watch and compare runs, sample, and edit images.

    patch-diffusion serve runs

    The page is for this machine alone, loads nothing from elsewhere, and needs no network.
    """

    runs: Annotated[Positional[Path], arg(metavar="[RUNS]")] = Path("runs")
    """Folder of runs, or a run folder. New runs appear on the page as they start."""
    host: str = "127.0.0.1"
    """Address to listen on. 0.0.0.0: all addresses, so that everyone who reaches this machine can use the page."""
    port: int = 7474
    """Port to listen on; 0 is any free port."""
    allow_host: tuple[str, ...] = ()
    """Further host names under which the page may be opened, such as that of a proxy in front of it."""
    device: str = "auto"
    """Device to run models on: auto, cpu, cuda, cuda:1 or mps. auto: a GPU if there is one."""
    json: Json = None
    """Print the address as JSON on stdout once the server is ready, or write it to a file."""

    def check_given(self) -> None:
        """Raise an `InputError` if a library of the page is missing."""
        super().check_given()
        for library in LIBRARIES:
            check_library(library, "serve", "the page")

    def run(self) -> dict[str, Any]:
        """Serve the web page until Ctrl-C, the ordinary way to end it."""
        patch_diffusion.serve(
            self.runs,
            host=self.host,
            port=self.port,
            allow_host=self.allow_host,
            device=self.device,
            ready=self._tell,
        )
        return {}

    def _tell(self, address: str) -> None:
        found = {"address": address, "runs": str(self.runs)}
        if self.prints_json:  # in one line, which whoever started the page can read as it comes
            say(to_json(found, lines=False), flush=True)
            return
        tell(self, found)
        say(f"{self.runs} is shown at {address}  (Ctrl-C ends it)", aside=True, flush=True)
        if not user_path(self.runs).exists():
            say(f"{self.runs} does not exist yet: its runs appear when there are some", aside=True, flush=True)
        if self.host not in ("127.0.0.1", "::1", "localhost"):
            say("whoever reaches this machine can use the page: it asks for no password", aside=True, flush=True)
