"""The workflow of continuous integration: what it names exists, and its versions are those of the package."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
WORKFLOW = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
JOBS = yaml.safe_load(WORKFLOW)["jobs"]


def entries(job):
    """Entries of a job's matrix, as dicts; one without any for a job that has no matrix."""
    matrix = dict(job.get("strategy", {}).get("matrix", {}))
    found = [*matrix.pop("include", [])]
    crossed = [{}]
    for name, values in matrix.items():
        crossed = [{**entry, name: value} for entry in crossed for value in values]
    return [*found, *(crossed if matrix or not found else [])]


def filled(text, entry):
    return re.sub(r"\$\{\{ matrix\.(\w+) \}\}", lambda found: entry[found[1]], text)


def commands():
    """Every line that a job runs, for every entry of its matrix."""
    return [
        line
        for job in JOBS.values()
        for entry in entries(job)
        for step in job["steps"]
        for line in filled(step.get("run", ""), entry).splitlines()
    ]


def test_the_versions_of_python_are_those_of_the_package():
    tested = {entry["python"] for entry in entries(JOBS["linux"]) if entry["target"] == "test"}
    lowest = re.search(r'requires-python = ">=(3\.\d+)"', PROJECT)
    assert (
        lowest
        and lowest[1] in tested
        and tested == set(re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PROJECT))
    )
    assert any(entry["python"] == lowest[1] and entry["libraries"] == "oldest" for entry in entries(JOBS["fast"]))


def test_every_target_of_make_is_in_the_makefile():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    wanted = {target for line in commands() for target in re.findall(r"\bmake (\S+)", line)}
    assert {"test", "lint", "docs"} <= wanted <= targets


def test_every_extra_is_one_of_the_package():
    extras = re.search(r"\[project\.optional-dependencies\]\n(.*?)\n\[", PROJECT, re.DOTALL)
    wanted = {
        extra for line in commands() for found in re.findall(r"\.\[([\w,-]+)\]", line) for extra in found.split(",")
    }
    assert extras and wanted and wanted <= set(re.findall(r"^([\w-]+) = ", extras[1], re.MULTILINE))


def test_it_may_read_only_knows_no_secret_and_every_job_ends():
    assert yaml.safe_load(WORKFLOW)["permissions"] == {"contents": "read"} and "secrets." not in WORKFLOW
    assert all("timeout-minutes" in job and "permissions" not in job for job in JOBS.values())
    used = [step["uses"] for job in JOBS.values() for step in job["steps"] if "uses" in step]
    assert used and all(re.fullmatch(r"actions/[\w-]+@v\d+", action) for action in used)
