import gzip
import io
import json
import os
import re
import sys
import tarfile

import numpy as np
import pytest

import patch_diffusion as pd
from image_files import encoded, own_cache, random_pictures, refusal, to_picture, write_shard  # noqa: F401
from needs import need
from patch_diffusion.data.files import shards

PICTURES = random_pictures(num=12)


def samples(start, stop, label=lambda index: ("cls", str(PICTURES.labels[index]))):
    """Members of a shard: a picture and its label for each sample."""
    for index in range(start, stop):
        yield f"{index:03d}.png", encoded(PICTURES.pixels[index])
        if label is not None:
            ending, content = label(index)
            yield f"{index:03d}.{ending}", content.encode()


@pytest.fixture
def folder(tmp_path):
    """Three shards of four samples."""
    for number in range(3):
        write_shard(tmp_path / "shards" / f"s-{number:02d}.tar", samples(4 * number, 4 * number + 4))
    return tmp_path / "shards"


@pytest.mark.parametrize("pattern", ["*.tar", "s-{00..02}.tar", "s-{00,01,02}.tar", "s-0{0..2}.tar", "s-??.tar"])
def test_shards_by_a_pattern(folder, pattern):
    images = pd.open_images(f"wds:{folder}/{pattern}")
    assert np.array_equal(images.pixels.numpy(), PICTURES.pixels)
    assert np.array_equal(images.labels.numpy(), PICTURES.labels)


def test_a_pattern_relative_to_where_one_is(folder, monkeypatch):
    monkeypatch.chdir(folder)
    for pattern in ("*.tar", "./*.tar", "../shards/*.tar"):
        assert len(pd.open_images(f"wds:{pattern}")) == 12
    assert len(pd.open_images("wds:s-{01..02}.tar")) == 8


def test_what_webdataset_writes(tmp_path):
    webdataset = need("webdataset")
    with webdataset.ShardWriter(str(tmp_path / "s-%02d.tar"), maxcount=5, verbose=0) as writer:
        for index, (pixels, label) in enumerate(zip(PICTURES.pixels, PICTURES.labels, strict=True)):
            writer.write({"__key__": f"{index:03d}", "png": to_picture(pixels), "cls": int(label)})
    images = pd.open_images(f"wds:{tmp_path}/*.tar")
    assert np.array_equal(images.pixels.numpy(), PICTURES.pixels)
    assert np.array_equal(images.labels.numpy(), PICTURES.labels)


def test_labels_of_json(tmp_path):
    def label(index):
        return "json", json.dumps({"label": int(PICTURES.labels[index]), "age": index, "kind": f"k{index % 2}"})

    path = f"wds:{write_shard(tmp_path / 'a.tar', samples(0, 12, label))}"
    assert np.array_equal(pd.open_images(path).labels.numpy(), PICTURES.labels)
    assert pd.open_images(path, labels="age").labels.tolist() == list(range(12))
    images = pd.open_images(path, labels="kind")
    assert images.class_names == ("k0", "k1") and images.labels.tolist() == [0, 1] * 6
    assert pd.open_images(path, classes=False).labels is None
    assert "has no labels: they are a field 'size' of .json" in refusal(path, labels="size")


def test_labels_that_are_words(tmp_path):
    path = write_shard(tmp_path / "a.tar", samples(0, 4, lambda index: ("cls", "dog\n" if index else "cat")))
    images = pd.open_images(f"wds:{path}")
    assert images.class_names == ("cat", "dog") and images.labels.tolist() == [0, 1, 1, 1]


def test_no_labels(tmp_path):
    path = write_shard(tmp_path / "a.tar", samples(0, 4, None))
    assert pd.open_images(f"wds:{path}").labels is None
    assert "has no labels: they are .cls or a field 'label' of .json" in refusal(f"wds:{path}", classes=True)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (lambda index: ("cls" if index != 2 else "txt", "1"), "1 of 4 images have no label (first: a.tar/002.png)"),
        (lambda index: ("cls", "1" if index else "cat"), "1 is no label beside 'cat' (first: a.tar/001.png)"),
        (lambda index: ("cls", "-1"), "the label of a.tar/000.png is -1, and class numbers are 0 or more"),
        (lambda index: ("json", "{"), "a.tar/000.json is damaged: "),
        (lambda index: ("json", '{"label": [1, 2]}'), "[1, 2] is no label beside [1, 2] (first: a.tar/000.png)"),
    ],
)
def test_labels_that_cannot_be_used(tmp_path, label, message):
    path = write_shard(tmp_path / "a.tar", samples(0, 4, label))
    for _ in range(2):
        assert message in refusal(f"wds:{path}")
    if "damaged" not in message:
        assert pd.open_images(f"wds:{path}", classes=False).labels is None


