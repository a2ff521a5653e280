"""Errors that name the option at fault, whatever becomes of their sentence on the way to the user."""

import json
import pickle

import pytest

from patch_diffusion.cli import main
from patch_diffusion.cli.say import say
from patch_diffusion.cli.train import Train
from patch_diffusion.errors import InputError, about, finite_number, option_error, shown, whole_number
from patch_diffusion.training.progress import Progress
from refusal import refused


def test_the_option_begins_the_sentence():
    error = option_error("patches.whole", "is a probability between 0 and 1, not 2")
    assert str(error) == "patches.whole is a probability between 0 and 1, not 2" and error.option == "patches.whole"
    assert InputError("there are no images").option is None


def test_the_option_survives_another_sentence_and_another_process():
    error = option_error("batch", "is at least 1, not 0")
    told = error.reworded(f"arm 'a': {error}")
    assert (str(told), told.option) == ("arm 'a': batch is at least 1, not 0", "batch")
    arrived = pickle.loads(pickle.dumps(told))
    assert (str(arrived), arrived.option) == (str(told), "batch")


def test_the_innermost_name_stays():
    @about("guide")
    def check(option):
        raise InputError("this does not go", option=option)

    with refused("guide"):
        check(None)
    with refused("guidance_interval"):
        check("guidance_interval")
    with pytest.raises(KeyError), about("guide"):
        raise KeyError


def test_numbers_name_the_option_and_no_phrase():
    with refused("steps"):
        whole_number("steps", 0.5)
    with refused("rho"):
        finite_number("rho", float("nan"))
    with refused(None):
        whole_number("a class", "cat")


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["--patches.hole", "0.5"], "patches.hole"),
        (["--patches.whole", "much"], "patches.whole"),
        (["--optimizer.learning-rate"], "optimizer.learning_rate"),
        (["--batch=many"], "batch"),
    ],
)
def test_the_command_line_names_the_option(words, option):
    with refused(option):
        Train.parse(["digits", "--out", "run", *words])


def test_a_sentence_is_one_line_without_what_a_terminal_obeys():
    error = InputError("a\x1b[2J\r\n\x9b\u2028\u202eb é 日本 \udce9")
    assert str(error) == r"a\x1b[2J\r\n\x9b\u2028\u202eb é 日本 " + "\udce9"
    assert shown("a\n\x1b", lines=True) == "a\n\\x1b"


def test_what_the_command_prints_is_escaped(capsys, monkeypatch, tmp_path):
    name = "\x1b]0;title\x07\n"
    assert main(["train", f"nowhere{name}", "--out", str(tmp_path / "run"), "--steps", "1"]) == 1
    say(f"one\ntwo{name}")
    Progress(None).say(f"three{name}")
    out, told = capsys.readouterr()
    assert out == "one\ntwo\\x1b]0;title\\x07\n\n" and "\x1b" not in told and "three\\x1b" in told
    assert told.startswith("patch-diffusion train: there is no data at nowhere\\x1b]0;title\\x07\\n:")
    log = tmp_path / "log.jsonl"
    Progress(log, show=False).note(f"skipped {name}", 0)
    assert json.loads(log.read_text())["note"] == r"skipped \x1b]0;title\x07\n"
