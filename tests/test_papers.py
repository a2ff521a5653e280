"""The change log and the log of experiments have the form that readers look for."""

import re
from datetime import date
from itertools import pairwise
from pathlib import Path

import pytest

import patch_diffusion

ROOT = Path(__file__).parents[1]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
LOG = (ROOT / "LOG.md").read_text(encoding="utf-8")


def check_changelog(text, version):
    """Raise AssertionError if the versions of a change log are not in order, or have headings of other kinds."""
    unreleased, *versions = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert unreleased == "Unreleased"
    found = [re.fullmatch(r"(\d+)\.(\d+)\.(\d+) - (\d{4}-\d\d-\d\d)", each) for each in versions]
    parts = [each for each in found if each]
    assert len(parts) == len(versions), versions
    assert versions[0].startswith(f"{version} - ")
    for newer, older in pairwise(parts):
        assert [int(newer[place]) for place in (1, 2, 3)] > [int(older[place]) for place in (1, 2, 3)]
        assert date.fromisoformat(newer[4]) >= date.fromisoformat(older[4])
    for version in text.split("\n## ")[1:]:
        kinds = re.findall(r"^### (.*)$", version, re.MULTILINE)
        assert kinds == [kind for kind in ("Added", "Changed", "Deprecated", "Fixed") if kind in kinds], version[:30]


def check_log(text):
    """Raise AssertionError if an entry lacks its date or its row of the table at the top, or a line is too long."""
    start, *entries = re.split(r"^## ", text, flags=re.MULTILINE)
    rows = re.findall(r"^\| (\d{4}-\d\d-\d\d) \| \[(.+)\]\(#\S+\) \| \S.* \| \S.* \|$", start, re.MULTILINE)
    dated = [re.match(r"(.+)\n\n\*(\d{4}-\d\d-\d\d)\*\n", entry) for entry in entries]
    assert [entry for entry, found in zip(entries, dated, strict=True) if not found] == []
    assert [found.group(2, 1) for found in dated if found] == rows
    days = [date.fromisoformat(day) for day, _ in rows]
    assert days == sorted(days, reverse=True)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    assert [line for line in prose.splitlines() if len(line) > 160 and not line.startswith("|")] == []


def test_the_changelog_is_by_versions():
    check_changelog(CHANGELOG, patch_diffusion.__version__)


def test_entries_of_the_log_have_dates_and_rows():
    check_log(LOG)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("## Unreleased\n", ""),
        ("## 0.1.0 - 2026-11-29", "## 0.1.0"),
        ("## 0.1.0 - 2026-11-29", "## 0.1.0 - 2026-13-29"),
        ("## 0.1.0 - 2026-11-29", "## 0.1.0 - 2027-11-29"),
        ("## 0.1.0 - 2026-11-29", "## 0.3.0 - 2026-11-29"),
        ("### Deprecated", "### Removed"),
    ],
)
def test_a_changelog_of_another_form_is_found(old, new):
    newest = re.findall(r"^## (\S+) - ", CHANGELOG, re.MULTILINE)[0]
    check_changelog(CHANGELOG, newest)
    with pytest.raises((AssertionError, ValueError)):
        check_changelog(CHANGELOG.replace(old, new), newest)


@pytest.mark.parametrize(
    ("pattern", "new"),
    [
        (r"\n\*\d{4}-\d\d-\d\d\*\n", "\n"),  # an entry without a date
        (r"\n\| 20.*", ""),  # without its row
        (r"\| 20\d\d-(\d\d)", r"| 2020-\1"),  # with another date in it
        (r"\n\*Asked\*", "\n" + "word " * 40 + "*Asked*"),  # with a line that is too long
        (r"(\n\| 20.*)(\n\| 20.*)", r"\2\1"),  # rows in another order
    ],
)
def test_a_log_of_another_form_is_found(pattern, new):
    changed = re.sub(pattern, new, LOG, count=1)
    assert changed != LOG
    with pytest.raises(AssertionError):
        check_log(changed)
