"""Attempts: work in a process of its own, within limits of time, memory and bytes; and the fault in how it ended.

A process is forked for each attempt, so that an end without a word, an endless loop in C or memory without end takes
nothing else along, and what libraries were imported need not be imported again. CPU time is that of the process with
all its threads. At the limit it writes where each thread is, and the system ends it a second later, whatever it does.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import json
import os
import re
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LONGEST_LINE = 4000
"""Characters of the one line that says what is wrong."""


@dataclass(frozen=True)
class Limits:
    """Of one attempt: seconds of CPU and of waiting, bytes of memory beyond those at its start, and bytes written."""

    cpu: int = 20
    wall: float = 150.0
    memory: int = 3 * 2**29
    written: int = 64 * 2**20


@dataclass(frozen=True)
class Ended:
    """How an attempt ended: the exit status, negative for a signal, what was said, and the fault, empty if none."""

    status: int
    out: str
    err: str
    cpu: float
    fault: str = ""
    place: str = ""

    @property
    def outcome(self) -> str:
        """The fault, or the exit status in words."""
        if self.fault:
            return "fault"
        if "more memory than there is" in self.err:
            return "one line: more memory than there is"
        return {0: "done", 1: "one line", 2: "one line: wrong usage", 130: "interrupted"}[self.status]


def attempt(work: Callable[[], int | None], folder: Path, name: str | None = "", limits: Limits | None = None) -> Ended:
    """Do some work in a process of its own, whose working folder is ``folder``, and judge how it ended.

    Args:
        work: returns an exit status; None is 0.
        folder: where it may write. What it says is kept beside it.
        name: the name that begins the line of a refusal, as in "patch-diffusion train"; None: it says nothing at all.
        limits: the usual ones if None.
    """
    limits = limits or Limits()
    said = [folder.with_name(f"{folder.name}.{stream}") for stream in ("out", "err")]
    before = _files(folder)
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer versions of Python warn of a fork beside threads
        process = os.fork()
    if process == 0:
        _be_the_child(work, folder, said, limits)
    status, cpu, waited = _wait(process, limits)
    out, err = (path.read_bytes().decode("utf-8", errors="backslashreplace") for path in said)
    ended = Ended(status, out, err, cpu)
    if waited > limits.wall:
        return faulty(ended, f"no end within {limits.wall:g} s of waiting")
    if cpu >= limits.cpu:
        return faulty(ended, f"more than {limits.cpu} s of CPU time")
    if status < 0:
        return faulty(ended, f"ended by {signal.Signals(-status).name}")
    if "Traceback (most recent call last)" in err:
        return faulty(ended, "traceback")
    after = _files(folder)
    if sum(size - before.get(file, ("", 0))[1] for file, (_, size) in after.items()) > limits.written:
        return faulty(ended, "too many bytes written")
    new = [path for file, (path, _) in after.items() if file not in before]
    fault = _fault_of_words(ended, name) or _fault_of_files(new)
    return faulty(ended, fault) if fault else ended


def strictly(text: str | bytes) -> Any:
    """Return the value of JSON as browsers read it: in UTF-8, without NaN and Infinity."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    return json.loads(text if isinstance(text, str) else text.decode("utf-8"), parse_constant=refuse)


@dataclass
class Tally:
    """Outcomes of many cases; of each fault, by its place, how often it came and the smallest case."""

    title: str
    outcomes: Counter[str] = field(default_factory=Counter)
    found: dict[tuple[str, str], tuple[int, str, Ended]] = field(default_factory=dict)
    cpu: float = 0.0

    def add(self, case: str, ended: Ended) -> None:
        """Count a case."""
        self.outcomes[ended.outcome] += 1
        self.cpu = max(self.cpu, ended.cpu)
        if ended.fault:
            kind = (ended.fault.partition(":")[0], ended.place or re.sub(r"\d+", "0", ended.fault)[:80])
            times, smallest, example = self.found.get(kind, (0, case, ended))
            smaller = len(case) < len(smallest)
            self.found[kind] = (times + 1, case if smaller else smallest, ended if smaller else example)

    @property
    def summary(self) -> str:
        """The number of cases by outcome, and the longest one."""
        by_outcome = ", ".join(f"{outcome} {times:,}" for outcome, times in self.outcomes.most_common())
        return f"{self.title}: {self.outcomes.total():,} cases ({by_outcome}); at most {self.cpu:.1f} s of CPU time"

    def told(self) -> str:
        """Every fault: how often, where, and the smallest case."""
        lines = [self.summary]
        for (_, place), (times, case, ended) in sorted(self.found.items(), key=lambda item: -item[1][0]):
            lines += [f"\n- {times} x {ended.fault[:500]}", f"  at {place or 'no place in the package'}", f"  {case}"]
        return "\n".join(lines)


_ARENAS = -8  # M_ARENA_MAX of glibc


