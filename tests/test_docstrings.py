"""The docstrings: their examples run, and no public name is without one."""

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
from itertools import pairwise
from pathlib import Path

import pytest

import patch_diffusion as pd
import test_reference

MODULES = [info.name for info in pkgutil.walk_packages(pd.__path__, "patch_diffusion.") if "__main__" not in info.name]
PUBLIC = [name for name in pd.__all__ if name != "__version__"]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with what the examples take as given: a run on digits, and a published network."""
    folder = tmp_path_factory.mktemp("examples")
    images = pd.open_images("digits")
    network = pd.UNet(1, width=8, multipliers=(1,), blocks=1, num_classes=10)
    trainer = pd.Trainer(pd.Denoiser(network), images, out=folder / "runs/digits", batch=1, samples=0, show=False)
    trainer.fit(steps=1)
    published = test_reference.make_unet(num_classes=10)
    test_reference.write(folder / "edm-cifar10-32x32-cond-vp.pkl", published, "VPPrecond", resolution=32)
    return folder


@pytest.fixture(autouse=True)
def here(work, monkeypatch):
    monkeypatch.chdir(work)


def names():
    return {**{public: getattr(pd, public) for public in pd.__all__}, "torch": importlib.import_module("torch")}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["patch_diffusion", *MODULES])
def test_examples(name):
    result = doctest.testmod(importlib.import_module(name), extraglobs=names())
    assert result.failed == 0


def docstring_of(name):
    """That of a public name; of data, the string below it."""
    value = getattr(pd, name)
    if callable(value):
        return value.__doc__ or ""
    module = importlib.import_module(pd._MODULE_OF[name])
    assert module.__file__ is not None
    body = ast.parse(Path(module.__file__).read_text(encoding="utf-8")).body
    for statement, after in pairwise(body):
        target = getattr(statement, "target", None) or next(iter(getattr(statement, "targets", [])), None)
        if (
            getattr(target, "id", None) == name
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
        ):
            return str(after.value.value)
    return ""


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_has_a_docstring_with_an_example(name):
    text = docstring_of(name)
    examples = doctest.DocTestParser().get_examples(text)
    assert not text.startswith(f"{name}(") and len(text.splitlines()[0]) <= 120  # a dataclass' own would be a signature
    assert any(name.lower() in example.source.lower() for example in examples), f"no example of {name}"


@pytest.mark.parametrize("name", [name for name in PUBLIC if not callable(getattr(pd, name))])
def test_examples_of_data(name):
    test = doctest.DocTestParser().get_doctest(docstring_of(name), names(), name, None, 0)
    assert doctest.DocTestRunner().run(test).failed == 0


@pytest.mark.parametrize("name", [name for name in PUBLIC if callable(getattr(pd, name))])
def test_arguments_that_are_described_are_there(name):
    """And none of them is forgotten, where they are described at all."""
    text = inspect.getdoc(getattr(pd, name)) or ""
    found = re.search(r"^Args:\n((?:(?:    .*)?\n)+)", text, re.MULTILINE)
    if found is None:
        return
    described = {
        word for line in re.findall(r"^    (\w[\w, ]*):", found[1], re.MULTILINE) for word in re.split(", | and ", line)
    }
    described -= {"the other options"}  # those of Trainer, which Config describes
    taken = set(inspect.signature(getattr(pd, name)).parameters)
    assert described <= taken, described - taken
    assert name == "Trainer" or taken <= described, taken - described
