"""``patch-diffusion serve``."""

from __future__ import annotations

import json as json_library
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

import patch_diffusion
from patch_diffusion.cli.parsing import parse


@dataclass(frozen=True)
class Serve:
    """Open a page of runs: watch, sample, compare, edit.

    patch-diffusion serve runs

    It is for this machine alone, loads nothing from elsewhere, and needs no network.
    """

    runs: Annotated[Positional[Path], arg(metavar="[RUNS]")] = Path("runs")
    """Folder with runs, or a run. Runs that are begun while it is served appear."""
    host: str = "127.0.0.1"
    """Address to listen at. 0.0.0.0: all, and whoever reaches this machine can use the page."""
    port: int = 7474
    """Port to listen at; 0 for any that is free."""
    device: str = "auto"
    """What models are run on: auto, cpu, cuda, cuda:1, mps."""
    json: bool = False
    """Print the address as JSON on stdout, once the page is there."""

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> Serve:
        """From words."""
        return parse(cls, "serve", arguments)

    def run(self) -> dict[str, Any]:
        """Serve until Ctrl-C, which is its ordinary end."""
        patch_diffusion.serve(self.runs, host=self.host, port=self.port, device=self.device, ready=self._tell)
        return {}

    def message(self, result: dict[str, Any]) -> str:
        """It was told at the beginning."""
        return ""

    def after_interrupt(self) -> str:
        """Before the page was there."""
        return ""

    def _tell(self, address: str) -> None:
        if self.json:
            print(json_library.dumps({"address": address, "runs": str(self.runs)}), flush=True)
            return
        print(f"{self.runs} is shown at {address}  (Ctrl-C ends it)", file=sys.stderr, flush=True)
        if self.host not in ("127.0.0.1", "::1", "localhost"):
            print("whoever reaches this machine can use the page: it asks for no password", file=sys.stderr, flush=True)
