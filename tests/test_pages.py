"""The pages for newcomers: short sentences, an opening that shows what to type, commands and code that work."""

import importlib
import re
import shlex
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from patch_diffusion.cli import VERBS, main
from patch_diffusion.training.choices.law import KNOTS, PIXELS
from test_doc_names import Wrong, check_arguments, options_of, script_options

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"

NEW = [
    *("start", "small-data", "latents", "sampling", "settings", "faq", "coming-from", "python"),
    *("glossary", "licences", "support", "doctor"),
]
REWRITTEN = [
    *(f"docs/{name}.md" for name in ("data", "runs", "watching", "clusters", "large-images", "serve", "editing")),
    "docs/further.md",
    "docs/evaluation.md",
    "docs/race.md",
    "docs/export.md",
    "docs/performance.md",
    "docs/evidence.md",
    "docs/any-network.md",
    "docs/scaling.md",
    "benchmarks/README.md",
    "benchmarks/paper.md",
    "docs/reading.md",
    "docs/architecture.md",
    "CONTRIBUTING.md",
]

# Here no sentence is long.
PLAIN = ["README.md", *(f"docs/{name}.md" for name in NEW), *REWRITTEN]
MOST_WORDS, MEAN_WORDS = 30, 16

# Groups of docs/site/pages.py whose pages open with what they let one do, and with something to type.
OPENING = ("Start", "How to", "Settings and questions", "Python")
OPENS_OTHERWISE = {*("index",)}
"""Pages of those groups that were written before, and do not yet. To be shortened."""

SHORTER = {
    "steps=20": "steps=2",
    "range(20)": "range(2)",
    "most=64": "most=4",
    "batch=16).fit": "batch=16, samples=0).fit",
    "seeds=range(4))": "seeds=range(2), steps=2)",
    "seeds=[0]": "seeds=[0], steps=2",
    'source="digits")': 'source="digits", held_out=0.0)',
}
TINY = "--network.width 8 --network.multipliers 1 2 --network.attention 1 --network.blocks 1 --batch 4 --samples 0"


def read(page):
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def paragraphs(text, *, tables=False):
    """The prose of a page: paragraphs, items and, if asked for, cells, without what is shown as it is."""
    text = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", text)  # a picture
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)  # a link is its text
    text = re.sub(r"``.+?``|`[^`]+`", "CODE", text, flags=re.DOTALL)
    found = [""]
    for line in text.splitlines():
        if re.match(r"\s*(\||#)", line):
            cells = [] if re.fullmatch(r"[\s|:-]+", line) or line.lstrip().startswith("#") else line.split("|")
            found += [*(cells if tables else []), ""]
        elif not line.strip() or re.match(r"\s*([-*]|\d+\.) ", line):
            found.append(re.sub(r"^\s*([-*]|\d+\.) ", "", line))
        else:
            found[-1] += f" {line}"
    return [re.sub(r"[*_]{1,2}", "", each).strip() for each in found if re.search(r"\w", each)]


def sentences(text, *, tables=False):
    """A paragraph ends a sentence; within it a full stop does that a capital, a digit or a quotation follows."""
    ends = re.compile(r"(?<=[.!?])(?<!e\.g\.)(?<!i\.e\.)(?<!etc\.)(?<!et al\.)[\"')]*\s+(?=[\"'(]*[A-Z0-9])")
    return [sentence for each in paragraphs(text, tables=tables) for sentence in ends.split(each)]


def words(sentence):
    return len([word for word in sentence.split() if re.search(r"\w", word)])


def check_length(text):
    """Raise AssertionError if a sentence is too long, or if they are on average."""
    long = [sentence for sentence in sentences(text, tables=True) if words(sentence) > MOST_WORDS]
    assert long == [], "\n".join(long)
    lengths = [words(sentence) for sentence in sentences(text)]
    assert sum(lengths) / len(lengths) <= MEAN_WORDS


