"""Lays out the pages of the site: those of docs/, the README as its start, and a reference of the public names.

    python docs/site/pages.py && zensical build --strict --config-file build/docs/mkdocs.yml

The reference is made of the docstrings while the site is built. Files outside docs/ that a page links to come along, so
every link leads somewhere without a network.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import yaml

import patch_diffusion

ROOT = Path(__file__).parents[2]

# The order of the pages; what is not listed is added at the end.
GROUPS = {
    "Start": ("index", "start", "examples"),
    "How to": (
        "data",
        "small-data",
        "large-images",
        "latents",
        "runs",
        "further",
        "watching",
        "clusters",
        "sampling",
        "few-steps",
        "editing",
        "detect",
        "export",
        "serve",
    ),
    "Settings and questions": ("settings", "doctor", "faq", "coming-from"),
    "Python": ("python", "any-network"),
    "Method": ("method",),
    "Evidence": ("evaluation", "race", "evidence", "paper", "performance", "scaling", "benchmarks", "LOG"),
    "About": (
        "glossary",
        "licences",
        "support",
        "reading",
        "architecture",
        "CONTRIBUTING",
        "CODE_OF_CONDUCT",
        "SECURITY",
        "CHANGELOG",
    ),
}
STAGES = {
    "data": "Images",
    "patches": "Patches",
    "denoise": "Denoisers and networks",
    "training": "Training",
    "sampling": "Sampling",
    "runs": "Runs",
    "evaluation": "Evaluation",
    "races": "Evaluation",
    "doctor": "Evaluation",
    "interop": "Other tools",
}
OTHERS = "Settings and errors"
_LINK = re.compile(r"(\]\()([^)#\s]+)(#[^)\s]*)?\)")


def sources() -> dict[Path, str]:
    """The Markdown files that become pages, and the name that each has on the site."""
    found = {page: page.name for folder in ("docs", "benchmarks") for page in sorted((ROOT / folder).glob("*.md"))}
    found |= {ROOT / "README.md": "index.md", ROOT / "benchmarks" / "README.md": "benchmarks.md"}
    found.update({page: page.name for page in sorted(ROOT.glob("*.md")) if page.name != "README.md"})
    return found


def moved(text: str, page: Path, names: dict[Path, str], carried: set[Path]) -> str:
    """A page's text with its links as they are on the site; files that have to come along are added to ``carried``."""

    def link(found: re.Match[str]) -> str:
        target = Path(os.path.normpath(page.parent / found[2]))
        if "://" in found[2] or not target.exists():
            return found[0]  # what is missing is the builder's to complain of
        if target not in names:
            carried.add(target)
        return f"{found[1]}{names.get(target, target.relative_to(ROOT).as_posix())}{found[3] or ''})"

    return _LINK.sub(link, text)


def reference() -> dict[str, str]:
    """Pages on the public names, by title; the names of a stage are on one."""
    titles: dict[str, list[str]] = {title: [] for title in (*STAGES.values(), OTHERS)}
    for name, module in patch_diffusion._MODULE_OF.items():
        titles[STAGES.get(module.split(".")[1], OTHERS)].append(name)
    return {
        title: "\n\n".join([f"# {title}", *(f"::: patch_diffusion.{name}" for name in names)]) + "\n"
        for title, names in titles.items()
        if names
    }


def main(build: Path = ROOT / "build" / "docs") -> None:
    pages = build / "pages"
    shutil.rmtree(build, ignore_errors=True)
    (pages / "reference").mkdir(parents=True)
    names, carried = sources(), set()
    for page, name in names.items():
        (pages / name).write_text(moved(page.read_text(encoding="utf-8"), page, names, carried), encoding="utf-8")
    for file in carried:
        copy = pages / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if file.is_dir():  # of which a page may name single files too
            shutil.copytree(file, copy, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
        else:
            shutil.copyfile(file, copy)
    shutil.copyfile(ROOT / "docs" / "site" / "wide.css", pages / "wide.css")

    listed = {page for group in GROUPS.values() for page in group}
    groups = {**GROUPS, "More": tuple(Path(name).stem for name in names.values() if Path(name).stem not in listed)}
    navigation: list[dict[str, list[object]]] = [
        {title: [f"{page}.md" for page in group if (pages / f"{page}.md").exists()]} for title, group in groups.items()
    ]
    entries: list[object] = []
    for title, text in reference().items():
        name = f"reference/{title.lower().replace(' ', '-')}.md"
        (pages / name).write_text(text, encoding="utf-8")
        entries.append({title: name})
    next(group["Python"] for group in navigation if "Python" in group).append({"Reference": entries})
    template = (ROOT / "docs" / "site" / "mkdocs.yml").read_text(encoding="utf-8")
    settings = yaml.safe_load(template.replace("ROOT/", f"{ROOT.as_posix()}/"))
    settings["nav"] = [group for group in navigation if any(group.values())]
    (build / "mkdocs.yml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")


if __name__ == "__main__":
    main()
