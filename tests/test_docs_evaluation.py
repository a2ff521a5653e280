"""The commands of docs/evaluation.md, executed, and its promises."""

import json
import re
import shlex
from pathlib import Path

import pytest

from needs import need
from patch_diffusion.cli import main

pytestmark = pytest.mark.slow

PAGE = (Path(__file__).parents[1] / "docs" / "evaluation.md").read_text(encoding="utf-8")
SHORT = (
    "--steps 2 --batch 2 --network.width 8 --network.multipliers 1 2 --network.blocks 1 --network.attention 1 "
    "--samples 0 --track"
)


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.usefixtures("forked")
def test_the_commands(make_folder, tmp_path, monkeypatch, capsys):
    need("torchdiffeq", "likelihood")
    monkeypatch.chdir(tmp_path)
    for num, name in ((12, "photos"), (9, "pictures"), (10, "others")):
        make_folder(num, (8, 8), name=name)
    train = f"train photos --out runs/photos --patches.sizes 1/2=1 {SHORT}"
    assert main(train.split()) == 0
    commands = [line for block in blocks("sh") for line in block.splitlines()]
    assert len(commands) == 7
    for line in commands:
        line = re.sub(r"--samples \d+", "", line.partition(" #")[0]).replace("--processes 8", "--processes 2")
        if "runs/photos" in line:
            line += " --samples 8 --steps 1 --bits-images 1"
        assert main(shlex.split(line, comments=True)[1:]) == 0, (line, capsys.readouterr().err)
    assert (tmp_path / "pairs.png").exists()
    assert json.loads((tmp_path / "numbers.json").read_text())["settings"]["samples"] == 8


def test_the_python_example(capsys):
    (code,) = blocks("python")
    exec(compile(code, "evaluation.md", "exec"), {})
    value, low, high = map(float, capsys.readouterr().out.split())
    assert low < value < high


def test_what_the_page_promises():
    from patch_diffusion.evaluation import collect, comparing, intervals, memorization, reference
    from patch_diffusion.evaluation.evaluate import SAMPLES
    from patch_diffusion.evaluation.extractors.inception import FILE
    from patch_diffusion.evaluation.options import METRICS

    assert (SAMPLES, collect.MOST_KEPT, comparing.MOST_COMPARED) == (1000, 10_000, 10_000)
    assert reference.MOST_FEATURES == 50_000
    assert (intervals.GROUPS, intervals._REPLICATES) == (8, 1000)
    assert (memorization.RATIO, memorization.SIDE) == (1 / 3, 32)
    assert FILE in PAGE and all(f"| `{name}` |" in PAGE for name in METRICS)


def test_its_links_lead_somewhere():
    for link in re.findall(r"\]\(([^)#]+)(?:#[\w-]+)?\)", PAGE):
        assert link.startswith("https://") or (Path(__file__).parents[1] / "docs" / link).exists(), link
