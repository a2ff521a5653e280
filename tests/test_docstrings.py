"""The examples in docstrings."""

import doctest
import importlib
import pkgutil

import pytest

import patch_diffusion

MODULES = [
    info.name
    for info in pkgutil.walk_packages(patch_diffusion.__path__, "patch_diffusion.")
    if "__main__" not in info.name
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(name)
    names = {public: getattr(patch_diffusion, public) for public in patch_diffusion.__all__}
    result = doctest.testmod(module, extraglobs={**names, "torch": importlib.import_module("torch")})
    assert result.failed == 0
