"""The commands of docs/race.md, executed."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from patch_diffusion.cli import main
from patch_diffusion.races.judging import FEWEST_JUDGES, JUDGES
from patch_diffusion.races.tuning import LEAST_STEPS, MOST_VALUES, WHOLE_SHARES
from patch_diffusion.races.turns import SECONDS_PER_LAP

pytestmark = pytest.mark.slow

PAGE = (Path(__file__).parents[1] / "docs" / "race.md").read_text(encoding="utf-8")
COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("patch-diffusion")
]
SHORT = "--steps 1 --moments 1 --network.width 8 --network.blocks 1 --network.multipliers 1 2 --network.attention 1"


def test_the_commands(make_folder, tmp_path, monkeypatch, capsys):
    for name in ("photos", "others"):
        shutil.make_archive(str(tmp_path / name), "zip", make_folder(24, (8, 8), name=f"{name}-folder"))
    monkeypatch.chdir(tmp_path)
    assert len(COMMANDS) == 5
    for line in COMMANDS:
        line = line.replace("--minutes 20", SHORT if "--tune-all" in line else f"{SHORT} --tune 0")
        line = line.replace("--resolution 64", "--resolution 8")
        line = line.replace("--watch.extractor inception", "--watch.samples 4")
        assert main(shlex.split(line, comments=True)[1:]) == 0, (line, capsys.readouterr().err)
    found = {race.name: json.loads((race / "race.json").read_text()) for race in (tmp_path / "races").iterdir()}
    assert found["photos"]["seeds"] == [0, 1, 2] and list(found["more"]["plan"]["arms"]) == [
        "whole",
        "patches",
        "quarter",
    ]
    assert set(found["seen"]["distances"]) == {"frechet", "kernel"}
    assert sorted(found["own"]["tuning"]) == ["patches", "whole"] and found["own"]["images"]["trained_on"] == 24


def test_what_the_page_promises():
    assert (SECONDS_PER_LAP, JUDGES, FEWEST_JUDGES) == (15, 256, 16)
    assert (LEAST_STEPS, MOST_VALUES, WHOLE_SHARES) == (50, 3, (0.1, 0.25, 0.5, 0.75))


def test_its_links_lead_somewhere():
    for link in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert (Path(__file__).parents[1] / "docs" / link).exists(), link
