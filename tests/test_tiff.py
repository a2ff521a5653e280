"""Every kind of TIFF, written by tifffile and compared pixel by pixel."""

import struct
import sys
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

import patch_diffusion as pd
from image_files import own_cache, refusal, write_shard, write_zip  # noqa: F401
from patch_diffusion.config import Data
from patch_diffusion.data.files.decode import Header, ImageFile, decode_file, quiet, read_header, reason
from patch_diffusion.data.inspection.inspect import inspect_images
from patch_diffusion.web import uploads

tifffile = pytest.importorskip("tifffile")
pytest.importorskip("imagecodecs")

RANDOM = np.random.default_rng(0)
GREY, COLOUR = {"photometric": "minisblack"}, {"photometric": "rgb"}
BIG = {"bigtiff": True, "byteorder": ">"}
SIZE = (6, 10)


def values(shape, dtype):
    if np.dtype(dtype).kind == "f":
        return RANDOM.normal(size=shape).astype(dtype)
    least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
    return RANDOM.integers(max(least, -1000), min(most, 60_000), shape, dtype=dtype, endpoint=True)


def tiff(*pages, **how):
    """The bytes of a file, of one page or several."""
    stream = BytesIO()
    with tifffile.TiffWriter(stream, bigtiff=how.pop("bigtiff", False), byteorder=how.pop("byteorder", None)) as writer:
        for page in pages:
            writer.write(page, **how)
    return stream.getvalue()


def file_of(content):
    return ImageFile("a.tif", lambda: BytesIO(content))


