"""docs/clusters.md shows the example files as they are."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "clusters.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("language", "file", "num"),
    [("bash", "examples/cluster/train.sbatch", 1), ("python", "examples/cluster/ray_train.py", 2)],
)
def test_what_the_page_shows_is_in_the_file(language, file, num):
    shown = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)[:num]
    assert len(shown) == num
    for block in shown:
        assert block in (ROOT / file).read_text(encoding="utf-8")
