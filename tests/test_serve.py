"""The page over HTTP and from the command line."""

import contextlib
import http.client
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest

import patch_diffusion as pd
from page_client import served as page
from patch_diffusion.cli import main
from patch_diffusion.cli.serve import Serve
from patch_diffusion.errors import InputError
from patch_diffusion.web import limits, listening, requests as asked, uploads
from patch_diffusion.web.guard import HEADERS
from patch_diffusion.web.site import Site

PAGE = (Path(__file__).parents[1] / "docs" / "serve.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A server of a folder that is not there."""
    folder = tmp_path_factory.mktemp("served")
    with page(Site(folder / "runs", folder, "cpu"), allowed=("Runs.Example.org", "bücher.example")) as made:
        yield made


def asked_of(served, method, target, body=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=20)
    connection.putrequest(method, target, skip_host="Host" in headers)
    if body is not None and not {"Content_Length", "Transfer_Encoding"} & set(headers):
        headers["Content_Length"] = str(len(body))
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders(body)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, answer.headers, content


def connected(served, sent=b""):
    connection = socket.create_connection(("127.0.0.1", served.port), timeout=20)
    connection.sendall(sent)
    return connection


def wait_for(condition):
    """Wait until it holds; a minute at most, so that what never comes fails and does not hang."""
    end = time.monotonic() + 60
    while not (found := condition()):
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)
    return found


def polled(site):
    """A job that runs until its gate is open, and a request that waits for its news."""
    gate = threading.Event()
    job = site.jobs.add(lambda job: gate.wait(60))
    wait_for(lambda: job.state == "running")
    return job, gate, b"GET /api/job?id=%b&after=0&state=running HTTP/1.1\r\nHost: localhost\r\n\r\n" % job.id.encode()


def test_the_page_and_its_files(served):
    status, headers, content = asked_of(served, "GET", "/")
    assert status == 200 and b"<!doctype html>" in content and headers["Content-Type"].startswith("text/html")
    assert "default-src 'none'" in headers["Content-Security-Policy"] and "connect-src 'self'" in str(headers)
    status, headers, content = asked_of(served, "HEAD", "/static/style.css")
    assert status == 200 and content == b"" and int(headers["Content-Length"]) > 5000
    with connected(served):
        for connection in wait_for(lambda: served.server.server_state.connections):
            held = connection.transport.get_extra_info("socket")
            assert held.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)  # otherwise each answer takes 40 ms
    for name, kind in (("app.js", "text/javascript"), ("style.css", "text/css"), ("icon.svg", "image/svg+xml")):
        assert asked_of(served, "GET", f"/static/{name}")[1].get_content_type() == kind
    assert json.loads(asked_of(served, "GET", "/api/runs")[2])["runs"] == []
    assert asked_of(served, "GET", "/../../etc/passwd")[0] == 404
    assert asked_of(served, "PUT", "/")[0] == 405


