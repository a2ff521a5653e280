"""Kill a run at random moments, also while it saves, continue it each time, and compare it with one left alone."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from checkpoint_files import read_checkpoint
from patch_diffusion.runs.folder import RunFolder

OPTIONS = [
    *("--network.width", "8", "--network.multipliers", "1", "2", "--network.blocks", "1", "--network.attention", "1"),
    *("--batch", "4", "--samples", "3", "--log-every", "3", "--checkpoints", "5", "--ema.lengths", "0.1"),
    *("--checkpoint-minutes", "0.001", "--engine.threads", "1", "--held-out", "0.05"),
]


def start(run: Path, steps: int, processes: int = 1, delay: float = 0.0) -> subprocess.Popen[str]:
    """The command in a group of its own; ``delay`` seconds are slept in every step, to have time to kill it."""
    program = (
        "import sys, time\n"
        "from patch_diffusion.training.trainer import Trainer\n"
        "step = Trainer.train_step\n"
        f"Trainer.train_step = lambda self, spent: time.sleep({delay}) or step(self, spent)\n"
        "from patch_diffusion.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    words = ["train", "digits", "--out", str(run), "--steps", str(steps), *OPTIONS]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if processes == 1:
        command = [sys.executable, "-c", program, *words]
    else:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "--no-python"]
        command = [sys.executable, *launcher, sys.executable, "-c", program, *words]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def kill_and_continue(
    run: Path, *, kills: int, steps: int, seed: int, processes: int = 1, seconds: float = 1.0
) -> dict[str, int]:
    """Train with so many kills, each up to some seconds after training was under way; how many fell into a save."""
    delay = 2 * kills * seconds / steps
    draw = random.Random(seed)
    told: list[bool] = []
    while len(told) < kills:
        process = start(run, steps, processes, delay)
        log, before = run / "log.jsonl", _time(run)
        # Once it is under way again, at a moment of its own; every third one as soon as a save is seen after it.
        while process.poll() is None and _time(run) == before:
            time.sleep(0.005)
        wanted, end = len(told) % 3 == 0, time.monotonic() + draw.uniform(0.0, seconds)
        while process.poll() is None and time.monotonic() < end - seconds / 2:
            time.sleep(0.0005)
        while process.poll() is None and time.monotonic() < end and not (wanted and _saving(run)):
            time.sleep(0.0005)
        if process.poll() is not None:
            if process.returncode != 0:
                raise RuntimeError(process.communicate()[1][-2000:])
            break
        kill(process)
        told.append(_saving(run))  # an unfinished one is still there
        assert log.exists()
    process = start(run, steps, processes)
    errors = process.communicate(timeout=300)[1]
    if process.returncode != 0:
        raise RuntimeError(errors[-2000:])
    return {"kills": len(told), "during_a_save": sum(told)}


def kill(process: subprocess.Popen[str]) -> None:
    """It and all that it has started, at once. Those of torchrun have process groups of their own."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended meanwhile
            continue
    family = [process.pid]
    for each in family:
        family += [child for child, parent in parents.items() if parent == each]
    for each in family:
        with suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)
    process.communicate()
    while not all(map(_is_dead, family)):
        time.sleep(0.001)


def _is_dead(process: int) -> bool:
    """Gone, or left for its parent to ask about."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def differences(run: Path, other: Path) -> list[str]:
    """In what two finished runs differ: tensors of the last checkpoint, the model, counters, the log. No clocks."""
    folders = RunFolder(run), RunFolder(other)
    (tensors, state), (expected, expected_state) = (read_checkpoint(each.checkpoints()[-1]) for each in folders)
    found = []
    for group in expected.keys() | tensors.keys():
        names = expected.get(group, {}).keys() | tensors.get(group, {}).keys()
        found += [
            f"{group} {name}" for name in sorted(names) if not torch.equal(tensors[group][name], expected[group][name])
        ]
    if folders[0].model_file.read_bytes() != folders[1].model_file.read_bytes():
        found.append("model.safetensors")
    for each in (state, expected_state):
        del each["seen"]["seconds"], each["time"]
    if state != expected_state:
        found.append(f"state: {state} {expected_state}")
    logs = [_untimed(folder.log_file) for folder in folders]
    if logs[0] != logs[1]:
        found.append(f"log: {[line for line in logs[0] if line not in logs[1]][:3]}")
    if [path.name for path in folders[0].checkpoints()] != [path.name for path in folders[1].checkpoints()]:
        found.append(f"checkpoints: {[path.name for path in folders[0].checkpoints()]}")
    return found


def _untimed(log: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def _time(run: Path) -> int:
    log = run / "log.jsonl"
    return log.stat().st_mtime_ns if log.exists() else 0


def _saving(run: Path) -> bool:
    return any((run / "checkpoints").glob("*.tmp"))