KINDS = {
    "floats of RGB": ((*SIZE, 3), "f4", COLOUR),
    "float64": (SIZE, "f8", GREY),
    "float16": (SIZE, "f2", GREY),
    "float64 of RGBA, zstd": ((*SIZE, 4), "f8", {**COLOUR, "compression": "zstd", "extrasamples": ["unassalpha"]}),
    "5 bands": ((*SIZE, 5), "u1", {**GREY, "planarconfig": "contig"}),
    "5 bands in planes, big-endian": ((5, *SIZE), "u2", {**GREY, "planarconfig": "separate", "byteorder": ">"}),
    "5 bands, the first RGB": ((*SIZE, 5), "u1", COLOUR),  # Pillow leaves two of them out
    "RGB and infrared": ((*SIZE, 4), "u1", {**COLOUR, "extrasamples": ["unspecified"]}),  # and one of them here
    "2 bands": ((*SIZE, 2), "u2", {**GREY, "planarconfig": "contig"}),
    "int8": (SIZE, "i1", GREY),  # which Pillow takes for uint8
    "int16": (SIZE, "i2", GREY),
    "uint32": (SIZE, "u4", GREY),
    "uint32, big-endian": (SIZE, "u4", {**GREY, "byteorder": ">"}),
    "RGB of 16 bits in planes, LZW": ((3, *SIZE), "u2", {**COLOUR, "planarconfig": "separate", "compression": "lzw"}),
    "big-endian BigTIFF": (SIZE, "f4", {**GREY, **BIG}),
    "tiles, deflated with differences": ((32, 48, 3), "f4", {**COLOUR, "tile": (16, 16), "compression": "deflate"}),
    "pages of OME": ((3, *SIZE), "f8", {**GREY, "metadata": {"axes": "CYX"}}),
    "JPEG 2000": ((*SIZE, 3), "u2", {**COLOUR, "compression": "jpeg2000"}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_in_every_container(tmp_path, kind):
    shape, dtype, how = KINDS[kind]
    stored = [values(shape, dtype) for _ in range(2)]
    first = how.get("planarconfig") == "separate" or "metadata" in how
    expected = np.stack(
        [each[None] if each.ndim == 2 else each if first else each.transpose(2, 0, 1) for each in stored]
    )
    expected = expected.astype(dtype if dtype in ("u1", "u2") else np.float32)
    contents = [(f"{index}.tif", tiff(each, **how)) for index, each in enumerate(stored)]
    folder = tmp_path / "deep"
    folder.mkdir()
    for name, content in contents:
        (folder / name).write_bytes(content)
    shard = write_shard(tmp_path / "a.tar", contents)
    for source in (folder, write_zip(tmp_path / "a.zip", folder), f"wds:{shard}"):
        pixels = pd.open_images(source).pixels.numpy()
        assert pixels.dtype == expected.dtype and np.array_equal(pixels, expected)


@pytest.mark.parametrize("how", [{**BIG}, {"compression": "jpegxl"}, {"compression": "webp"}])
def test_pictures_of_8_bits_are_as_others(tmp_path, how):
    picture = values((*SIZE, 3), "u1")
    (tmp_path / "a.tif").write_bytes(tiff(picture, **COLOUR, **how))
    Image.fromarray(picture).save(tmp_path / "b.png")
    images = pd.open_images(tmp_path)
    assert images.pixels.dtype == torch.uint8 and torch.equal(*images.pixels)
    assert np.array_equal(images.pixels[0].numpy(), picture.transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("channels", "how"),
    [
        (1, GREY),
        (1, {"photometric": "miniswhite"}),
        (1, {"photometric": "palette", "colormap": values((3, 256), "u2")}),
        (3, {**COLOUR, "extratags": [(274, "H", 1, 6, True)]}),
        (4, {**COLOUR, "extrasamples": ["unassalpha"]}),
        (2, {**GREY, "planarconfig": "contig", "extrasamples": ["unassalpha"]}),
    ],
)
def test_pillow_and_tifffile_give_the_same_picture(channels, how):
    picture = values(SIZE if channels == 1 else (*SIZE, channels), "u1")
    by_pillow, other = (file_of(tiff(picture, **how, **order)) for order in ({}, BIG))
    assert read_header(by_pillow) == read_header(other)
    for mode in ("L", "RGB", "RGBA"):
        assert np.array_equal(decode_file(by_pillow, mode=mode), decode_file(other, mode=mode))


@pytest.mark.parametrize("turned", range(1, 9))
def test_pictures_are_upright(turned):
    picture, how = values(SIZE, "u1"), {**GREY, "extratags": [(274, "H", 1, turned, True)]}
    by_pillow, *others = (file_of(tiff(picture.astype(dtype), **how)) for dtype in ("u1", "i2", "f8"))
    for other in others:
        assert np.array_equal(decode_file(other), decode_file(by_pillow, mode="L"))
        assert read_header(other).size == read_header(by_pillow).size == decode_file(other).shape[1:]


def test_colour_of_16_bits(tmp_path):
    """Pictures of 8 bits unless all of it is asked for."""
    picture = values((*SIZE, 3), "u2")
    (tmp_path / "a.tif").write_bytes(tiff(picture, **COLOUR))
    images = pd.open_images(tmp_path)
    assert np.array_equal(images.pixels[0].numpy(), (picture >> 8).transpose(2, 0, 1))
    assert any("TIFFs keep 16 bits with --data.mode RGB16" in note for note in images.notes)
    images = pd.open_images(tmp_path, mode="RGB16")
    assert images.pixels.dtype == torch.uint16 and np.array_equal(images.pixels[0].numpy(), picture.transpose(2, 0, 1))
    assert inspect_images(Data(str(tmp_path), mode="RGB16")).span == (picture.min(), picture.max())
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "b.png")
    assert "1 images are pictures of 8 bits (first: b.png), 1 are uint16 of 3" in refusal(tmp_path, mode="RGB16")
    (tmp_path / "a.tif").unlink()
    assert "data.mode RGB16 is for TIFF of 16 bits a colour, and these are pictures" in refusal(tmp_path, mode="RGB16")


def test_versions_in_fewer_pixels_are_left_out():
    whole, half = values((32, 32), "f8"), values((16, 16), "f8")
    for pyramid in (False, True):
        stream = BytesIO()
        with tifffile.TiffWriter(stream, ome=pyramid) as writer:
            writer.write(whole, **GREY, subifds=int(pyramid))
            writer.write(half, **GREY, subfiletype=1)
        assert np.array_equal(decode_file(file_of(stream.getvalue()))[0], whole.astype(np.float32))


def patched(content, **tags):
    """A TIFF with other numbers in its header."""
    page, changed = tifffile.TiffFile(BytesIO(content)).pages[0], bytearray(content)
    for name, value in tags.items():
        place = page.tags[name].valueoffset
        changed[place : place + 2] = struct.pack("<H", value)
    return bytes(changed)


PLAIN = tiff(values((*SIZE, 3), "f8"), **COLOUR)
BROKEN = "not an image, or a broken one"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (PLAIN[:4], BROKEN),
        (PLAIN[:20], BROKEN),
        (PLAIN[:4] + bytes(range(200)), BROKEN),
        (tiff(values(SIZE, "f4").astype("c8"), **GREY), "it holds complex64: pixels are whole numbers"),
        (tiff(values((*SIZE, 3), "f4"), photometric="cielab"), "a kind of TIFF that is not read (cielab of float32)"),
        (tiff(values(SIZE, "f8"), values((4, 4), "f8"), **GREY), "its 2 pages differ in size or type"),
        (tiff(*values((2, *SIZE, 3), "f8"), **COLOUR), "has 2 pages of colour"),
        (tiff(np.full(SIZE, 2**31, "u4"), **GREY), "whole numbers of 2,147,483,648; up to 16,777,216"),
        (tiff(np.full(SIZE, 2**32 - 1, "u4"), **GREY), "whole numbers of 4,294,967,295; up to 16,777,216"),
        (patched(PLAIN, ImageWidth=40_000, ImageLength=50_000), "2,000,000,000 pixels, more than the"),
        (
            patched(
                tiff(values((*SIZE, 5), "u1"), **GREY, planarconfig="contig"), SamplesPerPixel=60_000, ImageWidth=5_000
            ),
            "1,800,000,000 pi",
        ),
    ],
)
def test_what_is_no_image(content, message, capfd):
    with quiet(), pytest.raises(Exception) as refused:
        decode_file(file_of(content))
    assert message in reason(refused.value)
    assert not "".join(capfd.readouterr())


