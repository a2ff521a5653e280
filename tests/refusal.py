"""The error of a wrong option, told by the option's name and not by the words of the sentence."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from patch_diffusion.errors import InputError


@contextmanager
def refused(option: str | None, match: str | None = None) -> Iterator[pytest.ExceptionInfo[InputError]]:
    """Check that the with block raises an `InputError` about this option of a config or of `Sampling`."""
    with pytest.raises(InputError, match=match) as caught:
        yield caught
    assert caught.value.option == option