def test_several_images_of_one_sample(tmp_path):
    members = [(f"{i}.{view}.png", encoded(PICTURES.pixels[i + j])) for i in range(3) for j, view in enumerate("ab")]
    path = f"wds:{write_shard(tmp_path / 'a.tar', members)}"
    assert "several images of one sample, 0.a.png and 0.b.png: choose an ending with --data.key" in refusal(path)
    assert np.array_equal(pd.open_images(path, key="b.png").pixels.numpy(), PICTURES.pixels[1:4])
    assert refusal(path, key="c.png").endswith("a.tar holds no images that end in .c.png")


@pytest.mark.slow
def test_damaged_shards_are_named(folder):
    path = folder / "s-01.tar"
    whole = path.read_bytes()
    second = whole.index(b"004.cls")
    for content in (
        whole[: second + 100],
        whole[: second + 520],
        whole[:second] + b"x" + whole[second + 1 :],
        whole[:100],
        b"x" * 2000,
        b"",
    ):
        path.write_bytes(content)
        assert refusal(f"wds:{folder}/*.tar").startswith(f"{path} is damaged: ")
    path.write_bytes(gzip.compress(whole))
    assert refusal(f"wds:{folder}/*.tar") == (
        f"{path} is compressed, so that no image in it can be found quickly: gunzip it"
    )


def test_a_damaged_image_is_named_with_its_shard(tmp_path):
    members = [(name, content if name != "003.png" else content[:50]) for name, content in samples(0, 12, None)]
    path = write_shard(tmp_path / "a.tar", members)
    assert (
        "1 of 12 images cannot be used, and training skips none in data of fewer than 100: a.tar/003.png ("
        in refusal(f"wds:{path}")
    )


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("wds:nowhere/*.tar", "there are no shards at nowhere/*.tar"),
        ("wds:{a,b}.tar", "there are no shards at a.tar"),
        ("wds:pipe:cat a.tar", "shards are files on this machine, not pipe:cat a.tar"),
        ("wds:https://example.com/a.tar", "shards are files on this machine"),
        ("wds:", "shards are tar files, as in wds:shards/*.tar, not ''"),
        ("wds:/", "shards are tar files, as in wds:shards/*.tar, not '/'"),
    ],
)
def test_shards_that_are_not_here(source, message):
    assert message in refusal(source)


def test_a_folder_or_an_empty_shard(tmp_path):
    assert f"{tmp_path} is a folder: give the tar files in it, as in wds:{tmp_path}/*.tar" in refusal(f"wds:{tmp_path}")
    path = write_shard(tmp_path / "shards" / "a.tar", [("a.txt", b"")])
    assert refusal(f"wds:{path}") == f"wds:{path} holds no images"
    assert f"{path} is a tar of shards: give it as wds:{path}" in refusal(path)
    assert refusal(path.parent) == f"{path.parent} holds no images, only a.tar: give the shards as wds:FOLDER/*.tar"


def test_shards_are_looked_into_once(folder, monkeypatch):
    pd.open_images(f"wds:{folder}/*.tar")
    monkeypatch.setattr(shards, "_index", None)
    images = pd.open_images(f"wds:{folder}/*.tar")
    assert np.array_equal(images.pixels.numpy(), PICTURES.pixels) and images.labels is not None
    assert np.array_equal(pd.open_images(f"wds:{folder}/*.tar", resolution=6).labels.numpy(), PICTURES.labels)
    with pytest.raises(TypeError, match="NoneType"):
        pd.open_images(f"wds:{folder}/*.tar", cache="memory")


def test_a_shard_that_changed_is_read_anew(folder):
    pd.open_images(f"wds:{folder}/*.tar")
    write_shard(folder / "s-01.tar", samples(0, 4))
    images = pd.open_images(f"wds:{folder}/*.tar")
    assert np.array_equal(images.pixels[4:8].numpy(), PICTURES.pixels[:4])


def test_no_library_is_needed(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "webdataset", None)
    assert len(pd.open_images(f"wds:{folder}/*.tar")) == 12


def test_files_without_an_ending_are_no_images(tmp_path):
    members = [("README", b"about these images"), *samples(0, 3)]
    assert len(pd.open_images(f"wds:{write_shard(tmp_path / 'a.tar', members)}")) == 3


