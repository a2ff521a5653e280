import inspect
import subprocess
import sys

import pytest

import patch_diffusion as pd


def test_every_public_name_is_there_and_documented():
    for name in pd.__all__:
        value = getattr(pd, name)
        assert isinstance(value, str | dict) or value.__doc__, name


def test_an_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'Unet'"):
        pd.Unet  # noqa: B018  # the access itself is tested  # pyright: ignore[reportAttributeAccessIssue]


def test_importing_the_package_is_quick_because_torch_is_not_imported():
    code = "import sys, patch_diffusion; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("function", [pd.Trainer.__init__, pd.generate, pd.edit, pd.evaluate])
def test_the_largest_functions_take_few_parameters(function):
    assert len(inspect.signature(function).parameters) <= 9


def test_only_the_trainer_takes_keywords_that_its_signature_does_not_name():
    free = set()
    for name in pd.__all__:
        value = getattr(pd, name)
        if callable(value) and value is not pd.InputError:
            parameters = inspect.signature(value).parameters.values()
            if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
                free.add(name)
    assert free == {"Trainer"}
