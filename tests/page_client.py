"""The page asked in this process without a network, and a page that is served in a thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlencode, urlsplit

from patch_diffusion.web.guard import guarded, own_names
from patch_diffusion.web.listening import address_of, listen, server_of
from patch_diffusion.web.site import Site


@dataclass
class Answer:
    """To a request."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    content: bytes = b""


def ask(
    app: Any, path: str, query: dict[str, str] | None = None, body: bytes | None = None, method: str = "", **more: str
) -> Answer:
    """What an ASGI application answers to GET, or to POST if there is a body; ``more`` are headers."""
    target, answer = urlsplit(path), Answer()
    headers = {"host": "localhost", "content-type": "application/json", **more}
    scope = {
        "type": "http",
        "method": method or ("GET" if body is None else "POST"),
        "path": unquote(target.path),
        "query_string": (target.query or urlencode(query or {})).encode(),
        "headers": [(name.lower().replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
    }
    parts = [{"type": "http.request", "body": body or b""}]

    async def receive() -> dict[str, Any]:
        return parts.pop() if parts else await asyncio.Event().wait()  # pyright: ignore[reportReturnType]

    async def send(message: dict[str, Any]) -> None:
        answer.status = message.get("status", answer.status)
        answer.headers |= {name.decode(): value.decode() for name, value in message.get("headers", ())}
        answer.content += message.get("body", b"")

    asyncio.run(app(scope, receive, send))
    return answer


class Served:
    """A server in a thread: its ``site``, ``address``, ``port`` and the ``thread``."""

    def __init__(self, site: Site, host: str = "127.0.0.1", allowed: Collection[str] = ()) -> None:
        self.site = site
        listener = listen(host, 0)
        self.address, self.port = address_of(host, listener), listener.getsockname()[1]
        self.server = server_of(guarded(site.app, own_names(host, allowed)))
        self.thread = threading.Thread(target=self.server.run, args=([listener],), daemon=True)
        self.thread.start()

    def end(self) -> None:
        """As Ctrl-C does."""
        self.server.should_exit = True
        self.thread.join(60)
        self.site.jobs.close()


@contextmanager
def served(site: Site, host: str = "127.0.0.1", allowed: Collection[str] = ()) -> Iterator[Served]:
    """A page that is served in a thread until the with block ends."""
    made = Served(site, host, allowed)
    try:
        yield made
    finally:
        made.end()
