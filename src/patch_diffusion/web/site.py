"""The web page's API: one function per path, which answers in a thread unless it only waits."""

from __future__ import annotations

import asyncio
import base64
import mimetypes
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import asdict
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from patch_diffusion.errors import InputError
from patch_diffusion.files import to_json
from patch_diffusion.runs.page import STYLE
from patch_diffusion.training.choices.shapes import stride
from patch_diffusion.web import uploads
from patch_diffusion.web.guard import read_body, refused, shortened
from patch_diffusion.web.jobs import BusyError, Job, Jobs, reason_of_file
from patch_diffusion.web.models import Models
from patch_diffusion.web.requests import EditRequest, ModelChoice, SampleRequest, options_schema, read_request
from patch_diffusion.web.runs import GoneError, Runs, described

_WAIT_SECONDS = 2.0  # longest wait of a request for news of a job: a page that is gone is missed soon after
_SECONDS_TRUE = 1.0  # lifetime of the cached list of runs, so that many pages read the disk as often as one
_THUMBNAILS = 6  # pictures of a request in the list of what was made
_STATIC = Path(str(files("patch_diffusion.web") / "static"))
mimetypes.add_type("text/javascript", ".js")  # some systems say otherwise, and browsers then run no module


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
        self._list: tuple[float, str] = (0.0, "")
        self._lock = threading.Lock()
        one_at_a_time = asyncio.Lock()  # a large picture takes some hundred megabytes
        style = STYLE + (_STATIC / "style.css").read_text(encoding="utf-8")
        routes = [
            Route("/", lambda request: FileResponse(_STATIC / "index.html")),
            Route("/static/style.css", lambda request: Response(style, media_type="text/css")),
            Mount("/static", StaticFiles(directory=_STATIC)),
            Route("/api/runs", self._overview),
            Route("/api/run", self._run),
            Route("/api/picture", self._picture),
            Route("/api/options", lambda request: _json(options_schema())),
            Route("/api/job", self._job),
            Route("/api/jobs", self._made),
            Route("/api/file", self._file),
            _posted("/api/fit", self._fit, uploads.MOST_BYTES, one_at_a_time),
            _posted("/api/mask", self._mask, uploads.MOST_BYTES, one_at_a_time),
            _posted("/api/generate", self._generate, 2**16),
            _posted("/api/edit", self._edit, 16 * 2**20),
            _posted("/api/stop", self._stop, 0),
        ]
        kinds = (GoneError, BusyError, InputError, OSError, HTTPException, ClientDisconnect, Exception)
        self.app: Starlette = Starlette(routes=routes, exception_handlers=dict.fromkeys(kinds, _refusal))
        """The site as an ASGI application."""
        self.app.router.redirect_slashes = False

    def _overview(self, request: Request) -> Response:
        with self._lock:
            since, content = self._list
            if not content or time.monotonic() - since > _SECONDS_TRUE:
                content = to_json({"folder": str(self.runs.folder), "runs": self.runs.overview()}, lines=False)
                self._list = (time.monotonic(), content)
        return Response(content, media_type="application/json")

    def _run(self, request: Request) -> Response:
        return _json(self.runs.detail(_one(request, "name"), request.query_params.get("known", "")))

    def _picture(self, request: Request) -> Response:
        return _of_file(self.runs.picture(_one(request, "run"), _one(request, "file")))

    def _fit(self, request: Request, body: bytes) -> Response:
        run = _one(request, "run")
        own = _keeps_its_size(request)
        with described(run):
            config, facts = self.runs.find(run).read_config()
            picture, (height, width) = uploads.fitted(body, facts, own_size_of=stride(config.network) if own else None)
        return Response(picture, media_type="image/png", headers={"Original-Size": f"{height} {width}"})

    def _mask(self, request: Request, body: bytes) -> Response:
        image, original = _size(request, "image"), _size(request, "original")
        picture, note = uploads.fitted_mask(body, image, original, own=_keeps_its_size(request))
        return _json({"mask": base64.b64encode(picture).decode(), "note": note})

    def _generate(self, request: Request, body: bytes) -> Response:
        from patch_diffusion.web.making import generate

        wanted = read_request(SampleRequest, body)
        folders = [self.runs.find(chosen.run) for chosen in wanted.models]
        return self._added(partial(generate, wanted, folders, self._models), wanted, wanted.models)

    def _edit(self, request: Request, body: bytes) -> Response:
        from patch_diffusion.web.making import edit

        wanted = read_request(EditRequest, body)
        folder = self.runs.find(wanted.model.run)
        return self._added(partial(edit, wanted, folder, self._models), wanted, [wanted.model])

    def _added(
        self, task: Callable[[Job], None], wanted: SampleRequest | EditRequest, models: list[ModelChoice]
    ) -> Response:
        about = {
            "models": list(map(asdict, models)),
            "edited": isinstance(wanted, EditRequest),
            "seed": wanted.seed,
            "pictures": wanted.pictures,
        }
        return _json({"job": self.jobs.add(task, about).id})

    def _made(self, request: Request) -> Response:
        """Answer with the jobs that are over and have pictures, the newest first."""
        made = []
        for job in self.jobs.over():
            samples = [event for event in job.events if event["event"] == "sample"]
            settings = [event["settings"] for event in job.events if event["event"] == "finished"]
            if samples:
                shown = [event["shown"] for event in samples[:_THUMBNAILS]]
                found = {"job": job.id, "asked_at": job.asked_at, "made": len(samples), "shown": shown}
                made.append({**job.about, **found, "settings": settings[:1]})
        return _json({"jobs": made})

    def _stop(self, request: Request, body: bytes) -> Response:
        self.jobs.stop(self._find(request))
        return _json({})

    async def _job(self, request: Request) -> Response:
        job, after = self._find(request), request.query_params.get("after", "0")
        if not after.isdecimal() or len(after) > 9:
            raise InputError(f"after is a number of events, not '{after}'")
        state, events = await job.after(int(after), request.query_params.get("state", ""), _WAIT_SECONDS)
        reason = shortened(job.reason)
        return _json({"state": state, "reason": reason, "ahead": self.jobs.ahead_of(job), "events": events})

    def _file(self, request: Request) -> Response:
        job, name = self._find(request), _one(request, "name")
        # The name is compared with the files of the folder, so that no name can lead out of it.
        for path in job.folder.rglob("*"):
            if path.is_file() and path.relative_to(job.folder).as_posix() == name:
                saved = path.name if "save" in request.query_params else None
                return _of_file(path, {"Cache-Control": "private, max-age=3600, immutable"}, saved)
        raise GoneError("this picture is not kept any more: make it anew from its settings")

    def _find(self, request: Request) -> Job:
        job = self.jobs.find(_one(request, "id" if "id" in request.query_params else "job"))
        if job is None:
            raise GoneError("this request is not known any more: make it anew")
        return job


