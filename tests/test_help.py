"""The help of the command line: short, whole, and by group; and the completion of shells."""

import re
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from patch_diffusion.cli import VERBS, main
from patch_diffusion.cli.help import MOST_USED, Option, help_text, options_of
from patch_diffusion.cli.train import Train
from patch_diffusion.config import Config
from patch_diffusion.presets import PRESETS

ROOT = Path(__file__).parents[1]


@pytest.fixture
def told(capsys, monkeypatch):
    """A function that runs a command line of a terminal of 80 columns and returns what it prints."""
    monkeypatch.setenv("COLUMNS", "80")

    def told(line):
        with pytest.raises(SystemExit) as stopped:
            main(line.split())
        assert stopped.value.code == 0
        return capsys.readouterr().out

    return told


@pytest.mark.parametrize("verb", VERBS)
def test_help_fits_a_terminal(told, verb):
    for words in ("--help", "--help-all"):
        lines = told(f"{verb} {words}").splitlines()
        assert all(len(line) <= 80 for line in lines), [line for line in lines if len(line) > 80]
        assert not any(word in line for line in lines for word in ("None}", "MISSING", "Default: None", "''", "[INT"))


@pytest.mark.parametrize("verb", ["train", "inspect", "race"])
def test_help_is_a_page_of_the_options_used_most(told, verb):
    page = told(f"{verb} --help")
    assert len(page.splitlines()) <= 60
    shown = set(re.findall(r"^  (--[\w.-]+)", page, re.MULTILINE))
    assert shown == {option.names[0] for option in options_of(VERBS[verb]) if {*option.names} & MOST_USED}
    more = dict(re.findall(r"^  (\w+) .*?\((\d+)\s+more\)", re.sub(r"\n {20,}", " ", page), re.MULTILINE))
    assert sum(map(int, more.values())) + len(shown) == len([each for each in options_of(VERBS[verb]) if each.names])
    for group in more:
        assert told(f"{verb} --help-all {group}").startswith(f"{group}: ")


def test_the_options_of_the_short_help_are_those_used_most():
    """Counted in what people read; a page more or less changes the order of those that are used less."""
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").glob("**/*.*")]
    texts = [page.read_text(encoding="utf-8") for page in pages if page.suffix in (".md", ".py", ".sh", ".ipynb")]
    used = Counter(word for text in texts for word in re.findall(r"(?<![\w-])--[a-z][\w.-]*", text))
    names = {name for option in options_of(Train) for name in option.names}
    most = [name for name, _ in used.most_common() if name in names]
    assert len(MOST_USED) == 12 and names >= MOST_USED
    assert {*most[:5]} <= MOST_USED <= {*most[:24]}, most[:24]


def test_a_group_that_is_not_there_is_told_with_the_nearest(capsys):
    assert main(["train", "--help-all", "patchs"]) == 2
    assert capsys.readouterr().err == (
        "patch-diffusion train: train has no group of options 'patchs'; did you mean 'patches'?\n"
    )


def test_the_defaults_are_those_of_the_preset(told):
    assert f"Default: {PRESETS['small'].batch}." in told("train --preset small --help")
    assert "Default: auto." in told("train --help")
    assert f"Default: {PRESETS['digits'].batch}." in told("train --preset digits --help")
    assert all(name in told("train --help") for name in PRESETS)


def test_options_read_as_they_are_typed():
    @dataclass(frozen=True)
    class Inner:
        """The inside."""

        pair: tuple[float, float] = (0.5, 2.0)
        """Two numbers."""
        on: bool = True
        """Switch it on."""

    @dataclass(frozen=True)
    class Outer:
        """The outside.

        patch-diffusion outer --some-path FILE
        """

        some_path: Path
        """A file; of
        two lines."""
        inner: Inner = field(default_factory=Inner)

    globals().update(Inner=Inner, Outer=Outer)
    path, pair, switch = options_of(Outer)
    assert (path.heading, path.text) == ("--some-path PATH", "A file; of two lines.")
    assert path.lines(79) == ["  --some-path PATH          A file; of two lines. Required."]
    assert pair.lines(79) == ["  --inner.pair X X          Two numbers. Default: 0.5 2."]
    assert switch.lines(79) == ["  --inner.no-on             Do not switch it on."]
    text = help_text(Outer, "outer", None)
    assert text.startswith(
        "usage: patch-diffusion outer [OPTIONS]\n\nThe outside.\n\n patch-diffusion outer --some-path FILE\n"
    )


def test_the_default_is_said_once():
    """The text of an option says what a default of None means; a value, as of a preset, is shown in its place."""
    unset, preset = Option(("--x",), "X", "A number. More of it. Default: the model's own; 2 for y.", None, "x"), 1.5
    assert unset.lines(79)[0].endswith("A number. More of it. Default: the model's own; 2")
    assert unset.lines(79, short=True)[0].endswith("A number. Default: the model's own.")
    (line,) = replace(unset, default=preset).lines(79)
    assert line.endswith("A number. More of it. Default: 1.5.")
    assert replace(unset, default=0.0).lines(79)[0].endswith("Default: 0.")


@pytest.mark.parametrize("verb", VERBS)
def test_texts_speak_of_defaults_not_of_none(verb):
    for option in options_of(VERBS[verb]):
        text, default, last = option.text.partition(" Default: ")
        assert not re.search(r"\bNone\b", option.text) and "Default:" not in text + last, option
        assert not default or option.default is None or option.default == (), option


def test_every_group_says_what_it_is_for(told):
    text = told("train --help-all")
    groups = [name for name, value in vars(Config()).items() if hasattr(value, "__dataclass_fields__")]
    assert all(re.search(rf"^{group}: \w.+", text, re.MULTILINE) for group in groups)


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_verbs_and_options(capsys, shell, tmp_path):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(verb in script for verb in VERBS) and "--patches.whole" in script
    described = next(line for line in script.splitlines() if line.startswith("COMPLETION_SPEC"))
    assert not re.search(r"\\n", described)  # fish takes each line of a description for a word
    if shell != "bash" or not shutil.which("bash"):
        return  # the others are seldom installed where tests run
    file = tmp_path / "completion"
    file.write_text(script)
    for words, wanted in (("tr", "train"), ("train --patches.wh", "--patches.whole"), ("sample --see", "--seeds")):
        typed = words.split()
        run = (
            f"source {file}; COMP_WORDS=(patch-diffusion {words}); COMP_CWORD={len(typed)};"
            "$(complete -p patch-diffusion | sed -E 's/.*-F ([^ ]+).*/\\1/'); echo ${COMPREPLY[@]}"
        )
        done = subprocess.run(["bash", "-c", run], capture_output=True, text=True, check=True)
        assert done.stdout.split() == [wanted], done.stderr