def test_names_that_are_not_utf_8(tmp_path):
    path = tmp_path / "latin.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as shard:
        for name, content in (("caf\xe9.png", encoded(PICTURES.pixels[0])), ("tee.png", b"no picture")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            shard.addfile(member, io.BytesIO(content))
    assert "latin.tar/tee.png" in refusal(f"wds:{path}")
    (tmp_path / "latin.tar").unlink()
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as shard:
        member = tarfile.TarInfo("caf\xe9.png")
        member.size = len(encoded(PICTURES.pixels[0]))
        shard.addfile(member, io.BytesIO(encoded(PICTURES.pixels[0])))
    assert len(pd.open_images(f"wds:{path}")) == 1


def altered(path, alter):
    """A shard whose first header is altered, with its checksum."""
    content = bytearray(write_shard(path, samples(0, 4)).read_bytes())
    alter(content)
    content[148:156] = b"%06o\0 " % (sum(content[:148]) + 8 * 32 + sum(content[156:512]))
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (b"\x80" + b"\xff" * 11, "000.png has a size of 309,485,009,821,345,068,724,781,055 bytes"),
        (b"\x80" + b"\0" * 7 + b"\x7f\xff\xff\xff", "000.png has a size of 2,147,483,647 bytes"),
        (b"\xff" * 10 + b"\xfe\0", "000.png has a size of -512 bytes"),
    ],
)
def test_sizes_that_no_file_has(tmp_path, size, message):
    path = altered(tmp_path / "a.tar", lambda content: content.__setitem__(slice(124, 136), size))
    assert refusal(f"wds:{path}") == f"{path} is damaged: {message}"


def test_files_without_their_zeros(tmp_path):
    def alter(content):
        content[156:157], content[483:495] = b"S", b"00000000512\0"

    path = altered(tmp_path / "a.tar", alter)
    assert refusal(f"wds:{path}") == f"{path} is damaged: 000.png is stored without its zeros, which is not read"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, "a.tar/000.json is nested too deeply to be read"),
        (b" " * (2**24 + 1), "a.tar/000.json has 16,777,217 bytes, too many for what is known of one image"),
    ],
)
def test_what_is_no_label_of_one_image(tmp_path, content, message):
    path = write_shard(tmp_path / "a.tar", [*samples(0, 2, None), ("000.json", content)])
    assert refusal(f"wds:{path}").endswith(message)


def test_patterns_of_very_many_names_are_not_expanded(folder, monkeypatch):
    for pattern in ("{0..9999999999}.tar", "{0..9}" * 12 + ".tar"):
        assert refusal(f"wds:{pattern}").startswith("there are no shards at 0")
    assert refusal(f"wds:{'9' * 300}" + "{0..1}").endswith("File name too long")
    monkeypatch.setattr(shards, "_MOST_NAMES", 100)
    assert "names more than 100 shards: give their folder" in refusal(f"wds:{folder}/s-00.tar" + "{,}" * 40)


def test_hidden_files_are_left_out_as_they_are_of_a_folder(tmp_path):
    names = ["._{}", "__MACOSX/{}", "./.thumbs/{}"]
    whole = write_shard(tmp_path / "whole.tar", samples(0, 12))
    mixed = [(name, content) for each, content in samples(0, 12) for name, content in [
        *((hidden.format(each), b"of a Mac") for hidden in names), (f"./{each}", content)
    ]]  # fmt: skip
    of_mac = write_shard(tmp_path / "mac.tar", mixed)
    images, plain = pd.open_images(f"wds:{of_mac}"), pd.open_images(f"wds:{whole}")
    assert np.array_equal(images.pixels.numpy(), plain.pixels.numpy()) and np.array_equal(images.labels, plain.labels)
    assert not any("skipped" in note for note in images.notes)


def test_an_index_of_an_earlier_version_with_hidden_files_is_made_anew(tmp_path, monkeypatch):
    path = write_shard(tmp_path / "a.tar", [("._x.png", encoded(PICTURES.pixels[0])), *samples(0, 4, None)])
    with monkeypatch.context() as patch:
        patch.setattr(shards, "HIDDEN", re.compile("nothing is so"))
        assert len(pd.open_images(f"wds:{path}")) == 5
    assert len(pd.open_images(f"wds:{path}")) == 4


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes in folders")
def test_a_pipe_is_not_waited_for(tmp_path):
    for name in ("a.tar", "a.zip", "a.h5"):
        os.mkfifo(tmp_path / name)
        source = f"{'wds:' if name.endswith('tar') else ''}{tmp_path / name}"
        assert "is no file that can be read twice" in refusal(source)
