"""The commands of docs/export.md, executed."""

import re
import shlex
from pathlib import Path

import pytest

from patch_diffusion.cli import main

PAGE = (Path(__file__).parents[1] / "docs" / "export.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
TINY = (
    "--network.width 8 --network.multipliers 1 2 --network.attention 1 --network.blocks 1 --batch 4 --samples 0 "
    "--checkpoints 1"
)


def test_the_page(tmp_path, monkeypatch, capsys):
    for name in ("diffusers", "onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason="the extras 'hub' and 'export' are not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    assert main(["train", "digits", "--out", "runs/photos", "--steps", "2", *TINY.split()]) == 0
    assert len(COMMANDS) == 3
    for line in COMMANDS:
        assert main(shlex.split(line)[1:]) == 0, (line, capsys.readouterr().err)
        assert (Path(line.split(" --out ")[1].split()[0]) / "README.md").exists()
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names = {}
    exec(compile(code, "export.md", "exec"), names)
    assert [image.size for image in names["images"]] == [(16, 16)] * 4


def test_its_links_lead_somewhere():
    for link in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert (Path(__file__).parents[1] / "docs" / link).exists(), link
