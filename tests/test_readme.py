"""The README's examples, executed."""

import re
import shlex
from pathlib import Path

import pytest

from patch_diffusion.cli import main

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.slow
def test_the_python_example(tmp_path, monkeypatch):
    """With a budget that suits a test."""
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("python")
    code = code.replace("steps=20", "steps=2").replace("steps=18", "steps=2")
    exec(compile(code, "README.md", "exec"), {})
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == [f"{seed:06d}.png" for seed in range(4)]


@pytest.mark.slow
def test_the_commands(tmp_path, monkeypatch, make_folder):
    """With a budget and a network that suit a test."""
    make_folder(80, (70, 80), name="photos")
    monkeypatch.chdir(tmp_path)
    commands = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("patch-diffusion")]
    assert [line.split()[1] for line in commands] == ["inspect", "train", "sample", "race"]
    tiny = "--batch 1 --network.width 8 --network.blocks 1"
    for line in commands:
        line = line.replace("inspect photos/", "inspect photos/ --no-forecast")
        line = line.replace("--minutes 30", f"--steps 1 --samples 0 {tiny}").replace(
            "--seeds 0-63", "--seeds 0 --steps 5"
        )
        line = line.replace("--minutes 20", f"--steps 1 --moments 1 --tune 0 {tiny}")
        assert main(shlex.split(line, comments=True)[1:]) == 0, line
    assert (tmp_path / "grid.png").exists() and (tmp_path / "races" / "photos" / "race.json").exists()


def test_the_make_targets():
    makefile = (Path(__file__).parents[1] / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^(\w+):", makefile, re.MULTILINE))
    for block in blocks("sh"):
        assert set(re.findall(r"^make (\w+)", block, re.MULTILINE)) <= targets


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "CONTRIBUTING.md",
        "benchmarks/README.md",
        "docs/architecture.md",
        "docs/any-network.md",
    ],
)
def test_links_lead_somewhere(page):
    path = Path(__file__).parents[1] / page
    for link in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
        assert link.startswith("https://") or (path.parent / link).exists(), link


def test_every_benchmark_is_listed_and_every_listed_one_is_there():
    folder = Path(__file__).parents[1] / "benchmarks"
    text = (folder / "README.md").read_text(encoding="utf-8")
    scripts = {path.name for path in folder.glob("*.py")} - {"measuring.py"}
    assert scripts == {Path(name).name for name in re.findall(r"[\w/]+\.py", text)}
