"""Sentences for wrong command lines, in place of those of the parser: what is wrong, where, and what to give."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import MISSING
from itertools import pairwise, takewhile

from patch_diffusion.cli.help import Option, shown_value
from patch_diffusion.errors import did_you_mean

_IN_WORDS = {
    "N": "a whole number",
    "N N": "two of them",
    "X": "a number",
    "N ...": "whole numbers",
    "X ...": "numbers",
    "X X": "two numbers",
    "LOW HIGH": "two numbers",
}


def sentence(told: str, verb: str, options: Sequence[Option], arguments: Sequence[str]) -> str:
    """Return the sentence for the error of the parser.

    Args:
        told: the error, in one line.
        verb: the verb of the command line.
        options: the options that it takes.
        arguments: the words after the verb.
    """
    if told.startswith("Missing from"):
        return _missing(told, verb, options)
    if unknown := re.match(r"Unrecognized options: ([^;]*)(.*)", told):
        return _unknown(unknown[1].split(", ")[0], unknown[2], verb, options, arguments)
    wrong = re.match(r"Error parsing (\S+?):|(?:invalid choice|Missing value).* for argument '([^']+)'", told)
    name = wrong and (wrong[1] or wrong[2]).split("/")[0]
    choices = "|".join(re.findall(r"'([^']+)'", told.partition("Expected one of")[2]))
    option = next((each for each in options if name in each.names), None)
    option = option or next((each for each in options if choices and not each.names and each.values == choices), None)
    return _wrong(option, verb, arguments) if option else told


def _missing(told: str, verb: str, options: Sequence[Option]) -> str:
    """Return a sentence on the arguments and options that have to be given."""
    needed = [option for option in options if option.default is MISSING]
    lacking = [option.heading for option in needed if f" {option.heading.partition(' ')[0]} " in f"{told} "]
    example = f"patch-diffusion {verb} {' '.join(option.heading for option in needed)}"
    return f"{_listed(lacking, 'and')} {'are' if len(lacking) > 1 else 'is'} missing, as in: {example}"


def _unknown(word: str, suggestion: str, verb: str, options: Sequence[Option], arguments: Sequence[str]) -> str:
    """Return a sentence on a word that is no option, or that follows one without a value."""
    if word.startswith("-"):
        return f"there is no option {word}{suggestion}"
    before = next((one for one, other in pairwise(arguments) if other == word), "")
    switch = any(before in option.names and not option.values for option in options)
    why = f": {before} takes no value" if switch else ""
    return f"{verb} does not take '{word}'{why}"


def _wrong(option: Option, verb: str, arguments: Sequence[str]) -> str:
    """Return a sentence on an option whose value is missing, or is none of those that it takes."""
    name = next((name for name in option.names if _given(name, arguments) is not None), verb)
    given = _given(name, arguments) if option.names else next(iter(arguments), None)
    choices = re.fullmatch(r"[\w.-]+(\|[\w.-]+)+", option.values) and option.values.split("|")
    takes = _listed([_IN_WORDS.get(each, each) for each in option.values.split("|")], "or")
    if not choices and option.values not in _IN_WORDS and isinstance(option.default, dict):
        takes += f", as in {shown_value(option.default)}"
    if not given:
        return f"{name} needs a value, {takes}"
    nearest = did_you_mean(given, choices) if choices else ""
    return f"{name} takes {takes}, not '{given}'" + nearest * nearest.startswith("; did")


def _listed(words: Sequence[str], last: str) -> str:
    """Join words by commas, and the last of them by a word."""
    return f" {last} ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def _given(name: str, arguments: Sequence[str]) -> str | None:
    """Return the words that follow an option, as one text; None if it is not given."""
    for place, word in enumerate(arguments):
        if word == name:
            return " ".join(takewhile(lambda each: not each.startswith("--"), arguments[place + 1 :]))
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return None
