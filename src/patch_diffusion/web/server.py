"""The HTTP server of the web page, which listens to this machine alone by default."""

from __future__ import annotations

import ipaddress
import platform
import signal
import socket
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from patch_diffusion.errors import InputError
from patch_diffusion.files import user_path
from patch_diffusion.web.site import MOST_BYTES, Answer, Site, refused

_MOST_CONNECTIONS = 128
_QUIET_SECONDS = 30.0  # timeout of a connection on which nothing is sent
_HEADERS = {
    # Even if text from a run got past the escaping, the page could load nothing and send nothing elsewhere.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def serve(
    runs: str | Path = "runs",
    *,
    host: str = "127.0.0.1",
    port: int = 7474,
    device: str = "auto",
    ready: Callable[[str], object] | None = None,
) -> None:
    """Serve a web page until Ctrl-C; it shows the runs of a folder, and samples or edits images with their models.

    The page loads nothing from elsewhere and sends nothing there. Whoever reaches it can use it; by default that is
    this machine alone.

    Args:
        runs: a run folder, or a folder with run folders up to three levels deep. It may not exist yet.
        host: address to listen at; "0.0.0.0" for all machines that reach this one.
        port: port to listen at; 0 for any free port.
        device: see `choose_device`.
        ready: called with the address of the page once the server listens.

    Raises:
        InputError: ``runs`` is a file, or the server cannot listen at the address.

    >>> serve("runs")  # doctest: +SKIP
    """
    from patch_diffusion.devices import choose_device

    folder = user_path(runs)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: give a folder with runs")
    choose_device(device)  # a wrong device is refused now, and not at the first picture
    with tempfile.TemporaryDirectory(prefix="patch-diffusion-", ignore_cleanup_errors=True) as work:
        server = Server(host, port, Site(folder, Path(work), device))
        main = threading.current_thread() is threading.main_thread()  # only the main thread can handle signals
        # SIGTERM ends the server like Ctrl-C, so that the temporary pictures are removed.
        before = signal.signal(signal.SIGTERM, signal.default_int_handler) if main else None
        try:
            if ready is not None:
                ready(server.address)
            server.serve_forever()
        except KeyboardInterrupt:
            pass
        finally:
            server.server_close()
            server.site.jobs.close()
            if main:
                signal.signal(signal.SIGTERM, before)


class Server(ThreadingHTTPServer):
    """The HTTP server of the page, with one thread per connection and a limit on connections.

    Args:
        host, port: the address to listen at.
        site: the site that answers requests.

    Raises:
        InputError: the server cannot listen at this address.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, host: str, port: int, site: Site) -> None:
        self.address_family: int = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.site = site
        self._host = host
        self._room = threading.BoundedSemaphore(_MOST_CONNECTIONS)
        try:
            super().__init__((host, port), _Connection)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError(
                f"cannot listen at {host}, port {port} ({reason}): choose another --port, or 0 for any that is free"
            ) from None

    def server_bind(self) -> None:
        """Bind the socket without resolving this machine's name, which would query a name server elsewhere."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address: Any = self.socket.getsockname()
        self.server_name: str = self._host
        self.server_port: int = self.server_address[1]

    @property
    def address(self) -> str:
        """The URL of the page."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self.server_port}/"

    def is_own(self, host: str) -> bool:
        """Return True if the host name of a request is one of this machine.

        Other sites could let their names resolve to this machine, to read its data (DNS rebinding).
        """
        name = (urlsplit(f"//{host}").hostname or "").lower()
        if name in ("localhost", self._host.lower(), platform.node().lower()):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def process_request(self, request: Any, client_address: Any) -> None:
        """Handle a connection in a new thread, or close it if there are too many connections."""
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Handle a connection until it is closed, then free its place among the connections."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print a traceback, unless the error is only that a page was closed in the middle of an answer."""
        if not isinstance(sys.exc_info()[1], OSError):
            traceback.print_exc(file=sys.stderr)


class _Connection(BaseHTTPRequestHandler):
    """A request handler for one connection of a browser, which answers its requests one after the other."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "patch-diffusion", ""
    timeout = _QUIET_SECONDS
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        """Answer a GET request."""
        self._reply(self._checked(lambda path, query: self.server.site.ask(path, query)))

    def do_HEAD(self) -> None:
        """Answer a HEAD request, like GET but without the body."""
        self.do_GET()

    def do_POST(self) -> None:
        """Answer a POST request, which uploads a picture, starts a job or stops one."""
        self._reply(self._checked(self._done))

    def _checked(self, answer: Callable[[str, dict[str, str]], Answer]) -> Answer:
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        try:
            if not self.server.is_own(host):
                own = "localhost, a numeric address, or the machine's own name"
                return self._refused(403, f"open this page under {own}")
            if origin is not None and urlsplit(origin).netloc != host:
                return self._refused(403, "this page answers only to itself")
            target = urlsplit(self.path)
            return answer(target.path, dict(parse_qsl(target.query, keep_blank_values=True)))
        except ValueError as error:
            return self._refused(400, str(error))
        except (ConnectionError, TimeoutError):
            raise
        except Exception:  # a defect must not keep the server from answering the next request
            traceback.print_exc(file=sys.stderr)
            return self._refused(500, "this failed, and the reason is where the page was started")

    def _done(self, path: str, query: dict[str, str]) -> Answer:
        most, length = MOST_BYTES.get(path, 0), self.headers.get("Content-Length", "")
        if not length.isdecimal():
            return self._refused(411, "say how many bytes are sent, in Content-Length")
        if int(length) > most:
            sent, taken = int(length) / 2**20, most / 2**20
            return self._refused(413, f"{sent:.1f} MB are sent, and at most {taken:.1f} MB are taken")
        # An HTML form of another site cannot send these content types.
        if self.headers.get_content_type() not in ("application/json", "application/octet-stream"):
            return self._refused(415, "send application/json, or pictures as application/octet-stream")
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise ConnectionError("the page was closed while it sent something")
        return self.server.site.request(path, query, body)

    def _refused(self, status: int, reason: str) -> Answer:
        self.close_connection = True  # so that the rest of a body need not be read
        return refused(status, reason)

    def _reply(self, answer: Answer) -> None:
        self.send_response(answer.status)
        for name, value in {**_HEADERS, "Cache-Control": "no-store", **answer.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Type", answer.kind)
        self.send_header("Content-Length", str(len(answer.content)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.content)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing, since the terminal is for errors."""
