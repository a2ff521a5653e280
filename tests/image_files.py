"""Pictures in every kind of file, for the tests of the sources."""

import json
import struct
import tarfile
import zipfile
import zlib
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import patch_diffusion as pd


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """An empty cache for each test."""
    folder = tmp_path / "cache of the test"
    monkeypatch.setenv("PATCH_DIFFUSION_CACHE", str(folder))
    return folder


def random_pictures(num=20, size=(8, 12), channels=3, dtype=np.uint8, num_classes=5):
    """``pixels`` (n, c, h, w) and ``labels``, of which all classes have several."""
    random = np.random.default_rng(0)
    largest = np.iinfo(dtype).max
    pixels = random.integers(0, largest, (num, channels, *size), dtype=dtype, endpoint=True)
    return SimpleNamespace(pixels=pixels, labels=np.arange(num) % num_classes)


def to_picture(pixels):
    """A Pillow image of (c, h, w)."""
    return Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def encoded(pixels, kind="PNG"):
    """The bytes of a picture file."""
    stream = BytesIO()
    to_picture(pixels).save(stream, kind)
    return stream.getvalue()


def classes_of(images):
    """The name of the class of each image."""
    names = images.class_names or range(images.num_classes)
    return [names[label] for label in images.labels.tolist()]


def write_folder(folder, pictures, labels=True, ending="png"):
    """Files of ascending names, with their labels in a dataset.json."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, pixels in enumerate(pictures.pixels):
        to_picture(pixels).save(folder / f"{index:05d}.{ending}")
    if labels:
        entries = [[f"{index:05d}.{ending}", int(label)] for index, label in enumerate(pictures.labels)]
        (folder / "dataset.json").write_text(json.dumps({"labels": entries}))
    return folder


def write_zip(path, folder):
    """A zip of a folder."""
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
    return path


def write_shard(path, samples):
    """A tar of ``(name, bytes)``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as shard:
        for name, content in samples:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            shard.addfile(info, BytesIO(content))
    return path


def colour_png_of_16_bits(size=(4, 4)):
    """A PNG that Pillow can read but not write."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width = size
    rows = b"".join(b"\0" + np.full((width, 3), 1000, ">u2").tobytes() for _ in range(height))
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def cut_in_half(path):
    """A file that was not written to its end."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def refusal(*arguments, **options):
    """What `open_images` says when it refuses: one line."""
    with pytest.raises(pd.InputError) as refused:
        pd.open_images(*arguments, **options)
    message = str(refused.value)
    assert "\n" not in message
    return message
