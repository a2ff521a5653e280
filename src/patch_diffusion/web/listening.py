"""The network side of the page: where it listens, and connections that are neither too many nor slow for ever."""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from patch_diffusion.errors import InputError
from patch_diffusion.web.guard import HEADERS

_MOST_CONNECTIONS = 256
_BACKLOG = 128  # connections that are accepted together; with the above, fewer than a process may have files
_PATIENCE = 30.0  # seconds to send a whole request, or to take in the next part of an answer


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens at an address; no name server is asked for the name of this machine.

    Raises:
        InputError: nothing can listen at this address.
    """
    family, dual = (socket.AF_INET6, socket.has_dualstack_ipv6()) if ":" in host else (socket.AF_INET, False)
    if not 0 <= port < 2**16:
        raise InputError(f"ports are 0 to {2**16 - 1}, not {port}: choose another --port")
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG, dualstack_ipv6=dual)
    except (OSError, TypeError) as error:  # TypeError: no host has such a name
        reason = str(getattr(error, "strerror", None) or error).partition(" (while")[0]
        of_port = getattr(error, "errno", None) in (errno.EADDRINUSE, errno.EACCES)
        other = "--port, or 0 for any that is free" if of_port else "--host, an address of this machine"
        raise InputError(f"cannot listen at {host}, port {port} ({reason}): choose another {other}") from None


def address_of(host: str, listener: socket.socket) -> str:
    """Return the URL of a page that is served at a socket."""
    return f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}/"


def server_of(app: ASGIApp) -> uvicorn.Server:
    """Return a server of an application, which logs nothing, since the terminal is for errors."""
    options: dict[str, Any] = {"loop": "asyncio", "ws": "none", "lifespan": "off", "timeout_graceful_shutdown": 1}
    options |= {"log_config": None, "log_level": "critical", "access_log": False}
    options |= {"server_header": False, "date_header": False, "proxy_headers": False}
    return uvicorn.Server(uvicorn.Config(app, http=Connection, backlog=_BACKLOG, **options))


class Connection(H11Protocol):
    """An HTTP connection that is closed when the other side is too slow, or when there are too many.

    Of too many, the one is closed that has waited for its other side for longest, so that nobody is locked out.
    """

    _since: float
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Begin to wait for a request; close another connection if there are too many."""
        super().connection_made(transport)
        # The head of an answer does not wait for the other side to confirm it, 40 ms, before the body follows.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._wait()
        if len(self.connections) > _MOST_CONNECTIONS:
            others = [other for other in self.connections if isinstance(other, Connection) and other is not self]
            longest = min(others, key=lambda other: (not other._is_waiting, other._since))
            self.connections.discard(longest)
            longest.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing any more."""
        super().connection_lost(exc)
        if self._deadline is not None:
            self._deadline.cancel()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        self._wait()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Wait until the other side has taken in what it was sent."""
        super().pause_writing()
        self._wait()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP."""
        if self.cycle is None or self.cycle.response_complete:
            head = {**HEADERS, "Content-Length": "0", "Connection": "close"}
            lines = ["HTTP/1.1 400 Bad Request", *(f"{name}: {value}" for name, value in head.items()), "\r\n"]
            self.transport.write("\r\n".join(lines).encode())
        self.transport.close()

    @property
    def _is_waiting(self) -> bool:
        """True if the other side has to send or take in something before this side has anything to do."""
        cycle = self.cycle
        return cycle is None or cycle.response_complete or cycle.more_body or self.flow.write_paused

    def _wait(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._since, self._deadline = self.loop.time(), self.loop.call_later(_PATIENCE, self._give_up)

    def _give_up(self) -> None:
        if self._is_waiting:
            self.transport.abort()
