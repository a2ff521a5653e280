"""Who is answered, how much they may send, and the headers of every answer."""

from __future__ import annotations

import asyncio
import ipaddress
import platform
import re
from collections.abc import Collection, Iterable, Mapping
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from patch_diffusion.errors import InputError
from patch_diffusion.files import to_json

HEADERS = {
    # Even if text from a run got past the escaping, the page could load nothing and send nothing elsewhere.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""The headers of every answer, unless it says otherwise."""


def guarded(app: ASGIApp, names: Collection[str]) -> ASGIApp:
    """Wrap the page's application, so that it answers its own pages alone, see `is_own`, and always with `HEADERS`."""

    async def guard(scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def answer(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun, headers = True, MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await (_refusal(Headers(scope=scope), names) or app)(scope, receive, answer)
        except asyncio.CancelledError:  # the server ends while a request waits for news of a job
            if not begun:
                await refused(503, "the page was ended where it was started")(scope, receive, answer)
        except Exception:  # a defect, which the application has told and answered
            pass

    return guard


def own_names(host: str, others: Iterable[str] = ()) -> set[str]:
    """Return the names of this machine, that of the address which it listens at, and others, as browsers send them.

    Raises:
        InputError: one of the others is no name of a host, for instance an address with a port.
    """
    return {"localhost", host.lower(), platform.node().lower(), *map(_host_name, others)}


def _host_name(name: str) -> str:
    try:
        found = name.encode("idna").decode().lower()
    except UnicodeError:
        found = ""
    if not re.fullmatch(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*", found):
        raise InputError(f"--allow-host takes names such as runs.example.org, without https:// or a port, not '{name}'")
    return found


def is_own(host: str, names: Collection[str]) -> bool:
    """Return True if the host name of a request is one of ``names`` or a numeric address.

    Other sites could let their names resolve to this machine, to read its data (DNS rebinding).

    Raises:
        ValueError: the host name is malformed.
    """
    name = (urlsplit(f"//{host}").hostname or "").lower()
    if name in names:
        return bool(name)
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _refusal(headers: Headers, names: Collection[str]) -> Response | None:
    host, origin = headers.get("Host", ""), headers.get("Origin")
    try:
        if not is_own(host, names):
            name = (urlsplit(f"//{host}").hostname or "")[:100]
            return refused(
                403,
                f"this page is not shown under the name '{name}': open it under localhost, a numeric address or the "
                "machine's own name, or start it with --allow-host and this name",
            )
        if origin is not None and urlsplit(origin).netloc != host:
            return refused(403, "this page answers only to itself; a proxy in front of it has to pass Host on as it is")
    except ValueError as error:
        return refused(400, str(error))
    return None


def refused(
    status: int, reason: str, headers: Mapping[str, str] | None = None, *, option: str | None = None
) -> Response:
    """Return the answer to a request that failed, with the reason, and the option at fault if it is one, as JSON."""
    content = to_json({"error": shortened(reason), "option": option}, lines=False)
    return Response(content, status, headers, "application/json")


def shortened(reason: str) -> str:
    """Return a reason as one line; its middle is left out if it is very long, as where it repeats what was sent."""
    text = " ".join(reason.split())
    return text if len(text) <= 600 else f"{text[:300]} ... {text[-200:]}"


async def read_body(request: Request, most: int) -> bytes:
    """Return the body of a request, of which no more than ``most`` bytes are read.

    Raises:
        HTTPException: the body is too large, or of a type that a form of another site could send.
    """
    if request.headers.get("Content-Type", "").partition(";")[0] not in (
        "application/json",
        "application/octet-stream",
    ):
        raise HTTPException(415, "send application/json, or pictures as application/octet-stream")
    length = request.headers.get("Content-Length", "0")
    if not length.isdecimal() or len(length) > 20:
        raise HTTPException(400, "Content-Length is no number")
    body, size = bytearray(), int(length)
    if size <= most:
        async for part in request.stream():
            body += part
            if (size := len(body)) > most:
                break
        else:
            return bytes(body)
    raise HTTPException(413, f"{size / 2**20:.1f} MB are sent, and at most {most / 2**20:.1f} MB are taken")
