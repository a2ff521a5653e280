"""Names in the documentation: what stands in single backticks is there, under this name.

Single backticks are for things of this project: names of the code, files, commands, options and their values.
Double backticks and code blocks are for everything else, such as other programs: nothing in them is looked up.
"""

import ast
import difflib
import importlib.util
import re
import shlex
import types
import typing
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path

import pytest

from patch_diffusion.cli import VERBS
from patch_diffusion.config import Config

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "patch_diffusion"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md", "benchmarks/paper.md")),
    *(ROOT / "docs").glob("*.md"),
]
SCRIPTS = sorted(path for folder in ("benchmarks", "examples", "docs") for path in (ROOT / folder).rglob("*.py"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
SETTINGS = (ROOT / "pyproject.toml").read_text(encoding="utf-8")

OTHERS = {
    "mean.png": "edit writes it under the name mean and the suffix of the other pictures",
    "step-N.damaged": "a checkpoint is set aside under its own name and a reason",
}
"""Names that the package puts together, each with the way."""


class Wrong(Exception):
    """A name that is not there, and the nearest of those that are."""

    def __init__(self, name, known):
        near = difflib.get_close_matches(name, known, 1, 0.5)
        super().__init__(f"there is no '{name}'" + (f", the nearest name is '{near[0]}'" if near else ""))


def look_up(name, known):
    if name not in known:
        raise Wrong(name, known)


class Source:
    """All names that the package defines or uses, read from its text, which is quicker than to import it."""

    def __init__(self):
        self.modules = {}  # the functions and classes of each
        self.words = set()  # names, but for local variables, and strings of one word with their parts
        self.patterns = set()  # strings that are put together, such as step-{number}
        for path in PACKAGE.rglob("*.py"):
            parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
            tree = ast.parse(path.read_text(encoding="utf-8"))
            self.modules[".".join(parts).removesuffix(".__init__")] = {
                node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)
            }
            self.words.update(parts)
            for node in ast.walk(tree):
                self._add(node)
        self.definitions = {name: node for names in self.modules.values() for name, node in names.items()}

    def _add(self, node):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.Attribute(attr=name) | ast.alias(name=name):
                self.words.add(name)
            case ast.arg(arg=name) | ast.keyword(arg=str(name)) | ast.AnnAssign(target=ast.Name(id=name)):
                self.words.add(name)
            case ast.Module(body=body):
                targets = [target for each in body if isinstance(each, ast.Assign) for target in each.targets]
                self.words.update(each.id for name in targets for each in ast.walk(name) if isinstance(each, ast.Name))
            case ast.Constant(value=str(text)) if text and not re.search(r"\s", text):
                self.words.update({text, *text.split("/")})
            case ast.JoinedStr(values=values):
                parts = [re.escape(str(part.value)) if isinstance(part, ast.Constant) else ".+" for part in values]
                self.patterns.update(part for part in "".join(parts).split("/") if re.match(r"\S*[a-z_-]{4}\S*$", part))

    def members(self, kind):
        """Methods, fields and attributes of a class, and of those of the package that it extends."""
        found = set()
        for node in ast.walk(kind):
            match node:
                case ast.FunctionDef(name=name) | ast.AnnAssign(target=ast.Name(id=name)):
                    found.add(name)
                case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                    found.add(name)
        bases = (self.definitions.get(ast.unparse(base).rpartition(".")[2]) for base in kind.bases)
        return found.union(*(self.members(base) for base in bases if isinstance(base, ast.ClassDef)))

    def parameters(self, called):
        """The names that a call of a class or function may give."""
        if isinstance(called, ast.ClassDef):
            made = [node for node in called.body if getattr(node, "name", "") == "__init__"]
            return self.parameters(made[0]) if made else self.members(called)
        given = called.args
        found = {each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)}
        options = given.kwarg and re.fullmatch(r"Unpack\[(\w+)\]", ast.unparse(given.kwarg.annotation))
        group = self.definitions.get(options[1]) if options else None
        return found | (self.members(group) if group else set())


