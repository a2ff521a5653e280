"""The net at the doors through which files of data are opened: whatever a library raises there names the file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from patch_diffusion.errors import InputError
from patch_diffusion.files import read_at_most, user_path

_MOST_BYTES, _MOST_BYTES_PER_IMAGE = 2**28, 2**10
"""The most bytes of a file of labels: 256 MB, and a line of 1 KB more for each image."""


@contextmanager
def damage_named(source: str | Path, is_wrong: str = "is damaged") -> Iterator[None]:
    """Turn what reading a file raises in the with block, of which libraries have many kinds, into an `InputError`.

    Memory that runs out is no fault of the file, and is raised as it is.
    """
    try:
        yield
    except (InputError, MemoryError):
        raise
    except RecursionError:
        raise InputError(f"{source} is nested too deeply to be read") from None
    except Exception as error:
        words = " ".join(str(error).split())[:300] or type(error).__name__
        if any(sign in words for sign in ("pickle", "Pickle", "Object arrays", "Python objects")):
            raise InputError(
                f"{source} holds Python objects, which could run code and are not read: save numbers, of one shape"
            ) from None
        if isinstance(error, OSError) and error.strerror and error.filename is not None:
            raise InputError(f"cannot read {source}: {error.strerror}") from None
        raise InputError(f"{source} {is_wrong}: {words}") from None


def read_table(file: str, num_images: int) -> bytes:
    """Read a CSV of the user's, given by its path; see `read_labels`."""
    with damage_named(file):
        stream = user_path(file).open("rb")
    return read_labels(stream, file, num_images)


def read_labels(stream: IO[bytes], source: str | Path, num_images: int) -> bytes:
    """Read a file of labels to its end, or raise an `InputError` if it has more bytes than labels of images take."""
    most = _MOST_BYTES + _MOST_BYTES_PER_IMAGE * num_images
    with damage_named(source), stream:
        content = read_at_most(stream, most)
    if len(content) > most:
        raise InputError(f"{source} has more than {most / 1e6:,.0f} MB, too many for labels of {num_images:,} images")
    return content