@pytest.mark.parametrize("page", PLAIN)
def test_sentences_are_short(page):
    check_length(read(page))


def test_sentences_are_told_apart():
    text = (
        "# A heading. Not counted\n\nIt takes 1.5 GB (see [the. page](x.md)). `a.b` runs. Karras et al. 2022 say so:\n"
        "two lines.\n\n- An item\n  goes on\n- *Another* one! Yes.\n\n```sh\nno. Code. Here.\n```\n\n"
        "| a b | c. D e |\n|---|---|\n"
    )
    assert sentences(text) == [
        "It takes 1.5 GB (see the. page).",
        "CODE runs.",
        "Karras et al. 2022 say so: two lines.",
        "An item   goes on",
        "Another one!",
        "Yes.",
    ]
    assert sentences(text, tables=True)[-3:] == ["a b", "c.", "D e"]
    assert words("It takes 5 % of `x`, or so - always") == 8


@pytest.mark.parametrize("text", [f"{'word ' * 31}.", f"| {'word ' * 31}. |\n\nShort.", f"{'word ' * 17}. " * 2])
def test_long_sentences_are_found(text):
    check_length(f"{'word ' * 15}.")
    with pytest.raises(AssertionError):
        check_length(text)


def opens(text):
    """A heading, a paragraph, and a block of code or commands."""
    return bool(re.match(r"# [^\n]+\n\n[A-Z][^\n]*(\n[^\n#`|!-][^\n]*)*\n\n```(sh|bash|python)\n", text))


def test_pages_open_with_what_they_let_one_do_and_something_to_type(monkeypatch):
    monkeypatch.syspath_prepend(DOCS / "site")
    groups = importlib.import_module("pages").GROUPS
    pages = {name for group in OPENING for name in groups[group]}
    otherwise = {name for name in pages if not opens(read("README.md" if name == "index" else f"docs/{name}.md"))}
    assert otherwise == OPENS_OTHERWISE
    assert [page for page in REWRITTEN if not opens(read(page))] == []


def test_other_openings_are_found():
    good = "# A\n\nIt does this\nand that.\n\n```sh\nx\n```\n"
    assert opens(good)
    for bad in (good.replace("It does this\nand that.\n\n", ""), good.replace("```sh\nx\n```\n", "More.\n")):
        assert not opens(bad)


def test_terms_that_link_to_the_glossary_are_headings_in_order():
    headings = re.findall(r"^### (.*)$", read("docs/glossary.md"), re.MULTILINE)
    assert headings == sorted(headings, key=str.lower)
    for name in headings:  # each is told in a few short sentences
        entry = read("docs/glossary.md").partition(f"### {name}\n")[2].partition("\n###")[0]
        assert 1 <= len(sentences(entry)) <= 4, name


def lines(text):
    """The lines of a page's commands, continued ones joined, as words."""
    for block in blocks(text, "(?:sh|bash)"):
        for line in block.replace("\\\n", " ").splitlines():
            if re.match("patch-diffusion |python |make ", line):  # not the parts of a script
                yield shlex.split(line, comments=True)


def commands(name):
    """The commands of a page, each as its words."""
    return [words[1:] for words in lines(read(f"docs/{name}.md")) if words[:1] == ["patch-diffusion"]]


def check_command(program, name, *arguments):
    """Raise Wrong or AssertionError if a command of this project has no such name or options."""
    if program == "patch-diffusion":
        assert name in VERBS
        check_arguments(arguments, options_of(name))
    elif program == "python" and name.startswith("benchmarks/"):
        check_arguments(arguments, script_options(ROOT / name))


TERMS = [
    *("diffusion model", "patch", "denoiser", "noise level", "batch", "learning rate", "held-out images", "loss"),
    *("held-out loss", "checkpoint", "guidance", "latent", "preset", "seed", "frechet distance", "near copy", "sample"),
]
"""Terms of the field that a reader may not know."""


