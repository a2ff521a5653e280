"""The description of the installation, as a report of a fault asks for it."""

import json
import platform
import sys
from email.message import Message
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import patch_diffusion as pd
from patch_diffusion import installation
from patch_diffusion.cli import main
from patch_diffusion.devices import system_name

NEEDED = [
    "numpy>=1.26",
    "torch>=9.0",
    "absent>=1; extra == 'more'",
    "pillow>=11; extra == 'more'",
    "never; python_version < '3' and extra == 'more'",
]


@pytest.fixture
def metadata(monkeypatch):
    """A package that needs a torch of the future, and whose extra "more" needs a library that nobody has."""
    message = Message()
    message["Provides-Extra"] = "more"
    message["Provides-Extra"] = "schedule-free"
    monkeypatch.setattr(installation, "metadata", lambda name: message)
    monkeypatch.setattr(installation, "requires", lambda name: NEEDED)


def test_versions_devices_and_extras_of_this_installation():
    found = pd.environment()
    assert found["versions"]["python"] == platform.python_version()
    assert all(found["versions"][name] == version(name) for name in ("patch_diffusion", "torch", "numpy"))
    assert found["devices"][0]["device"] == "cpu" and found["devices"][0]["threads"] == torch.get_num_threads()
    assert found["missing"]["patch_diffusion"] == [] and {"data", "serve", "schedule-free"} <= found["missing"].keys()


def test_extras_that_users_install_come_first_and_those_of_developers_are_left_out(metadata, monkeypatch):
    extras = ["dev", "docs", "more", "test", "lint", "track", "serve"]
    message = Message()
    for extra in extras:
        message["Provides-Extra"] = extra
    monkeypatch.setattr(installation, "metadata", lambda name: message)
    assert list(pd.environment()["missing"]) == ["patch_diffusion", "serve", "track", "more"]


def test_no_user_machine_or_folder_is_named(monkeypatch):
    monkeypatch.setattr(platform, "node", lambda: "anna")
    for name in ("USER", "LOGNAME", "USERNAME", "HOME", "USERPROFILE", "HOSTNAME"):
        monkeypatch.setenv(name, "/home/anna")
    text = json.dumps(pd.environment())
    assert "anna" not in text and sys.prefix not in text and str(Path(pd.__file__).parent) not in text


def test_what_is_absent_or_too_old_is_named_once_and_other_systems_do_not_count(metadata):
    found = pd.environment()
    torch_version = version("torch")
    assert found["missing"] == {
        "patch_diffusion": [f"torch>=9.0 ({torch_version} is installed)"],
        "more": ["absent>=1"],
        "schedule-free": [],
    }
    assert set(found["versions"]) == {"patch_diffusion", "python", "numpy", "torch", "pillow"}


def test_a_version_that_precedes_a_release_counts(metadata, monkeypatch):
    def installed(name):
        if name == "absent":
            raise PackageNotFoundError(name)
        return "9.1.0.dev20300101+cu130"

    monkeypatch.setattr(installation, "version", installed)
    assert pd.environment()["missing"]["patch_diffusion"] == []


def test_gpus_have_names_and_memory(monkeypatch):
    facts = SimpleNamespace(name="Abacus", total_memory=2**34)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda place: facts)
    assert pd.environment()["devices"][1:3] == [
        {"device": "cuda:0", "name": "Abacus", "memory": 2**34},
        {"device": "cuda:1", "name": "Abacus", "memory": 2**34},
    ]


def test_as_a_command(metadata, tmp_path, capsys):
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert f"version      {version('patch_diffusion')}\n" in text and "more         lacks absent>=1\n" in text
    assert "extras       schedule-free\n" in text and all(len(line) <= 80 for line in text.splitlines())
    assert "it lacks     torch>=9.0" in text and "to add one   pip install 'patch_diffusion[more]'\n" in text
    assert main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads(json.dumps(pd.environment()))
    file = tmp_path / "new" / "environment.json"
    assert main(["info", "--json", str(file)]) == 0 and json.loads(file.read_text()) == found
    assert f"the result is in {file}" in capsys.readouterr().err
    assert main(["info", "--json", str(tmp_path)]) == 1 and "config.json" in capsys.readouterr().err  # a folder is RUN


def test_the_name_of_a_kernel_is_left_out(monkeypatch):
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    for release, expected in (("6.8.0-annas-lab+", "Linux 6.8.0 x86_64"), ("annas", "Linux x86_64")):
        monkeypatch.setattr(platform, "release", lambda release=release: release)
        assert system_name() == expected
