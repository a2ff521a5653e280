from io import BytesIO

import numpy as np

from patch_diffusion.data.files import small_file_cache as module
from patch_diffusion.data.files.decode import ImageFile
from patch_diffusion.data.files.small_file_cache import Kept


def counted(content, opened):
    def open_file():
        opened.append(content)
        return BytesIO(content)

    return ImageFile("a", open_file)


def content_of(file):
    stream = file.open()
    assert isinstance(stream, BytesIO)
    return stream.read()


def test_a_small_file_is_opened_once():
    opened, kept = [], Kept()
    file = counted(b"abc", opened)
    assert content_of(kept.looked_at(7, file)) == b"abc"
    assert content_of(kept.decoded(7, file)) == b"abc" and len(opened) == 1
    assert content_of(kept.decoded(7, file)) == b"abc" and len(opened) == 2  # it was let go of
    assert kept.decoded(8, file) is file


def test_large_files_and_what_finds_no_room_are_opened_twice(monkeypatch):
    monkeypatch.setattr(module, "SMALL", 4)
    monkeypatch.setattr(module, "ROOM", 9)
    opened, kept = [], Kept()
    for index, content in enumerate([b"12345", b"1234", b"abcd", b"no"]):
        assert content_of(kept.looked_at(index, counted(content, opened))) == content
    assert [content_of(kept.decoded(index, counted(b"", opened))) for index in range(4)] == [
        b"",
        b"1234",
        b"abcd",
        b"",
    ]
    kept.looked_at(4, counted(b"now", opened)).open()
    assert content_of(kept.decoded(4, counted(b"", opened))) == b"now"


def test_arrays_are_not_files():
    array = np.zeros((1, 2, 2))
    kept = Kept()
    file = ImageFile("a", lambda: array)
    assert kept.looked_at(0, file).open() is array and kept.decoded(0, file) is file