@pytest.mark.parametrize(
    ("method", "target", "headers", "status"),
    [
        ("GET", "/", {}, 200),
        ("GET", "/static/app.js", {}, 200),
        ("HEAD", "/static/app.js", {}, 200),
        ("HEAD", "/api/runs", {}, 200),
        ("GET", "/static/app.js", {"Range": "bytes=0-3"}, 206),
        ("GET", "/static/app.js", {"Range": "bytes=99999999-"}, 416),
        ("GET", "/", {"Host": "a b", "Origin": "http://["}, 403),
        ("GET", "/nothing", {}, 404),
        ("GET", "/static/nothing.js", {}, 404),
        ("GET", "/api/run", {}, 400),
        ("DELETE", "/api/runs", {}, 405),
        ("POST", "/static/app.js", {"Content_Length": "0"}, 405),
        ("POST", "/api/stop", {"Content_Length": "x"}, 400),
        ("POST", "/api/stop", {"Content_Length": "1"}, 415),
        ("GET", "/api/defect", {}, 500),
    ],
)
def test_every_answer_has_the_policy_and_none_says_what_serves(
    served, monkeypatch, capfd, method, target, headers, status
):
    monkeypatch.setattr(served.site.runs, "detail", lambda *_: 1 / 0)
    target = target.replace("defect", "run?name=x")
    found, given, content = asked_of(served, method, target, **headers)
    assert found == status and (content or method == "HEAD" or status in (400, 416))
    assert {name: given[name] for name in HEADERS} == HEADERS and not {"server", "date"} & {
        name.lower() for name in given
    }
    assert ("ZeroDivisionError" in capfd.readouterr().err) == (status == 500)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "runs.example.org"}, 200),
        ({"Host": "RUNS.example.org:8443", "Origin": "https://RUNS.example.org:8443"}, 200),
        ({"Host": "xn--bcher-kva.example"}, 200),
        ({"Host": "runs.example.org", "Origin": "https://example.org"}, 403),
        ({"Host": "localhost", "Origin": "https://runs.example.org"}, 403),
        ({"Host": "other.example.org"}, 403),
        ({"Host": "runs.example.org.evil.example"}, 403),
        ({"Host": "evil.example", "X_Forwarded_Host": "runs.example.org"}, 403),
        ({"Host": "evil.example"}, 403),
        ({"Host": "evil.example:80"}, 403),
        ({"Host": "localhost"}, 200),
        ({"Host": "[::1]:7474"}, 200),
        ({"Host": "127.0.0.1", "Origin": "http://evil.example"}, 403),
        ({"Host": "127.0.0.1", "Origin": "null"}, 403),
        ({"Host": "127.0.0.1", "Origin": "http://127.0.0.1"}, 200),
        ({"Host": ""}, 403),
        ({"Host": "["}, 400),
        ({"Host": "127.0.0.1", "Origin": "http://["}, 400),
    ],
)
def test_other_sites_cannot_ask(served, headers, status):
    assert asked_of(served, "GET", "/api/runs", **headers)[0] == status


def test_who_is_refused_is_told_of_the_option(served):
    for host in ("evil.example", "x" * 3000, "a b"):
        content = asked_of(served, "GET", "/", Host=host)[2]
        assert "--allow-host" in json.loads(content)["error"] and len(content) < 500


@pytest.mark.parametrize(
    "name", ["https://runs.example.org", "runs.example.org:80", "*.example.org", "", "a b", "é" * 70]
)
def test_what_is_no_name_of_a_host(name, tmp_path, capsys):
    assert main(["serve", str(tmp_path), "--device", "cpu", "--port", "0", "--allow-host", name]) == 1
    error = capsys.readouterr().err
    assert "--allow-host takes names such as" in error and len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("path", "headers", "status", "reason"),
    [
        ("/api/fit", {"Content_Type": "image/png"}, 415, "application/octet-stream"),
        ("/api/generate", {"Content_Type": "text/plain"}, 415, "application/json"),
        (
            "/api/fit",
            {"Content_Length": str(2**40), "Content_Type": "application/octet-stream"},
            413,
            "at most 32.0 MB are taken",
        ),
        ("/api/generate", {"Content_Length": str(2**20), "Content_Type": "application/json"}, 413, "1.0 MB are sent"),
        ("/api/stop", {"Content_Length": "1", "Content_Type": "application/json"}, 413, "at most 0.0 MB"),
        ("/api/nothing", {"Content_Length": "1"}, 404, "nothing at /api/nothing"),
        ("/api/runs", {"Content_Length": "1"}, 405, "Method Not Allowed"),
        ("/api/fit?run=../x", {"Content_Type": "application/octet-stream"}, 404, "no run '../x'"),
        ("/api/generate", {"Content_Type": "application/json"}, 400, "models: input should be"),
    ],
)
def test_what_is_not_taken(served, path, headers, status, reason):
    body = b'{"models": 3}' if "Content_Length" not in headers else b""
    found, _, content = asked_of(served, "POST", path, body, **headers)
    assert found == status and reason in json.loads(content)["error"], content