source = cache(Source)


@cache
def extras():
    """The extras of the package."""
    table = SETTINGS.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    return set(re.findall(r"^([\w-]+) = \[", table, re.MULTILINE))


@cache
def libraries():
    return set(re.findall(r'"([\w-]+)[\[>]', SETTINGS)) - {"patch_diffusion"}


@cache
def words():
    return source().words | VERBS.keys() | extras() | libraries()


def options(kind, prefix=""):
    """The options of a dataclass as the command line has them, each with the type of its value."""
    hints, found = typing.get_type_hints(kind, include_extras=True), {}
    for field in fields(kind):
        hint = hints[field.name]
        notes = [note for note in getattr(hint, "__metadata__", ()) if hasattr(note, "aliases")]
        hint = getattr(hint, "__origin__", hint) if hasattr(hint, "__metadata__") else hint
        name = notes[0].name if notes and notes[0].name is not None else field.name
        name = f"{prefix}{name}".replace("_", "-")
        if is_dataclass(hint):
            found |= options(hint, f"{name}." if name else "")
            continue
        aliases = (notes[0].aliases or ()) if notes else ()
        off = re.sub(r"([\w-]+)$", r"no-\1", name) if hint is bool else name
        found |= dict.fromkeys((f"--{name}", f"--{off}", *aliases), hint)
    return found


@cache
def options_of(verb):
    return {"--help": bool, **options(VERBS[verb])}


@cache
def script_options(path):
    """Those of a script, whose values may be anything; the questions of the evidence share theirs."""
    text = path.read_text(encoding="utf-8")
    if re.search("^from trials import", text, re.MULTILINE):
        text += (path.parent / "trials.py").read_text(encoding="utf-8")
    names = re.findall(r'add_argument\(\s*"--([\w-]+)"|^    ([a-z]\w+): \w+ = ', text, re.MULTILINE)
    return {"--" + "".join(name).replace("_", "-"): str for name in names}


@cache
def all_options():
    """Those of all verbs, and those of the scripts."""
    found = {name: hint for path in SCRIPTS for name, hint in script_options(path).items()}
    return found | {name: hint for verb in VERBS for name, hint in options_of(verb).items()}


@cache
def config_options():
    return {name[2:].replace("-", "_"): hint for name, hint in options(Config).items()}


def choices(hint):
    """The words that a type allows; None where they are not all known."""
    if typing.get_origin(hint) is typing.Annotated:
        return choices(typing.get_args(hint)[0])
    if typing.get_origin(hint) is typing.Literal:
        return {str(value) for value in typing.get_args(hint)}
    if typing.get_origin(hint) in (typing.Union, types.UnionType, tuple):
        found = [choices(each) for each in typing.get_args(hint)]
        return None if None in found else set().union(*found)
    return None if hint in (str, Path) else set()


def check_value(value, hint):
    if re.fullmatch(r"[a-z][a-z0-9_-]*", value) and (known := choices(hint)) is not None:
        look_up(value, known)


def check_option(text):
    """An option as in a config: group.name, with a value or without."""
    name, _, value = text.replace("=", " ", 1).partition(" ")
    look_up(name, config_options())
    check_value(value, config_options()[name])


def check_arguments(arguments, known):
    """The options of a command line, and those of their values that are words."""
    hint = str
    for argument in arguments:
        value = argument
        if argument.startswith("--"):
            name, _, value = argument.partition("=")
            if not any(option.startswith(f"{name}.") for option in known):  # a group, such as --data.augment
                look_up(name, known)
            hint = known.get(name, str)
        if re.search(r"^[a-z_.]+=| ", value):  # the options of an arm
            for part in re.findall(r"[a-z_]+\.[a-z_]+=\S+", value):
                check_option(part)
        else:
            check_value(value, hint)


