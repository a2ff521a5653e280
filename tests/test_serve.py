"""The page over HTTP and from the command line."""

import http.client
import json
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

from patch_diffusion.cli import main
from patch_diffusion.cli.serve import Serve
from patch_diffusion.errors import InputError
from patch_diffusion.web import limits, requests as asked, server, uploads
from patch_diffusion.web.server import Server
from patch_diffusion.web.site import MOST_BYTES, Site

PAGE = (Path(__file__).parents[1] / "docs" / "serve.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A server of a folder that is not there."""
    folder = tmp_path_factory.mktemp("served")
    made = Server("127.0.0.1", 0, Site(folder / "runs", folder, "cpu"))
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def asked_of(served, method, target, body=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", served.server_port, timeout=20)
    connection.putrequest(method, target, skip_host="Host" in headers)
    if body is not None and "Content_Length" not in headers:
        headers["Content_Length"] = str(len(body))
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders(body)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, answer.headers, content


def test_the_page_and_its_files(served):
    status, headers, content = asked_of(served, "GET", "/")
    assert status == 200 and b"<!doctype html>" in content and headers["Content-Type"].startswith("text/html")
    assert "default-src 'none'" in headers["Content-Security-Policy"] and "connect-src 'self'" in str(headers)
    status, headers, content = asked_of(served, "HEAD", "/static/style.css")
    assert status == 200 and content == b"" and int(headers["Content-Length"]) > 5000
    assert json.loads(asked_of(served, "GET", "/api/runs")[2])["runs"] == []
    assert asked_of(served, "GET", "/../../etc/passwd")[0] == 404
    assert asked_of(served, "PUT", "/")[0] == 501


@pytest.mark.parametrize(
    ("headers", "status"),
    [
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


@pytest.mark.parametrize(
    ("path", "headers", "status", "reason"),
    [
        ("/api/fit", {"Content_Type": "image/png"}, 415, "application/octet-stream"),
        ("/api/generate", {"Content_Type": "text/plain"}, 415, "application/json"),
        ("/api/fit", {"Content_Length": str(2**40)}, 413, "at most 32.0 MB are taken"),
        ("/api/generate", {"Content_Length": str(2**20)}, 413, "1.0 MB are sent"),
        ("/api/nothing", {"Content_Length": "1"}, 413, "at most 0.0 MB"),
        ("/api/fit", {"Content_Length": "-1"}, 411, "how many bytes"),
        ("/api/fit?run=../x", {"Content_Type": "application/octet-stream"}, 404, "no run '../x'"),
        ("/api/generate", {"Content_Type": "application/json"}, 400, "models: input should be"),
    ],
)
def test_what_is_not_taken(served, path, headers, status, reason):
    body = b'{"models": 3}' if "Content_Length" not in headers else b""
    found, _, content = asked_of(served, "POST", path, body, **headers)
    assert found == status and reason in json.loads(content)["error"], content


def test_pages_that_are_closed_or_silent_leave_it_standing(served, capfd, monkeypatch):
    for sent in (
        b"",
        b"GET",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\0\xff" * 4000,
        b"POST /api/fit HTTP/1.1\r\nHost: localhost\r\n",
    ):
        with socket.create_connection(("127.0.0.1", served.server_port)) as connection:
            connection.sendall(sent)
    begun = b"Content-Type: application/octet-stream\r\nContent-Length: 100\r\n\r\nhalf of it"
    with socket.create_connection(("127.0.0.1", served.server_port)) as connection:
        connection.sendall(b"POST /api/fit?run=x HTTP/1.1\r\nHost: localhost\r\n" + begun)
    time.sleep(0.1)
    assert asked_of(served, "GET", "/")[0] == 200 and "Traceback" not in capfd.readouterr().err


def test_not_too_many_connections(tmp_path, monkeypatch):
    monkeypatch.setattr(server, "_MOST_CONNECTIONS", 2)
    made = Server("127.0.0.1", 0, Site(tmp_path, tmp_path, "cpu"))
    threading.Thread(target=made.serve_forever, daemon=True).start()
    held = [socket.create_connection(("127.0.0.1", made.server_port)) for _ in range(2)]
    with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
        asked_of(made, "GET", "/")
    for connection in held:
        connection.close()
    for _ in range(1000):
        try:
            assert asked_of(made, "GET", "/")[0] == 200
            break
        except (http.client.RemoteDisconnected, ConnectionError):
            time.sleep(0.02)
    else:
        raise AssertionError("there is no room again")
    made.shutdown()
    made.server_close()


def test_a_defect_is_told_where_the_page_was_started(served, capfd, monkeypatch):
    monkeypatch.setitem(served.site._questions, "/api/runs", lambda query: 1 / 0)
    status, _, content = asked_of(served, "GET", "/api/runs")
    assert status == 500 and b"ZeroDivision" not in content and "ZeroDivisionError" in capfd.readouterr().err
    assert asked_of(served, "GET", "/")[0] == 200


@pytest.mark.slow
def test_it_begins_tells_where_it_is_asks_nobody_and_ends(tmp_path):
    """With all that Python tells of connections and of names that are looked up."""
    code = (
        "import sys; from patch_diffusion.cli import main\n"
        "told = lambda event, values: event in ('socket.connect', 'socket.getaddrinfo', 'socket.gethostbyname')"
        " and print('ASKED', event, values[-1:], file=sys.stderr)\n"
        "sys.addaudithook(told)\n"
        f"sys.exit(main(['serve', {str(tmp_path)!r}, '--port', '0', '--json', '--device', 'cpu']))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    told = json.loads(process.stdout.readline())
    assert told["runs"] == str(tmp_path) and re.fullmatch(r"http://127\.0\.0\.1:\d+/", told["address"])
    with urllib.request.urlopen(told["address"], timeout=20) as answer:
        assert b"patch diffusion" in answer.read()
    process.terminate()  # Ctrl-C is ignored by what a shell has put into the background
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0 and errors == ""


def test_mistakes_are_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for words, status, reason in [
            ([str(tmp_path / "file")], 1, "is a file: give a folder with runs"),
            ([str(tmp_path), "--port", port, "--device", "cpu"], 1, f"port {port} (Address already in use): choose"),
            ([str(tmp_path), "--port", "99999", "--device", "cpu"], 1, "choose another --port"),
            ([str(tmp_path), "--device", "gpu"], 1, "device"),
            ([str(tmp_path), "--prot", "1"], 2, "--port"),
        ]:
            assert main(["serve", *words]) == status
            error = capsys.readouterr().err
            assert reason in error and len(error.strip().splitlines()) == 1, error


def test_the_commands_of_the_page_and_what_it_promises():
    lines = [
        line.partition("  #")[0]
        for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
        for line in block.splitlines()
        if line.startswith("patch-diffusion serve")
    ]
    assert len(lines) == 3
    for line in lines:
        Serve.parse(shlex.split(line)[2:])
    with pytest.raises(InputError):
        Serve.parse(["runs", "--share"])
    text = " ".join(PAGE.split())
    assert f"{uploads.MOST_BYTES // 2**20} MB and {uploads.MOST_PIXELS // 10**6} megapixels" in text
    assert f"{asked.MOST_PICTURES} pictures, {asked.MOST_STEPS} steps and {asked.MOST_MODELS} models" in text
    assert f"at most {limits.MOST_PIXELS:,} pixels" in text and limits.MOST_IN_ALL == 16 * limits.MOST_PIXELS
    sides = [int(most**0.5) for most in (limits.MOST_SEEN, limits.MOST_SEEN_BACK)]
    assert "{0} x {0} at once, or {1} x {1} where it goes backward".format(*sides) in text
    assert MOST_BYTES["/api/fit"] == uploads.MOST_BYTES and server._MOST_CONNECTIONS == 128
    for link in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert (Path(__file__).parents[1] / "docs" / link).exists(), link
