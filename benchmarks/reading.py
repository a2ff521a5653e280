"""How much of the package one reads to read one training step, and one sampled image.

    python benchmarks/reading.py

Traces one real step on the CPU with default options, from taking a batch to the updated average, and one sampled image,
and counts the lines of every function of the package that runs: whole bodies, docstrings included. Left out are the
insides of networks and optimizers. The thread that prepares the next batch while a step computes is a way of its
own, counted as the third.
"""

from __future__ import annotations

import argparse
import ast
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch

import patch_diffusion as pd
from patch_diffusion.sampling.generate import generate
from patch_diffusion.training.batches import Position
from patch_diffusion.training.build import build_trainer

ROOT = Path(pd.__file__).parent
LEFT_OUT = ("denoise/networks/", "training/optimizing/muon.py", "training/optimizing/schedule_free.py")
AHEAD = "preparing batches"
"""Name of the thread whose way is counted apart."""

Places = set[tuple[str, int]]
"""Functions that ran, by file and first line."""


class Tracer:
    """Collects the functions that run while it is on, of all threads that begin after it."""

    def __init__(self) -> None:
        self.on = False
        self.here: Places = set()
        self.ahead: Places = set()
        threading.setprofile(self._see)
        sys.setprofile(self._see)

    @contextmanager
    def watching(self) -> Iterator[Places]:
        """Collect the functions that run in the block, the thread of batches left out."""
        self.here.clear()
        self.on = True
        try:
            yield self.here
        finally:
            self.on = False

    def _see(self, frame: FrameType, event: str, argument: object) -> None:
        name = frame.f_code.co_filename
        if self.on and event == "call" and name.startswith(str(ROOT)):
            found = self.ahead if threading.current_thread().name == AHEAD else self.here
            found.add((name, frame.f_code.co_firstlineno))


def lines_of(places: Places) -> dict[str, dict[str, set[int]]]:
    """Return the lines of the functions that enclose some places, by file and function."""
    found: dict[str, dict[str, set[int]]] = defaultdict(dict)
    for file in sorted({file for file, _ in places}):
        name = Path(file).relative_to(ROOT).as_posix()
        if any(part in name for part in LEFT_OUT):
            continue
        functions = [
            (min([node.lineno, *(each.lineno for each in node.decorator_list)]), node.end_lineno or 0, node.name)
            for node in ast.walk(ast.parse(Path(file).read_text(encoding="utf-8")))
            if isinstance(node, ast.FunctionDef)
        ]
        for _, line in sorted(place for place in places if place[0] == file):  # of equal names the last one counts
            inside = [each for each in functions if each[0] <= line <= each[1]]
            if inside:  # else it is the body of a module or of a class
                first, last, function = max(inside)
                found[name][function] = set(range(first, last + 1))
    return found


def report(title: str, places: Places) -> tuple[int, int]:
    """Print the files and functions of a way, and return how many files and lines they are."""
    found = lines_of(places)
    lines = {name: len(set().union(*functions.values())) for name, functions in found.items()}
    print(f"\n{title}: {len(lines)} files, {sum(lines.values())} lines")
    for name, functions in found.items():
        print(f"{lines[name]:5}  {name}: {', '.join(functions)}")
    return len(lines), sum(lines.values())


def ways(threads: int) -> dict[str, Places]:
    """Trace the three ways."""
    torch.set_num_threads(threads)
    tracer = Tracer()
    with tempfile.TemporaryDirectory() as folder:
        config = pd.Config(data=pd.Config().data, steps=9, samples=0)
        trainer = build_trainer(config, pd.open_images("digits"), folder, show=False)
        with trainer.engine.threads(trainer.state.denoiser):
            trainer.step(0.1)
            with tracer.watching() as places:
                trainer.step(0.2)
            step = set(places)
            with tracer.watching():  # in the thread: all it has done, and a batch more
                trainer.step.batches.get(Position(99, 0, {}))
        with tracer.watching() as places:
            list(generate(trainer.state.average.denoiser, [0]))
        return {"one training step": step, "its batch, prepared ahead": tracer.ahead, "one sampled image": set(places)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--threads", type=int, default=2, help="of the CPU, which share a batch")
    for title, places in ways(parser.parse_args().threads).items():
        report(title, places)


if __name__ == "__main__":
    main()