def check_dotted(text):
    """A name of the code: of the package, a module, a class and its member, a library, or any one word."""
    public = importlib.import_module("patch_diffusion").__all__
    first, _, rest = text.partition(".")
    owner, _, member = text.rpartition(".")
    if not rest:
        look_up(text, words())
    elif first == "pd":
        look_up(rest, public)
    elif first in libraries():
        check_library(text)
    elif owner in source().modules:
        look_up(text, {f"{owner}.{name}" for name in source().modules[owner]} | source().modules.keys())
    elif isinstance(source().definitions.get(owner), ast.ClassDef):
        look_up(member, source().members(source().definitions[owner]))
    else:
        look_up(text, words() | config_options().keys() | source().modules.keys())


def check_library(text):
    module, *rest = text.split(".")
    found = pytest.importorskip(module)
    for name in rest:
        inner = f"{found.__name__}.{name}"
        if not hasattr(found, name) and importlib.util.find_spec(inner) is None:
            raise Wrong(name, dir(found))
        if inner != text:
            found = getattr(found, name, None) or importlib.import_module(inner)


def check_call(text):
    """Python: what is called is there, and has the parameters that are named."""
    for node in ast.walk(ast.parse(text, mode="eval")):
        if isinstance(node, ast.Call):
            check_dotted(ast.unparse(node.func))
            called = source().definitions.get(ast.unparse(node.func).rpartition(".")[2])
            for keyword in node.keywords if called else ():
                look_up(keyword.arg, source().parameters(called))


@cache
def files():
    """Files and folders of the package and beside it, by name."""
    found = {}
    for path in (*PACKAGE.rglob("*"), *ROOT.glob("*"), *ROOT.glob("*/*"), *ROOT.glob("*/*/*.*")):
        found.setdefault(path.name, []).append(path)
    return found


def check_path(text, folders):
    """A file or folder: of the checkout, of the package, or as a run, a race, an export or make writes it."""
    name = text.strip("/")
    made = text.startswith((".venv", "build/")) and text in MAKEFILE
    if made or (ROOT / text).exists() or (PACKAGE / text).exists():
        return
    if found := files().get(name):
        if folders and not any(path.is_relative_to(folder) for path in found for folder in folders):
            raise Wrong(text, [path.name for folder in folders for path in folder.rglob("*.py")])
        return
    for part in name.removeprefix(".").split("/"):
        if not re.fullmatch("[A-Z]+", part) and not any(re.fullmatch(each, part) for each in source().patterns):
            look_up(part, source().words | files().keys())


def check(text, folders=()):
    """Raise Wrong if the text of a pair of backticks names what is not there.

    ``folders``: those that its row of a table is about, in which files without a folder have to be.
    """
    text = " ".join(text.split()).removeprefix("$")
    first, *others = shlex.split(text.removeprefix("patch-diffusion ")) if "'(" not in text else [text]
    if text in OTHERS or text == "patch-diffusion":
        return
    if text.startswith("patch-diffusion ") or (first in VERBS and others):
        look_up(first, VERBS)
        check_arguments(others, options_of(first))
    elif first.startswith("--"):
        check_arguments([first, *others], all_options())
    elif first in ("python", *(path.name for path in SCRIPTS)):
        check_path(others[0] if first == "python" else first, ())
        check_arguments(others, all_options())
    elif first == "make" and others:
        look_up(others[0], re.findall(r"^([\w-]+):", MAKEFILE, re.MULTILINE))
    elif extra := re.search(r"\bpatch_diffusion\[(.*)\]", text):
        for name in extra[1].split(","):
            look_up(name, extras())
    elif re.search(" -?> ", text):  # a chain of names
        for name in re.findall(r"\w[\w.]*", text):
            check_dotted(name)
    elif re.fullmatch(r"[\w.]+\(.*\)", text):
        check_call(text)
    elif re.fullmatch(r"[a-z_]+\.[a-z_]+[ =]\S+( [a-z_.]+=\S+)*", text):
        for part in re.findall(r"\S+=\S+", text) or [text]:
            check_option(part)
    elif found := re.fullmatch(r"""(\w+)=(?:["'](\w+)["']|\w*)""", text):  # a keyword, with a value or without
        for name in filter(None, found.groups()):
            look_up(name, source().words)
    elif found := re.fullmatch(r"([a-z]+):\S+", text):  # a kind and what it is given, such as hf:NAME
        look_up(found[1], {word.removesuffix(":") for word in source().words})
    elif (re.search(r"[/*]|^\.|\.py$", text) or text in files()) and (text not in source().words or folders):
        check_path(text, folders)
    else:
        check_dotted(text)