def _be_the_child(work: Callable[[], int | None], folder: Path, said: Sequence[Path], limits: Limits) -> None:
    """Prepare this process, do the work, and end it with its exit status; never return."""
    import resource  # there is none on Windows, where this is not called

    status = 1
    try:
        os.setpgid(0, 0)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, path in enumerate(said, start=1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False, buffering=1)
        (folder / "tmp").mkdir(exist_ok=True)
        tempfile.tempdir = str(folder / "tmp")
        os.environ["PATCH_DIFFUSION_CACHE"] = str(folder / "cache")
        os.chdir(folder)
        warnings.resetwarnings()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        faulthandler.enable(file=2)
        faulthandler.register(signal.SIGXCPU, file=2)
        ctypes.CDLL(None).mallopt(_ARENAS, 1)  # each thread's arena would reserve 64 MB of the address space
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        for kind, soft, hard in (
            (resource.RLIMIT_CPU, limits.cpu, limits.cpu + 1),
            (resource.RLIMIT_AS, used + limits.memory, used + limits.memory),
            (resource.RLIMIT_FSIZE, 4 * limits.written, 4 * limits.written),
            (resource.RLIMIT_CORE, 0, 0),
        ):
            resource.setrlimit(kind, (soft, hard))
        try:
            status = work() or 0
        except SystemExit as stopped:
            status = stopped.code if isinstance(stopped.code, int) else 0 if stopped.code is None else 1
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status & 0x7F if status != 130 else 130)


def _wait(process: int, limits: Limits) -> tuple[int, float, float]:
    """Wait for a process and end all that it has started; return its status, seconds of CPU, and seconds waited."""
    begun, pause = time.monotonic(), 0.001
    ended, status, usage = os.wait4(process, os.WNOHANG)
    while not ended:
        time.sleep(pause)
        pause = min(2 * pause, 0.02)
        if time.monotonic() - begun > limits.wall:
            os.kill(process, signal.SIGXCPU)  # where it is
            time.sleep(0.3)
            os.kill(process, signal.SIGKILL)
            ended, status, usage = os.wait4(process, 0)
            break
        ended, status, usage = os.wait4(process, os.WNOHANG)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime, time.monotonic() - begun


def _files(folder: Path) -> dict[int, tuple[Path, int]]:
    """Return path and size of each file in a folder, by its number, which a file keeps under another name."""
    paths = [Path(top) / name for top, _, names in os.walk(folder) for name in names]
    return {path.lstat().st_ino: (path, path.lstat().st_size) for path in paths}


def _fault_of_words(ended: Ended, name: str | None) -> str:
    """Return what is wrong with what was said, by the exit status; empty if nothing is."""
    lines = ended.err.splitlines()
    if ended.status not in (0, 1, 2, 130):
        return f"exit status {ended.status}"
    if unprintable := re.search(r"[^\n\r\t\x20-\x7e\xa0-\U0010ffff]", ended.err):
        return f"a control character on stderr: {unprintable[0]!r} in {ended.err[-200:]!r}"
    if name is None:
        return f"exit status {ended.status}, said: {ended.err}" if ended.status or ended.err else ""
    reasons = [line for line in lines if line.startswith(f"{name}: ")]
    if ended.status and (len(reasons) != 1 or lines[-1] != reasons[0]):
        return f"not one line at the end: {ended.err[-300:]!r}"
    if not ended.status and reasons:
        return f"a reason to fail, and status 0: {reasons[0]!r}"
    if max(map(len, lines), default=0) > LONGEST_LINE or len(ended.err) > 20 * LONGEST_LINE:
        return f"a line of {max(map(len, lines)):,} characters: {ended.err[:300]!r}"
    return ""


def _fault_of_files(new: Sequence[Path]) -> str:
    """Return what is wrong with new files: invalid JSON, or one that is half written."""
    for path in new:
        if path.suffix in (".tmp", ".partial"):
            return f"a half-written file is left: {path.name}"
        if path.suffix == ".json":
            try:
                strictly(path.read_bytes())
            except (ValueError, RecursionError) as error:
                return f"invalid JSON in a new file: {path.name}: {error}"
    return ""


def faulty(ended: Ended, fault: str) -> Ended:
    """Return an end with its fault, and the place in the package where that came from."""
    blocks = re.split(r"Traceback \(most recent call last\):|Fatal Python error|most recent call first", ended.err)
    frame = re.compile(r'File ".*/src/patch_diffusion/([\w/.]+)", line (\d+)(?:,)? in (\S+)')
    places = [found for block in blocks[1:] if (found := frame.findall(block))]
    place = ""
    if places:
        # The innermost frame: at the end of a traceback, and at the begin of what is written at a limit.
        path, line, function = places[-1][-1] if fault == "traceback" else places[-1][0]
        place = f"{path}:{line} {function}"
    if fault == "traceback":
        after = blocks[-1].splitlines()
        raised = [line for line in after if line and not line.startswith((" ", "The above", "During"))]
        fault = raised[0] if raised else fault
        if not place:
            place = fault.partition(":")[0]
    return Ended(ended.status, ended.out, ended.err, ended.cpu, fault, place)
