"""The commands of docs/examples.md name scripts and options that there are."""

import re
import shlex
from pathlib import Path

import pytest

from test_examples import EXAMPLES, load

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "examples.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^python examples/(\w+)\.py (.*)$", PAGE, re.MULTILINE)


def test_every_script_is_on_a_page():
    pages = "".join(page.read_text(encoding="utf-8") for page in DOCS.glob("*.md"))
    made = {"__pycache__", ".ipynb_checkpoints", "runs"}  # by running them
    assert {path.name for path in EXAMPLES.iterdir()} - made <= set(re.findall(r"\.\./examples/([\w.]+)[/)]", pages))


@pytest.mark.parametrize(("name", "words"), COMMANDS)
def test_the_commands(name, words, capsys):
    with pytest.raises(SystemExit) as stopped:
        load(name).main([*shlex.split(words, comments=True), "--help"])
    assert stopped.value.code == 0
    with pytest.raises(SystemExit) as stopped:  # an option that is not there is refused before anything is done
        load(name).main([*shlex.split(words, comments=True), "--unknown"])
    assert "unrecognized arguments: --unknown" in capsys.readouterr().err
