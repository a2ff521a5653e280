"""Pushing to a hub, which stands in a recorder's place; the last of the tests speaks HTTP to a server that refuses."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

import patch_diffusion as pd
from needs import need
from patch_diffusion.cli import main

pytestmark = pytest.mark.slow

hub = need("huggingface_hub", "export")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    tiny = (
        "--network.width 8 --network.multipliers 1 2 --network.attention 1 --network.blocks 1 --batch 4 --samples 0 "
        "--checkpoints 1"
    )
    assert main(["train", "digits", "--out", str(folder), "--steps", "1", *tiny.split()]) == 0
    return folder


@pytest.fixture
def calls(monkeypatch):
    """What the hub's client is asked to do, in order; nothing leaves the machine."""
    found = []

    def create_repo(self, repo_id, **options):
        found.append(("create", repo_id, options))
        return f"https://hub.example/{repo_id}"

    def upload_folder(self, *, repo_id, folder_path, **options):
        files = sorted(path.relative_to(folder_path).as_posix() for path in folder_path.rglob("*") if path.is_file())
        found.append(("upload", repo_id, files))

    monkeypatch.setattr(hub.HfApi, "create_repo", create_repo)
    monkeypatch.setattr(hub.HfApi, "upload_folder", upload_folder)
    return found


def test_nothing_is_pushed_unless_asked(trained, tmp_path, calls):
    assert pd.export_model(trained, tmp_path / "out")["pushed"] is None
    assert not calls


@pytest.mark.parametrize("public", [False, True])
def test_the_whole_folder_is_pushed(trained, tmp_path, calls, capsys, public):
    arguments = ["export", str(trained), "--to", "diffusers", "--out", str(tmp_path / "out"), "--push", "me/digits"]
    assert main([*arguments, "--license", "mit", "--json", *(["--public"] * public)]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["pushed"] == "https://hub.example/me/digits"
    assert calls == [
        ("create", "me/digits", {"private": not public, "exist_ok": True}),
        ("upload", "me/digits", result["files"]),
    ]
    assert 'from_pretrained("me/digits", trust_remote_code=True)' in (tmp_path / "out" / "README.md").read_text()


def test_a_failed_export_is_not_pushed(trained, tmp_path, calls):
    with pytest.raises(pd.InputError, match="multiples of 2"):
        pd.export_model(trained, tmp_path / "out", resolution=5, push_to="me/digits")
    assert not calls


@pytest.mark.parametrize("name", ["digits", "me/di gits", "a/b/c", "me/..", "../x", "/x", "me/", "me/a--b"])
def test_names_that_are_none(trained, tmp_path, calls, name):
    with pytest.raises(pd.InputError, match="OWNER/NAME"):
        pd.export_model(trained, tmp_path / "out", push_to=name)
    assert not calls and not (tmp_path / "out").exists()


class Refusing(BaseHTTPRequestHandler):
    """A hub that knows nobody."""

    def do_POST(self):
        self.server.paths.append(self.path)  # pyright: ignore[reportAttributeAccessIssue]
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        content = b'{"error": "Invalid username or password."}'
        self.send_response(401)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


def test_what_the_hub_says_is_one_line_and_the_folder_stays(trained, tmp_path, capsys, monkeypatch):
    server = HTTPServer(("127.0.0.1", 0), Refusing)
    server.paths = []  # pyright: ignore[reportAttributeAccessIssue]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        monkeypatch.setattr(hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
        arguments = ["export", str(trained), "--to", "diffusers", "--out", str(tmp_path / "out"), "--push", "me/digits"]
        assert main(arguments) == 1
    finally:
        server.shutdown()
        server.server_close()
    told = capsys.readouterr().err
    assert server.paths == ["/api/repos/create"]  # pyright: ignore[reportAttributeAccessIssue]
    assert len(told.splitlines()) == 1 and "Traceback" not in told
    assert "is exported but was not pushed to me/digits" in told and "401" in told and "hf upload me/digits" in told
    assert (tmp_path / "out" / "model_index.json").exists()
