"""What the page asks a model for, one after the other, and what became of it."""

from __future__ import annotations

import secrets
import shutil
import sys
import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from patch_diffusion.errors import InputError

MOST_WAITING = 32
_KEPT = 24  # jobs that are over, whose pictures can still be asked for
_MOST_BYTES = 512 * 2**20  # that they may take on the disk
_LONELY_SECONDS = 60.0  # after which a job that no page asks for any more is stopped

Event = dict[str, Any]
State = Literal["waiting", "running", "done", "failed", "stopped"]


class BusyError(InputError):
    """More is waiting than will be waited for."""


class StoppedError(Exception):
    """A job that was stopped, in its own thread."""


class Job:
    """Something that takes a while, and tells what it has so far.

    Args:
        folder: for its files; it has it for itself.
    """

    def __init__(self, folder: Path) -> None:
        self.id = folder.name
        self.folder = folder
        self.state: State = "waiting"
        self.reason = ""
        self.events: list[Event] = []
        self.looked_at = time.monotonic()
        self.asked_to_stop = False
        self._news = threading.Condition()

    def tell(self, kind: str, **values: Any) -> None:
        """Add an event, and stop here if that was asked for.

        Raises:
            StoppedError: the job was stopped, or nobody asks for it any more.
        """
        with self._news:
            self.events.append({"event": kind, **values})
            self._news.notify_all()
        self.check()

    def check(self) -> None:
        """Stop here if that was asked for."""
        if self.asked_to_stop or time.monotonic() - self.looked_at > _LONELY_SECONDS:
            raise StoppedError

    def become(self, state: State, reason: str = "") -> None:
        """Change the state."""
        with self._news:
            self.state, self.reason = state, reason
            self._news.notify_all()

    def after(self, num: int, state: str = "", wait: float = 0.0) -> tuple[State, list[Event]]:
        """The state, and the events after the first ``num``; waits so many seconds for something new of either."""
        self.looked_at = time.monotonic()
        with self._news:
            self._news.wait_for(lambda: len(self.events) > num or self.state != state or self.is_over, wait)
            self.looked_at = time.monotonic()
            return self.state, self.events[num:]

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come of it."""
        return self.state in ("done", "failed", "stopped")


class Jobs:
    """A queue with one thread that works: a model has the machine for itself.

    Args:
        folder: where jobs have their files; jobs that are over lose them, the oldest first, as others come.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._tasks: list[tuple[Job, Callable[[Job], None]]] = []
        self._change = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, name="jobs", daemon=True)
        self._thread.start()

    def add(self, task: Callable[[Job], None]) -> Job:
        """Have something done.

        Raises:
            BusyError: too much is waiting.
        """
        with self._change:
            if len(self._tasks) >= MOST_WAITING:
                raise BusyError(f"{MOST_WAITING} requests are waiting already: try again in a while")
            job = Job(self._folder / secrets.token_urlsafe(9))
            job.folder.mkdir(parents=True)
            self._jobs[job.id] = job
            self._tasks.append((job, task))
            self._forget()
            self._change.notify_all()
        return job

    def find(self, identity: str) -> Job | None:
        """A job by its name, if it is still known."""
        with self._change:
            return self._jobs.get(identity)

    def ahead_of(self, job: Job) -> int:
        """How many are done before it."""
        with self._change:
            waiting = [other for other, _ in self._tasks]
            running = any(other.state == "running" for other in self._jobs.values())
            return (waiting.index(job) + running) if job in waiting else 0

    def stop(self, job: Job) -> None:
        """Have it done no further; what it has so far stays."""
        job.asked_to_stop = True
        with self._change:
            if any(other is job for other, _ in self._tasks):
                self._tasks = [(other, task) for other, task in self._tasks if other is not job]
                job.become("stopped")

    def close(self) -> None:
        """Stop all, and wait for the end of the step that is taken: a thread inside torch cannot be left behind."""
        with self._change:
            self._is_closed = True
            jobs = list(self._jobs.values())
            self._change.notify_all()
        for job in jobs:
            self.stop(job)
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._tasks or self._is_closed)
                if self._is_closed:
                    return
                job, task = self._tasks.pop(0)
                job.become("running")
            self._do(job, task)

    def _do(self, job: Job, task: Callable[[Job], None]) -> None:
        try:
            job.check()
            task(job)
            job.become("done")
        except StoppedError:
            job.become("stopped")
        except InputError as error:
            job.become("failed", str(error))
        except OSError as error:  # a run was deleted meanwhile, or the disk is full
            job.become("failed", f"{error.strerror or error}: {error.filename or ''}".rstrip(": "))
        except Exception as error:  # a defect, or too little memory: the next is done all the same
            traceback.print_exc(file=sys.stderr)
            reason = " ".join(str(error).split())[:300]
            job.become("failed", f"{type(error).__name__}: {reason}")

    def _forget(self) -> None:
        """Remove jobs that are over, the oldest first, beyond what is kept."""
        over = [job for job in self._jobs.values() if job.is_over]
        sizes = {job.id: _size(job.folder) for job in over}
        while over and (len(over) > _KEPT or sum(sizes[job.id] for job in over) > _MOST_BYTES):
            job = over.pop(0)
            del self._jobs[job.id]
            shutil.rmtree(job.folder, ignore_errors=True)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
