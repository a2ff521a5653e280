from io import BytesIO

import numpy as np

from patch_diffusion.data.files import small_file_cache as module
from patch_diffusion.data.files.decode import ImageFile
from patch_diffusion.data.files.small_file_cache import SmallFileCache


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
    opened, cache = [], SmallFileCache()
    file = counted(b"abc", opened)
    assert content_of(cache.for_header_pass(7, file)) == b"abc"
    assert content_of(cache.for_decode_pass(7, file)) == b"abc" and len(opened) == 1
    assert content_of(cache.for_decode_pass(7, file)) == b"abc" and len(opened) == 2  # it was let go of
    assert cache.for_decode_pass(8, file) is file


def test_large_files_and_what_finds_no_room_are_opened_twice(monkeypatch):
    monkeypatch.setattr(module, "SMALL", 4)
    monkeypatch.setattr(module, "ROOM", 9)
    opened, cache = [], SmallFileCache()
    for index, content in enumerate([b"12345", b"1234", b"abcd", b"no"]):
        assert content_of(cache.for_header_pass(index, counted(content, opened))) == content
    assert [content_of(cache.for_decode_pass(index, counted(b"", opened))) for index in range(4)] == [
        b"",
        b"1234",
        b"abcd",
        b"",
    ]
    cache.for_header_pass(4, counted(b"now", opened)).open()
    assert content_of(cache.for_decode_pass(4, counted(b"", opened))) == b"now"


def test_arrays_are_not_files():
    array = np.zeros((1, 2, 2))
    cache = SmallFileCache()
    file = ImageFile("a", lambda: array)
    assert cache.for_header_pass(0, file).open() is array and cache.for_decode_pass(0, file) is file