def test_a_body_without_a_length_is_read_up_to_its_limit(served):
    head = b"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with connected(served, head + b"Transfer-Encoding: chunked\r\n\r\n") as connection:
        chunk = b"4000\r\n" + bytes(0x4000) + b"\r\n"
        connection.sendall(4 * chunk)  # 64 kB, which are taken
        connection.sendall(b"1\r\n0\r\n")  # and there is more to come
        assert connection.recv(4096).startswith(b"HTTP/1.1 413")
    whole = b"e\r\n" + b'{"models": 3} ' + b"\r\n0\r\n\r\n"
    with connected(served, head + b"Transfer-Encoding: chunked\r\n\r\n" + whole) as connection:
        assert connection.recv(4096).startswith(b"HTTP/1.1 400")


def test_pages_that_are_closed_or_silent_leave_it_standing(served, capfd, monkeypatch):
    begun = b"POST /api/fit?run=x HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\n"
    for sent in (
        b"",
        b"GET",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\0\xff" * 4000,
        b"POST /api/fit HTTP/1.1\r\nHost: localhost\r\n",
        begun + b"Content-Length: 100\r\n\r\nhalf of it",
        begun + b"Transfer-Encoding: chunked\r\n\r\nwrong\r\n",
        b"GET /api/runs HTTP/1.1\r\nHost: localhost\r\n\r\n" * 20 + b"rest",
    ):
        connected(served, sent).close()
    time.sleep(0.1)
    assert asked_of(served, "GET", "/")[0] == 200 and "Traceback" not in capfd.readouterr().err


@pytest.mark.slow
def test_slow_clients_and_open_polls_do_not_keep_others_waiting(served):
    _, gate, poll = polled(served.site)
    with contextlib.ExitStack() as held:
        for sent in 200 * [b"G"] + 60 * [poll]:
            held.enter_context(connected(served, sent))
        for _ in range(20):
            begun = time.monotonic()
            assert asked_of(served, "GET", "/api/runs")[0] == 200 and time.monotonic() - begun < 5
        gate.set()


def test_of_too_many_connections_the_one_that_has_waited_longest_is_closed(served, monkeypatch):
    wait_for(lambda: not served.server.server_state.connections)
    monkeypatch.setattr(listening, "_MOST_CONNECTIONS", 4)
    job, gate, poll = polled(served.site)
    with contextlib.ExitStack() as held:
        busy = held.enter_context(connected(served, poll))
        wait_for(lambda: job._wakes)
        idle = [held.enter_context(connected(served)) for _ in range(20)]
        assert asked_of(served, "GET", "/")[0] == 200
        assert [connection.recv(1) for connection in idle[:16]] == [b""] * 16
        gate.set()
        assert busy.recv(4096).startswith(b"HTTP/1.1 200")


@pytest.mark.slow
def test_a_request_and_the_taking_in_of_an_answer_have_their_time(served, monkeypatch):
    monkeypatch.setattr(listening, "_PATIENCE", 0.3)
    job = served.site.jobs.add(lambda job: None)
    with (job.folder / "large.zip").open("wb") as file:
        file.truncate(10**8)
    head = b"GET / HTTP/1.1\r\nHost: localhost\r\n"
    body = (
        head.replace(b"GET /", b"POST /api/generate") + b"Content-Type: application/json\r\nContent-Length: 999\r\n\r\n"
    )
    for begun in (b"", b"G", head, head + b"\r\n" + head, body):
        with connected(served, begun) as connection, contextlib.suppress(ConnectionError):
            connection.settimeout(0.1)
            for sent in 80 * [b"1"]:  # bytes that come one by one are no request
                with contextlib.suppress(TimeoutError):
                    if not connection.recv(4096):
                        break
                connection.sendall(sent if begun == body else b"")
            else:
                raise AssertionError("it was not closed")
    with connected(
        served, b"GET /api/file?job=%b&name=large.zip HTTP/1.1\r\nHost: localhost\r\n\r\n" % job.id.encode()
    ) as silent:
        for _ in range(12):  # as long as it takes in something it is waited for
            assert silent.recv(2**20)
            time.sleep(0.05)
        assert served.server.server_state.connections
        wait_for(lambda: not served.server.server_state.connections)
        with contextlib.suppress(ConnectionError):
            assert 0 < len(b"".join(iter(lambda: silent.recv(2**20), b""))) < 10**8


