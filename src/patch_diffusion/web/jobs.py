"""The job queue of the web server: requests to models, run one after the other, with their events and results."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

from patch_diffusion.errors import InputError, Note, reason_of

MOST_WAITING = 32
_KEPT = 24  # finished jobs whose pictures can still be fetched
_MOST_BYTES = 512 * 2**20  # disk space that finished jobs may take
_LONELY_SECONDS = 60.0  # a job is stopped after this time without a request from a page
_LONELY_IN_THE_WAY = 5.0  # or after this time if other jobs wait for it

Event = dict[str, Any]
State = Literal["waiting", "running", "done", "failed", "stopped"]


class BusyError(InputError):
    """An error for a job that is refused because the queue is full."""


class StoppedError(Exception):
    """An exception that ends a stopped job, raised in the thread that runs it."""


class Job:
    """A long-running task of the web server, with its state and the events that it has reported so far.

    Args:
        folder: the folder for the job's files, used by no other job.
        about: what was asked for, as the page lists it.
        others_wait: returns True if other jobs wait for this one.
    """

    def __init__(
        self, folder: Path, about: Mapping[str, Any] | None = None, others_wait: Callable[[], bool] = lambda: False
    ) -> None:
        self.id: str = folder.name
        self.folder = folder
        self.about: Mapping[str, Any] = about or {}
        self.asked_at: float = time.time()
        self._others_wait = others_wait
        self.state: State = "waiting"
        self.reason: str = ""
        self.events: list[Event] = []
        self.looked_at: float = time.monotonic()
        self.asked_to_stop = False
        self.size = 0  # bytes on disk, once it is over
        self._wakes: set[Callable[[], object]] = set()

    def tell(self, kind: str, **values: Any) -> None:
        """Add an event to those that the page fetches from this job, and raise if the job is to stop, see `check`."""
        self.events.append({"event": kind, **values})
        self._wake()
        self.check()

    def check(self) -> None:
        """Raise `StoppedError` if the job was stopped, or if no page has requested its news for a while.

        That is a minute, or some seconds if others wait: a page that was closed or has crashed requests no more.
        """
        if self.asked_to_stop:
            raise StoppedError
        if time.monotonic() - self.looked_at > (_LONELY_IN_THE_WAY if self._others_wait() else _LONELY_SECONDS):
            raise StoppedError("its page was closed, or could not ask for its news")

    def become(self, state: State, reason: str = "") -> None:
        """Set the state of the job, with the reason of a failure, and wake the requests that wait for news."""
        self.reason, self.state = reason, state  # whoever sees the state sees its reason
        self._wake()

    async def after(self, num: int, state: str = "", wait: float = 0.0) -> tuple[State, list[Event]]:
        """Return the job's state and its events after the first ``num``; wait up to ``wait`` seconds for news."""
        self.looked_at = time.monotonic()
        come = asyncio.Event()
        wake = partial(asyncio.get_running_loop().call_soon_threadsafe, come.set)
        self._wakes.add(wake)  # before the first look, so that nothing is missed
        try:
            if wait and len(self.events) <= num and self.state == state and not self.is_over:
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(come.wait(), wait)
        finally:
            self._wakes.discard(wake)
        self.looked_at = time.monotonic()
        return self.state, self.events[num:]

    def _wake(self) -> None:
        for wake in list(self._wakes):
            wake()

    @property
    def is_over(self) -> bool:
        """True if the job is done, failed or stopped."""
        return self.state in ("done", "failed", "stopped")


class Jobs:
    """A job queue with a single worker thread, so that only one model computes at a time.

    Args:
        folder: the parent of the jobs' folders; the oldest finished jobs are deleted as new jobs come.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._jobs: dict[str, Job] = {}  # in their order
        self._lock = threading.Lock()
        self._worker = ThreadPoolExecutor(1, "jobs")

    def add(self, task: Callable[[Job], None], about: Mapping[str, Any] | None = None) -> Job:
        """Queue a task as a new job, and return the job; ``about`` is what was asked for, see `Job`.

        Raises:
            BusyError: the queue is full.
        """
        with self._lock:
            if self._num_waiting() >= MOST_WAITING:
                raise BusyError(f"{MOST_WAITING} requests are waiting already: try again in a while")
            job = Job(self._folder / secrets.token_urlsafe(9), about, lambda: self._num_waiting() > 0)
            job.folder.mkdir(parents=True)
            self._jobs[job.id] = job
            forgotten = self._forgotten()
            self._worker.submit(self._do, job, task)
        for old in forgotten:
            shutil.rmtree(old.folder, ignore_errors=True)
        return job

    def find(self, identity: str) -> Job | None:
        """Return the job with this identifier, or None if it is no longer kept."""
        return self._jobs.get(identity)

    def over(self) -> list[Job]:
        """Return the jobs that are over and still kept, the newest first."""
        return [job for job in reversed(list(self._jobs.values())) if job.is_over]

    def ahead_of(self, job: Job) -> int:
        """Return the number of jobs that are waiting or running ahead of this one, which waits."""
        with self._lock:
            return sum(not other.is_over for other in takewhile(lambda other: other is not job, self._jobs.values()))

    def stop(self, job: Job) -> None:
        """Stop a job, waiting or running; its results so far are kept."""
        with self._lock:
            job.asked_to_stop = True
            if job.state == "waiting":
                job.become("stopped")

    def close(self) -> None:
        """Stop all jobs and join the worker after its current step, as a thread inside torch cannot be abandoned."""
        for job in list(self._jobs.values()):
            self.stop(job)
        self._worker.shutdown()

    def _do(self, job: Job, task: Callable[[Job], None]) -> None:
        with self._lock:
            if job.is_over:  # it was stopped while it waited
                return
            job.become("running")
        state, reason = "done", ""
        try:
            job.check()
            with _telling_notes(job):
                task(job)
        except StoppedError as error:
            state, reason = "stopped", str(error)
        except InputError as error:
            state, reason = "failed", str(error)
        except OSError as error:  # for instance, a run was deleted meanwhile, or the disk is full
            state, reason = "failed", reason_of_file(error)
        except Exception as error:  # a defect, or too little memory, must not keep the next job from running
            traceback.print_exc(file=sys.stderr)
            state, reason = "failed", reason_of(error)
        job.size = sum(path.stat().st_size for path in job.folder.rglob("*") if path.is_file())
        job.become(state, reason)

    def _num_waiting(self) -> int:
        return sum(job.state == "waiting" for job in list(self._jobs.values()))

    def _forgotten(self) -> list[Job]:
        """Remove finished jobs, the oldest first, beyond the number and the bytes that are kept, and return them."""
        over = [job for job in self._jobs.values() if job.is_over]
        forgotten: list[Job] = []
        while over and (len(over) > _KEPT or sum(job.size for job in over) > _MOST_BYTES):
            forgotten.append(self._jobs.pop(over.pop(0).id))
        return forgotten


@contextmanager
def _telling_notes(job: Job) -> Iterator[None]:
    """Tell the page each `Note` of the with block, once; other warnings stay with Python."""
    told: set[str] = set()

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if not issubclass(category, Note):
            as_before(message, category, *place, **more)
        elif str(message) not in told:
            told.add(str(message))
            job.tell("note", text=str(message))

    with warnings.catch_warnings():
        as_before = warnings.showwarning
        warnings.simplefilter("always", Note)
        warnings.showwarning = show
        yield


def reason_of_file(error: OSError) -> str:
    """Return an error about a file in one line: what is wrong, and with which file."""
    return f"{error.strerror or error}: {error.filename or ''}".rstrip(": ")