def test_without_the_libraries_one_line_names_them(tmp_path, monkeypatch):
    (tmp_path / "a.tif").write_bytes(PLAIN)
    for name in ("tifffile", "imagecodecs"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            assert f"a.tif (this kind of TIFF needs {name}: pip install 'patch_diffusion[data]')" in refusal(tmp_path)
    monkeypatch.setitem(sys.modules, "tifffile", None)
    (tmp_path / "a.tif").write_bytes(tiff(values((*SIZE, 3), "u2"), **COLOUR))
    assert pd.open_images(tmp_path).channels == 3
    for dtype in ("u1", "u2", "i2", "i4", "f4"):
        assert read_header(file_of(tiff(values(SIZE, dtype), **GREY))).size == SIZE


def test_the_page_takes_them_too():
    def read(content):
        return uploads._decoded(uploads._opened("the picture", content)[0], "RGB").numpy()

    picture = values((*SIZE, 3), "u1")
    assert np.array_equal(read(tiff(picture, **COLOUR, **BIG)), picture.transpose(2, 0, 1))
    with pytest.raises(pd.InputError, match="pixels of float32, and this page takes 8 bits"):
        read(PLAIN)
    with pytest.raises(pd.InputError, match="2,000,000,000 pixels"):
        read(patched(PLAIN, ImageWidth=40_000, ImageLength=50_000))


def test_headers_say_what_decoding_gives():
    assert read_header(file_of(PLAIN)) == Header(SIZE, "float32", 3)