@pytest.mark.slow
def test_pages_that_wait_for_news_are_told_of_the_end(tmp_path):
    with page(Site(tmp_path, tmp_path / "work", "cpu")) as made:
        job, gate, poll = polled(made.site)
        with connected(made, poll) as connection:
            wait_for(lambda: job._wakes)
            made.server.should_exit = True
            assert b"503" in connection.recv(4096).partition(b"\r\n")[0]
            gate.set()


def test_a_defect_is_told_where_the_page_was_started(served, capfd, monkeypatch):
    monkeypatch.setattr(served.site.runs, "detail", lambda *_: 1 / 0)
    status, _, content = asked_of(served, "GET", "/api/run?name=x")
    assert status == 500 and b"ZeroDivision" not in content and "ZeroDivisionError" in capfd.readouterr().err
    assert asked_of(served, "GET", "/")[0] == 200


def test_it_is_served_by_any_thread_and_at_addresses_of_six_parts(tmp_path, monkeypatch):
    servers, addresses, told = [], [], threading.Event()
    make = listening.server_of
    monkeypatch.setattr(listening, "server_of", lambda app: servers.append(make(app)) or servers[-1])

    def ready(address):
        addresses.append(address)
        told.set()

    host = "::1" if socket.has_dualstack_ipv6() else "127.0.0.1"
    options = {"host": host, "port": 0, "device": "cpu", "ready": ready}
    thread = threading.Thread(target=pd.serve, args=(tmp_path,), kwargs=options)
    thread.start()
    assert told.wait(60)
    with urllib.request.urlopen(addresses[0], timeout=20) as answer:
        assert b"patch diffusion" in answer.read()
    servers[0].should_exit = True
    thread.join(60)
    assert not thread.is_alive()


@pytest.mark.parametrize("library", ["starlette", "uvicorn"])
def test_without_its_libraries_the_page_says_how_to_install_them(tmp_path, monkeypatch, capsys, library):
    monkeypatch.setitem(sys.modules, library, None)
    assert main(["serve", str(tmp_path), "--device", "cpu"]) == 1
    error = capsys.readouterr().err
    assert f"the page needs {library}: pip install 'patch_diffusion[serve]'" in error and len(error.splitlines()) == 1


