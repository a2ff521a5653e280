"""Errors that name the option at fault, whatever becomes of their sentence on the way to the user."""

import pickle

import pytest

from patch_diffusion.cli.train import Train
from patch_diffusion.errors import InputError, about, finite_number, option_error, whole_number
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