def names(page):
    """The texts in single backticks of a page, each with its line and the folders that its row of a table is about."""
    text = page.read_text(encoding="utf-8")
    for found in re.finditer(r"^make [\w-]+", text, re.MULTILINE):  # in a block
        yield text.count("\n", 0, found.start()) + 1, found[0], ()
    text = re.sub(r"^ *```.*?^ *```", lambda block: "\n" * block[0].count("\n"), text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"``.+?``", "", text)
    for found in re.finditer(r"`([^`]+)`", text):
        line = text.count("\n", 0, found.start())
        cell = re.match(r"\| ([^|]+) \|", text.splitlines()[line])
        folders = [PACKAGE / name for name in re.findall(r"`([\w/]+/)`", cell[1])] if cell else []
        yield line + 1, found[1], folders


def test_names_in_backticks_are_there():
    wrong = []
    for page in PAGES:
        for line, text, folders in names(page):
            try:
                check(text, folders)
            except (Wrong, ValueError, SyntaxError) as error:
                wrong.append(f"{page.relative_to(ROOT)}:{line}: `{text}`: {error}")
    assert not wrong, "\n".join(wrong)


def test_the_architecture_has_the_floors_that_lint_checks_and_every_folder():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = SETTINGS.partition("layers = [")[2].partition("\n]")[0]
    checked = [set(re.findall(r"patch_diffusion\.(\w+)", line)) for line in table.strip().splitlines()]
    chain = re.search(r"`(cli >[^`]*)`", text)
    assert chain and [set(re.findall(r"\w+", floor)) for floor in chain[1].split(">")] == checked
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders <= set(re.findall(r"^\| `(\w+)/` \|", text, re.MULTILINE))


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("patch_cornerz", "patch_corners"),
        ("pd.generates", "generate"),
        ("Trainer.in_lap", "in_laps"),
        ("patch_diffusion.data.augment.Augments", "patch_diffusion.data.augment.Augment"),
        ("torch.nn.Modul", "Module"),
        ("pd.Trainer(images, help_out=0.5)", "held_out"),
        ("patches/coord.py", "coords.py"),
        ("docs/word.py", "words.py"),
        ("chekpoints/step-NNNNNNNN/", "checkpoints"),
        ("smaples.json", "samples.json"),
        ("make tests", "test"),
        ("patch-diffusion smaple runs", "sample"),
        ("sample --seed 0-3", "--seeds"),
        ("--patches.growht linear", "--patches.growth"),
        ("--patches.growth linar", "linear"),
        ("data.held_ouf", "data.held_out"),
        ("noise.weight learnt", "learned"),
        ("race CATS.zip --arm half 'patches.hole=1'", "patches.whole"),
        ("python benchmarks/savings.py", "saving.py"),
        ("pip install 'patch_diffusion[tracks]'", "track"),
        ("patch_diffusion[datas]", "data"),
        ("sigma_minimum=", "sigma_min"),
        ("SampleOrder -> Feeds", "Feed"),
    ],
)
def test_what_is_misspelt_is_found_with_the_nearest_name(text, nearest):
    with pytest.raises(Wrong, match=f"the nearest name is '{re.escape(nearest)}'$"):
        check(text)


def test_a_file_is_in_the_folder_of_its_row():
    check("options.py", [PACKAGE / "training"])
    with pytest.raises(Wrong, match="'coords.py'"):
        check("coords.py", [PACKAGE / "denoise"])
