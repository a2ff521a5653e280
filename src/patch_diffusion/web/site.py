"""The web page's API: one function per path, which knows nothing of HTTP but the status codes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from patch_diffusion.errors import InputError
from patch_diffusion.files import to_json
from patch_diffusion.runs.page import STYLE
from patch_diffusion.training.suggest import stride
from patch_diffusion.web import uploads
from patch_diffusion.web.jobs import BusyError, Job, Jobs
from patch_diffusion.web.models import Models
from patch_diffusion.web.requests import EditRequest, SampleRequest, options_schema, read_request
from patch_diffusion.web.runs import GoneError, Runs

MOST_BYTES = {"/api/fit": uploads.MOST_BYTES, "/api/generate": 2**16, "/api/edit": 16 * 2**20, "/api/stop": 0}
"""The largest request body, in bytes, of each path that takes a POST request."""

_WAIT_SECONDS = 10.0  # longest wait of a request for news of a job
_SECONDS_TRUE = 1.0  # lifetime of the cached list of runs, so that many pages read the disk as often as one
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".zip": "application/zip",
}
_STATIC = files("patch_diffusion.web") / "static"


@dataclass(frozen=True)
class Answer:
    """An answer to an HTTP request: body, content type, status code and headers."""

    content: bytes
    kind: str = "application/json"
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


Query = Mapping[str, str]


class Site:
    """The web site of a folder of runs: static files, data about runs, and jobs that make or edit pictures.

    Args:
        folder: the folder of runs.
        work: an empty folder for the pictures that jobs make.
        device: see `choose_device`.
    """

    def __init__(self, folder: Path, work: Path, device: str = "auto") -> None:
        self.runs: Runs = Runs(folder)
        self.jobs: Jobs = Jobs(work)
        self._models = Models(device)
        self._static = {path.name: path.read_bytes() for path in _STATIC.iterdir() if path.is_file()}
        self._static["style.css"] = STYLE.encode() + self._static["style.css"]
        self._list: tuple[float, bytes] = (0.0, b"")
        self._lock = threading.Lock()
        self._questions: dict[str, Callable[[Query], Answer]] = {
            "/": lambda query: self._file("index.html"),
            "/api/runs": self._overview,
            "/api/run": lambda query: _json(self.runs.detail(_one(query, "name"), query.get("known", ""))),
            "/api/picture": lambda query: _of_file(self.runs.picture(_one(query, "run"), _one(query, "file"))),
            "/api/options": lambda query: _json(options_schema()),
            "/api/job": self._job,
            "/api/file": self._result,
        }
        self._requests: dict[str, Callable[[Query, bytes], Answer]] = {
            "/api/fit": self._fit,
            "/api/generate": self._generate,
            "/api/edit": self._edit,
            "/api/stop": self._stop,
        }

    def ask(self, path: str, query: Query) -> Answer:
        """Answer a GET request for a path."""
        if path in self._questions:
            return _answered(partial(self._questions[path], query))
        if path.startswith("/static/"):
            return _answered(partial(self._file, path.removeprefix("/static/")))
        return refused(404, f"there is nothing at {path}")

    def request(self, path: str, query: Query, body: bytes) -> Answer:
        """Answer a POST request for a path."""
        if path not in self._requests:
            return refused(404, f"there is nothing at {path}")
        return _answered(partial(self._requests[path], query, body))

    def _file(self, name: str) -> Answer:
        if name not in self._static:
            raise GoneError(f"there is no file '{name}'")
        return Answer(self._static[name], _TYPES[Path(name).suffix])

    def _overview(self, query: Query) -> Answer:
        with self._lock:
            since, content = self._list
            if not content or time.monotonic() - since > _SECONDS_TRUE:
                found = {"folder": str(self.runs.folder), "runs": self.runs.overview()}
                content = to_json(found, lines=False).encode()
                self._list = (time.monotonic(), content)
        return Answer(content)

    def _fit(self, query: Query, body: bytes) -> Answer:
        config, facts = self.runs.find(_one(query, "run")).read_config()
        own = {"run": False, "own": True}.get(size := query.get("size", "run"))
        if own is None:
            raise InputError(f"size is run or own, not '{size}'")
        return Answer(uploads.fitted(body, facts, own_size_of=stride(config.network) if own else None), "image/png")

    def _generate(self, query: Query, body: bytes) -> Answer:
        from patch_diffusion.web.making import generate

        wanted = read_request(SampleRequest, body)
        folders = [self.runs.find(chosen.run) for chosen in wanted.models]
        return _json({"job": self.jobs.add(partial(generate, wanted, folders, self._models)).id})

    def _edit(self, query: Query, body: bytes) -> Answer:
        from patch_diffusion.web.making import edit

        wanted = read_request(EditRequest, body)
        folder = self.runs.find(wanted.model.run)
        return _json({"job": self.jobs.add(partial(edit, wanted, folder, self._models)).id})

    def _stop(self, query: Query, body: bytes) -> Answer:
        self.jobs.stop(self._find(query))
        return _json({})

    def _job(self, query: Query) -> Answer:
        job, after = self._find(query), query.get("after", "0")
        if not after.isdecimal():
            raise InputError(f"after is a number of events, not '{after}'")
        state, events = job.after(int(after), query.get("state", ""), _WAIT_SECONDS)
        return _json({"state": state, "reason": job.reason, "ahead": self.jobs.ahead_of(job), "events": events})

    def _result(self, query: Query) -> Answer:
        job, name = self._find(query), _one(query, "name")
        # The name is compared with the files of the folder, so that no name can lead out of it.
        for path in job.folder.rglob("*"):
            if path.is_file() and path.relative_to(job.folder).as_posix() == name:
                saved = {"Content-Disposition": f'attachment; filename="{path.name}"'} if "save" in query else {}
                return _of_file(path, {"Cache-Control": "private, max-age=3600, immutable", **saved})
        raise GoneError("this picture is not kept any more: make it anew from its settings")

    def _find(self, query: Query) -> Job:
        job = self.jobs.find(_one(query, "id" if "id" in query else "job"))
        if job is None:
            raise GoneError("this request is not known any more: make it anew")
        return job


def _answered(answer: Callable[[], Answer]) -> Answer:
    try:
        return answer()
    except GoneError as error:
        return refused(404, str(error))
    except BusyError as error:
        return refused(503, str(error))
    except InputError as error:
        return refused(400, str(error), error.option)
    except OSError as error:  # for instance, a run was deleted at this moment
        return refused(404, f"{error.strerror or error}: {error.filename or ''}".rstrip(": "))


def refused(status: int, reason: str, option: str | None = None) -> Answer:
    """Return the answer to a request that failed, with the reason, and the option at fault if it is one, as JSON."""
    return Answer(to_json({"error": reason, "option": option}, lines=False).encode(), status=status)


def _json(content: Mapping[str, Any]) -> Answer:
    return Answer(to_json(content, lines=False).encode())


def _of_file(path: Path, headers: Mapping[str, str] | None = None) -> Answer:
    kind = _TYPES.get(path.suffix, "application/octet-stream")
    return Answer(path.read_bytes(), kind, headers=headers or {})


def _one(query: Query, name: str) -> str:
    if name not in query:
        raise InputError(f"the address lacks the parameter '{name}'")
    return query[name]