@pytest.mark.slow
def test_it_begins_tells_where_it_is_asks_nobody_and_ends(tmp_path):
    """With all that Python tells of connections and of names that are looked up, and a page that waits for news."""
    code = (
        "import sys; from patch_diffusion.cli import main\n"
        "print(*{'starlette', 'uvicorn', 'anyio'} & {*sys.modules}, file=sys.stderr, end='')\n"
        "told = lambda event, values: event in ('socket.connect', 'socket.getaddrinfo', 'socket.gethostbyname')"
        " and print('ASKED', event, values[-1:], file=sys.stderr)\n"
        "sys.addaudithook(told)\n"
        "from patch_diffusion.web.jobs import Job, Jobs\n"
        "Jobs.find = lambda self, identity: Job(self._folder / identity)\n"  # a job without news
        f"sys.exit(main(['serve', {str(tmp_path)!r}, '--port', '0', '--json', '--device', 'cpu']))"
    )
    (tmp_path / "temporary").mkdir()
    environment = {**os.environ, "TMPDIR": str(tmp_path / "temporary")}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    told = json.loads(process.stdout.readline())
    assert told["runs"] == str(tmp_path) and re.fullmatch(r"http://127\.0\.0\.1:\d+/", told["address"])
    with urllib.request.urlopen(told["address"], timeout=20) as answer:
        assert b"patch diffusion" in answer.read()
    assert len([*(tmp_path / "temporary").glob("patch-diffusion-*")]) == 1
    port = int(told["address"].rpartition(":")[2].rstrip("/"))
    with socket.create_connection(("127.0.0.1", port)) as waiting:
        waiting.sendall(b"GET /api/job?id=x&state=waiting HTTP/1.1\r\nHost: localhost\r\n\r\n")
        urllib.request.urlopen(told["address"], timeout=20).close()
        process.terminate()  # Ctrl-C is ignored by what a shell has put into the background
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 0 and errors == ""
    assert not [*(tmp_path / "temporary").glob("patch-diffusion-*")]


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_what_is_no_host_name_is_one_line(tmp_path, capsys):
    assert main(["serve", str(tmp_path), "--host", 70 * "é", "--device", "cpu"]) == 1
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_mistakes_are_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for words, status, reason in [
            ([str(tmp_path / "file")], 1, "is a file: give a folder with runs"),
            (
                [str(tmp_path), "--port", port, "--device", "cpu"],
                1,
                f"port {port} (Address already in use): choose another --port",
            ),
            ([str(tmp_path), "--port", "99999", "--device", "cpu"], 1, "choose another --port"),
            (
                [str(tmp_path), "--port", "0", "--host", "::2", "--device", "cpu"],
                1,
                "choose another --host, an address of",
            ),
            ([str(tmp_path), "--device", "gpu"], 1, "the device 'gpu' is not there: take auto, cpu"),
            ([str(tmp_path), "--prot", "1"], 2, "--port"),
        ]:
            assert main(["serve", *words]) == status
            error = capsys.readouterr().err
            assert reason in error and len(error.strip().splitlines()) == 1, error


def test_the_commands_of_the_page_and_what_it_promises():
    lines = re.findall(r"^patch-diffusion serve .*?(?=  #|$)", PAGE, re.MULTILINE)
    options = re.findall(r"^\| `(--[^`]+)` \|", PAGE, re.MULTILINE)
    assert lines and len(options) == 4
    for line in [*lines, *(f"patch-diffusion serve runs {option}" for option in options)]:
        Serve.parse(shlex.split(line)[2:])
    with pytest.raises(InputError):
        Serve.parse(["runs", "--share"])
    text = " ".join(PAGE.split())
    assert f"{uploads.MOST_BYTES // 2**20} MB and {uploads.MOST_PIXELS // 10**6} megapixels" in text
    assert f"| pictures of a request | {asked.MOST_PICTURES} |" in PAGE
    assert f"| {asked.MOST_STEPS} steps, {asked.MOST_MODELS} models |" in PAGE
    assert f"{limits.MOST_PIXELS:,} (1,024 x 1,024)" in text and f"{limits.MOST_IN_ALL:,}" in text
    sides = [int(most**0.5) for most in (limits.MOST_SEEN, limits.MOST_SEEN_BACK)]
    assert "{0} x {0}; {1} x {1} for the careful way".format(*sides) in text
    assert f"| {listening._PATIENCE:g} seconds |" in PAGE and f"| {listening._MOST_CONNECTIONS}; beyond" in PAGE
    for link in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert (Path(__file__).parents[1] / "docs" / link).exists(), link


def test_a_folder_that_is_not_there_yet_is_told(tmp_path, capsys):
    for folder in (tmp_path, tmp_path / "later"):
        Serve(folder)._tell("http://127.0.0.1:1/")
        assert ("does not exist yet" in capsys.readouterr().err) == (folder.name == "later")
