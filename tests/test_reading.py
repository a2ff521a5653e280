"""How much one reads to read a training step and a sampled image: `benchmarks/reading.py`, held to its limits."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "reading.py"

LIMITS = {"one training step": (13, 400), "one sampled image": (9, 560)}


def test_the_ways_stay_short():
    found = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, check=True).stdout
    ways = {
        title: (int(files), int(lines)) for title, files, lines in re.findall(r"(.+): (\d+) files, (\d+) lines", found)
    }
    assert ways.keys() == {*LIMITS, "its batch, prepared ahead"}
    for title, (files, lines) in LIMITS.items():
        assert 3 < ways[title][0] <= files and 100 < ways[title][1] <= lines, found
