"""The server of the web page, which listens to this machine alone by default."""

from __future__ import annotations

import signal
import tempfile
import threading
from collections.abc import Callable, Collection
from pathlib import Path

from patch_diffusion.errors import InputError, need
from patch_diffusion.files import user_path

LIBRARIES = ("starlette", "uvicorn")
"""The libraries of the extra ``serve``."""


def serve(
    runs: str | Path = "runs",
    *,
    host: str = "127.0.0.1",
    port: int = 7474,
    allow_host: Collection[str] = (),
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
        allow_host: further host names under which the page may be opened, such as that of a proxy in front of it.
        device: see `choose_device`.
        ready: called with the address of the page once the server listens.

    Raises:
        InputError: ``runs`` is a file, the server cannot listen at the address, one of ``allow_host`` is no host name,
            or its extra is not installed.

    >>> serve("runs")  # doctest: +SKIP
    """
    for library in LIBRARIES:
        need(library, "serve", "the page")
    from patch_diffusion.devices import choose_device
    from patch_diffusion.web.guard import guarded, own_names
    from patch_diffusion.web.listening import address_of, listen, server_of
    from patch_diffusion.web.site import Site

    folder = user_path(runs)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: give a folder with runs")
    names = own_names(host, allow_host)
    choose_device(device)  # a wrong device is refused now, and not at the first picture
    with (
        tempfile.TemporaryDirectory(prefix="patch-diffusion-", ignore_cleanup_errors=True) as work,
        listen(host, port) as listener,
    ):
        site = Site(folder, Path(work), device)
        main = threading.current_thread() is threading.main_thread()  # only the main thread can handle signals
        # SIGTERM ends the server like Ctrl-C, so that the temporary pictures are removed.
        before = signal.signal(signal.SIGTERM, signal.default_int_handler) if main else None
        try:
            if ready is not None:
                ready(address_of(host, listener))
            server_of(guarded(site.app, names)).run(sockets=[listener])
        except KeyboardInterrupt:
            pass
        finally:
            site.jobs.close()
            if main:
                signal.signal(signal.SIGTERM, before)