def _posted(
    path: str,
    answer: Callable[[Request, bytes], Response],
    most: int,
    turn: AbstractAsyncContextManager[Any] | None = None,
) -> Route:
    """Return the route of a path that takes POST requests, with bodies of at most ``most`` bytes, in turns if given."""

    async def endpoint(request: Request) -> Response:
        body = await read_body(request, most)
        async with turn or nullcontext():
            return await run_in_threadpool(answer, request, body)

    return Route(path, endpoint, methods=["POST"])


async def _refusal(request: Request, error: Exception) -> Response:
    """Return the answer to a request whose function has raised an error."""
    if isinstance(error, HTTPException):
        nothing = f"there is nothing at {request.url.path}"
        return refused(error.status_code, nothing if error.status_code == 404 else error.detail, error.headers)
    if isinstance(error, OSError):  # for instance, a run was deleted at this moment
        return refused(404, reason_of_file(error))
    if not isinstance(error, InputError | ClientDisconnect):  # a defect
        traceback.print_exception(error, file=sys.stderr)
        return refused(500, "this failed, and the reason is where the page was started")
    status = 404 if isinstance(error, GoneError) else 503 if isinstance(error, BusyError) else 400
    return refused(status, str(error), option=getattr(error, "option", None))


def _json(content: Mapping[str, Any]) -> Response:
    return Response(to_json(content, lines=False), media_type="application/json")


def _of_file(path: Path, headers: Mapping[str, str] | None = None, saved_as: str | None = None) -> Response:
    return FileResponse(path, headers=headers, filename=saved_as, stat_result=path.stat())


def _keeps_its_size(request: Request) -> bool:
    own = {"run": False, "own": True}.get(size := request.query_params.get("size", "run"))
    if own is None:
        raise InputError(f"size is run or own, not '{size}'")
    return own


def _size(request: Request, name: str) -> tuple[int, int]:
    """Return a height and width from the address, as in "16 24"."""
    sides = _one(request, name).split(" ")
    if len(sides) != 2 or not all(side.isascii() and side.isdecimal() and 0 < len(side) < 6 for side in sides):
        raise InputError(f"{name} is a height and a width, as in '16 24', not '{' '.join(sides)}'")
    height, width = map(int, sides)
    return height, width


def _one(request: Request, name: str) -> str:
    if name not in request.query_params:
        raise InputError(f"the address lacks the parameter '{name}'")
    return request.query_params[name]