def unexplained(page):
    """Yield the terms that a page uses before it links to them, outside of code."""
    text = re.sub(r"```.*?```|`[^`]*`|^#.*$|!\[[^]]*\]\([^)]*\)", "", read(page), flags=re.DOTALL | re.MULTILINE)
    explained = [found.span() for found in re.finditer(r"\[[^]]+\]\([^)]*\)", text)]
    for term in TERMS:
        used = re.search(rf"\b{term}(s|es)?\b", text, re.IGNORECASE)
        if used and not any(start <= used.start() < end for start, end in explained):
            yield term


@pytest.mark.parametrize("page", ["README.md", "docs/start.md"])
def test_terms_are_explained_where_they_are_first_used(page):
    assert list(unexplained(page)) == []


@pytest.mark.parametrize("page", PLAIN)
def test_commands_have_names_and_options_that_are_there(page):
    for words in lines(read(page)):
        if len(words) > 1:
            check_command(*words)


@pytest.mark.parametrize(
    "command",
    [
        "patch-diffusion evaluat runs",
        "patch-diffusion evaluate runs --pair x",
        "python benchmarks/savings.py",
        "python benchmarks/saving.py --sides 3",
        "python benchmarks/evidence/kinds.py --flop 3",
    ],
)
def test_commands_that_do_not_exist_are_found(command):
    with pytest.raises((AssertionError, FileNotFoundError, Wrong)):
        check_command(*command.split())


def without_command(text):
    """The rows of results whose first cell is no comment above commands, and that link to no page that has them."""
    for section in text.split("\n## ")[1:]:
        told = set(re.findall(r"^# (.*)\n\w", "\n".join(blocks(section, "sh")), re.MULTILINE))
        for row in re.findall(r"^\| .*", section, re.MULTILINE)[1:]:
            label = row.split("|")[1].strip()
            if label not in told and not re.search(r"\((\.\./LOG\.md#[\w-]+|evidence\.md)\)", row):
                yield label


def without_entry(text):
    """Mentions of the log of experiments, for a claim, that do not say which entry."""
    return re.findall(r"\([^()\n]*\[[^]]*\]\((?:\.\./)?LOG\.md\)|command in \[[^]]*\]\((?:\.\./)?LOG\.md\)", text)


def test_every_result_has_its_command():
    text = read("docs/performance.md")
    assert len(re.findall(r"results/[\w-]+\.json", text)) > 20
    assert list(without_command(text)) == []
    assert {page: found for page in PLAIN if (found := without_entry(read(page)))} == {}


def without_preset(text):
    """The trainings whose network would depend on the machine and on the version."""
    return [
        shlex.join(words) for words in lines(text) if words[1:2] in (["train"], ["race"]) and "--preset" not in words
    ]


def test_commands_of_results_say_which_network_they_train():
    measured = read("docs/performance.md").partition("## Time to the loss")[2]
    assert len([words for words in lines(measured) if words[1] in ("train", "race")]) == 11
    assert without_preset(measured) == []
    assert without_preset(read("docs/examples.md")) == []
    assert len(without_preset(measured.replace("--preset small ", "", 2))) == 2


def test_the_law_of_size_is_told_as_it_is():
    operations = [knot.operations for knot in KNOTS if knot.measured]
    told = read("docs/settings.md").partition("## The law of size")[2].partition("\n## ")[0]
    for number in (operations[0], operations[-1], KNOTS[-1].operations, operations[-1] * 32 * 32 / PIXELS):
        assert re.search(rf"\b{re.escape(f'{number:g}'.replace('+', ''))}\b", told), number


def test_commands_of_the_entries_that_pages_link_to_are_there():
    linked = {anchor for page in PLAIN for anchor in re.findall(r"LOG\.md#([\w-]+)", read(page))}
    checked = 0
    for entry in re.split("^## ", read("LOG.md"), flags=re.MULTILINE)[1:]:
        anchor = re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", entry.partition("\n")[0].lower()))
        for text in re.findall(r"`([^`]+)`", entry) if anchor in linked else ():
            first, *rest = shlex.split(re.sub(r"(?<=--)\S+", lambda name: name[0].replace("_", "-"), text))
            if rest and first in VERBS:
                check_command("patch-diffusion", first, *rest)
            elif rest and first.startswith("benchmarks/"):
                check_command("python", first, *rest)
            else:
                continue
            checked += 1
    assert checked > 4


