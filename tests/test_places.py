import io
import tarfile
import zipfile

import pytest

from patch_diffusion.data.files.places import plain_members, read_at, stored_content

CONTENTS = {"a/one.png": b"1" * 700, "two.cls": b"", "tre\u0301.json": b"{}" * 512}


def write_tar(tar, format=tarfile.PAX_FORMAT, mtime: float = 1.5, contents=CONTENTS, **attributes):
    with tarfile.open(tar, "w", format=format) as shard:
        folder = tarfile.TarInfo("a")
        folder.type = tarfile.DIRTYPE
        shard.addfile(folder)
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(content), mtime
            member.pax_headers = attributes
            shard.addfile(member, io.BytesIO(content))
    return tar


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_files_of_a_tar(tmp_path, format):
    contents = {name.encode("ascii", "ignore").decode(): content for name, content in CONTENTS.items()}
    path = write_tar(tmp_path / "a.tar", format, contents=contents)
    with tarfile.open(path) as shard:
        expected = [(member.name, member.offset_data, member.size) for member in shard if member.isreg()]
    assert plain_members(path) == expected and len(expected) == 3
    assert {name: read_at(str(path), place, size) for name, place, size in expected} == contents


@pytest.mark.parametrize(
    "odd",
    [
        {"contents": {"long/" * 30 + "name.png": b"1"}},
        {"contents": {"long/" * 30 + "name.png": b"1"}, "format": tarfile.USTAR_FORMAT},
        {"contents": {"long/" * 30 + "name.png": b"1"}, "format": tarfile.GNU_FORMAT},
        {"contents": {"n" * 100: b"1"}},
        {"path": "another.png"},
        {"comment": "more\nthan times"},
    ],
)
def test_tars_that_are_not_plain(tmp_path, odd):
    assert plain_members(write_tar(tmp_path / "a.tar", **odd)) is None


def test_damaged_tars_are_not_plain(tmp_path):
    sound = write_tar(tmp_path / "a.tar", tarfile.USTAR_FORMAT, mtime=0, contents={"a.png": b"1" * 700}).read_bytes()
    found = plain_members(tmp_path / "a.tar")
    assert found is not None
    for index in range(len(sound)):
        (tmp_path / "b.tar").write_bytes(sound[:index] + bytes([sound[index] ^ 1]) + sound[index + 1 :])
        in_file = found[0][1] <= index < found[0][1] + 1024
        after_the_end = index >= found[0][1] + 1024 + 512
        assert (plain_members(tmp_path / "b.tar") == found) == (in_file or after_the_end), index
    for length in range(0, found[0][1] + 1024 + 512, 100):
        (tmp_path / "b.tar").write_bytes(sound[:length])
        assert plain_members(tmp_path / "b.tar") is None


@pytest.mark.parametrize("before", [b"", b"#!/bin/sh\n"])
def test_stored_entries(tmp_path, before):
    path = tmp_path / "a.zip"
    path.write_bytes(before)
    with zipfile.ZipFile(path, "a") as archive:
        for name, content in CONTENTS.items():
            archive.writestr(name, content)
        archive.writestr("packed", b"0" * 100, zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(path) as archive:
        for name, content in CONTENTS.items():
            assert stored_content(str(path), archive.getinfo(name)) == content
        assert stored_content(str(path), archive.getinfo("packed")) is None
        entry = archive.getinfo("a/one.png")
        content = bytearray(path.read_bytes())
        content[content.index(b"1" * 700) + 5] ^= 1
        path.write_bytes(content)
        assert stored_content(str(path), entry) is None
        path.write_bytes(content[: entry.header_offset + 8])
        assert stored_content(str(path), entry) is None