def test_results_without_a_command_are_found():
    good = "# A\n\n## B\n\n| what | result |\n|---|---|\n| speed | 2 |\n\n```sh\n# speed\nmake x\n```\n"
    assert list(without_command(good)) == []
    assert list(without_command(good.replace("make x\n", ""))) == ["speed"]
    assert list(without_command(good.replace("| 2 |", "| 2 [a](../LOG.md#b) |").replace("# speed", "# s"))) == []
    assert without_entry("2 % ([LOG.md](../LOG.md)), the command in [LOG.md](LOG.md)") and not without_entry(
        "2 % ([a](../LOG.md#b)). All is in [LOG.md](LOG.md)"
    )


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with photos of two sizes."""
    random = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for index in range(24):
        small = Image.fromarray(random.integers(0, 256, (3, 3, 3), dtype=np.uint8))
        small.resize(((70, 80), (90, 64))[index % 2]).save(tmp_path / "photos" / f"{index}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shortened(arguments):
    """The same command with a budget and a network that suit a test."""
    line = shlex.join(arguments)
    budget = r"--minutes \d+"
    if arguments[0] == "inspect":
        return [*arguments, "--no-forecast"]
    if arguments[0] == "train":
        line = re.sub(budget, "", line).replace("--preset digits", "").replace("--watch.metrics memorization", "")
        line = line if "--held-out" in line else f"{line} --held-out 0"
        return shlex.split(f"{line} --steps 2 --checkpoints 1 {TINY}")
    if arguments[0] == "evaluate":
        return shlex.split(f"{line} --samples 4 --steps 2")
    line = re.sub(r"--seeds \S+", "--seeds 0-1", line)
    return shlex.split(re.sub(r"--steps \d+", "", line) + ("" if arguments[0] != "sample" else " --steps 3"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["start", "small-data"])
def test_the_commands_work(name, here, capsys):
    done = [shortened(arguments) for arguments in commands(name)]
    for arguments in dict.fromkeys(map(tuple, done)):
        assert main([*arguments]) == 0, (arguments, capsys.readouterr().err)
    if name == "start":
        assert (here / "grid.png").exists() and (here / "runs" / "digits" / "report.html").exists()


@pytest.mark.slow
def test_the_commands_of_sampling_work(here, capsys):
    train = shlex.join(shortened(["train", "digits", "--out", "runs/digits", "--minutes", "1"]))
    guides = "--steps 4 --checkpoints 2 --ema.lengths 0.05 0.1"
    assert main(shlex.split(train.replace("--steps 2 --checkpoints 1", guides))) == 0
    for arguments in commands("sampling"):
        assert main(shortened(arguments)) == 0, (arguments, capsys.readouterr().err)
    written = {path.name for path in Path("pictures").iterdir()}
    (shown,) = blocks(read("docs/sampling.md"), "json")
    assert {"000000.png", "000001.png", "samples.json"} <= written
    names = set(re.findall(r'"(\w+)":', shown))
    assert names == set(re.findall(r'"(\w+)":', Path("pictures/samples.json").read_text()))


@pytest.mark.slow
def test_the_code_works(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    found = blocks(read("docs/python.md"), "python")
    assert len(found) == 8
    for number, code in enumerate(found):
        for written, short in SHORTER.items():
            code = code.replace(written, short)
        exec(compile(code, f"python.md, block {number + 1}", "exec"), {"__name__": "page"})
    assert "64 (16, 16) 1 4" in capsys.readouterr().out
    assert {path.name for path in islice(Path("runs").iterdir(), 9)} == {"mine", "from-config", "classes", "robust"}
