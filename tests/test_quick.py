"""Ordinary files are read without opening them; what comes out is what Pillow gives, and others are left to it."""

from functools import partial
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from image_files import colour_png_of_16_bits
from patch_diffusion.data.files import decode, quick
from patch_diffusion.data.files.decode import Header, ImageFile, decode_file, read_header

HEIGHT, WIDTH = 21, 34


def picture(mode="RGB"):
    random = np.random.default_rng(0)
    small = random.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).convert(mode)


def saved(mode="RGB", kind="JPEG", **options):
    stream = BytesIO()
    picture(mode).save(stream, kind, **options)
    return stream.getvalue()


def exif(orientation):
    found = Image.Exif()
    found[0x0112] = orientation
    return found.tobytes()


def transparent():
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("comment", "text")
    return chunks


ORDINARY = {
    "jpeg": saved(),
    "grey jpeg": saved("L"),
    "progressive": saved(progressive=True),
    "optimized": saved(optimize=True, quality=30),
    "4:4:4": saved(subsampling=0, quality=95),
    "comment": saved(comment=b"a picture"),
    "restarts": saved(restart_marker_rows=1),
}
ORDINARY_HEADERS = {
    **ORDINARY,
    "png": saved(kind="PNG"),
    "grey png": saved("L", "PNG"),
    "dpi": saved(kind="PNG", dpi=(9, 9)),
}
OTHERS = {
    "turned": saved(exif=exif(6)),
    "upright, but says so": saved(exif=exif(1)),
    "cmyk": saved("CMYK"),
    "profile": saved(icc_profile=b"profile"),
    "kept as RGB": saved(keep_rgb=True),
    "transparent": saved("RGBA", "PNG"),
    "palette": saved("P", "PNG"),
    "black and white": saved("1", "PNG"),
    "one colour is transparent": saved("RGB", "PNG", transparency=(0, 0, 0)),
    "text": saved("RGB", "PNG", pnginfo=transparent()),
    "turned png": saved("RGB", "PNG", exif=exif(6)),
    "grey of 16 bits": saved("I;16", "PNG"),
    "colour of 16 bits": colour_png_of_16_bits(),
    "gif": saved("P", "GIF"),
    "tiff": saved("RGB", "TIFF"),
    "webp": saved("RGB", "WEBP"),
}


def file_of(content):
    return ImageFile("a", partial(BytesIO, content))


def by_pillow(monkeypatch, function, content, *arguments):
    """What comes out when every file is opened."""
    with monkeypatch.context() as patch:
        patch.setattr(decode, "quick_header", lambda stream: None)
        patch.setattr(decode, "quick_picture", lambda content: None)
        patch.setattr(decode, "format_of", lambda start: None)
        return function(file_of(content), *arguments)


@pytest.mark.parametrize("name", ORDINARY_HEADERS)
def test_headers_of_ordinary_files_are_pillows(name, monkeypatch):
    content = ORDINARY_HEADERS[name]
    found = quick.quick_header(BytesIO(content))
    with Image.open(BytesIO(content)) as image:
        assert found == quick.QuickHeader((image.height, image.width), image.mode == "L")
    assert read_header(file_of(content)) == by_pillow(monkeypatch, read_header, content)
    assert read_header(file_of(content)) == Header((HEIGHT, WIDTH), grey="grey" in name)


@pytest.mark.parametrize("name", ORDINARY)
def test_pixels_of_ordinary_files_are_pillows(name, monkeypatch):
    content = ORDINARY[name]
    with Image.open(BytesIO(content)) as image:
        assert np.array_equal(np.asarray(quick.quick_picture(content)), np.asarray(image))
    for options in ((None, "RGB"), (None, "L"), (None, "RGBA"), ((8, 8), "RGB", "crop"), ((9, 5), "RGB", "stretch")):
        ours = decode_file(file_of(content), *options)
        assert np.array_equal(ours, by_pillow(monkeypatch, decode_file, content, *options))


@pytest.mark.parametrize("name", OTHERS)
def test_others_are_left_to_pillow(name, monkeypatch):
    content = OTHERS[name]
    assert quick.quick_header(BytesIO(content)) is None and quick.quick_picture(content) is None
    assert read_header(file_of(content)) == by_pillow(monkeypatch, read_header, content)
    if name != "grey of 16 bits":
        ours = decode_file(file_of(content), None, "RGB")
        assert np.array_equal(ours, by_pillow(monkeypatch, decode_file, content, None, "RGB"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_damage_is_what_pillow_says_it_is(kind, monkeypatch):
    """Cut anywhere, or with any byte of the header changed: the same pixels, or the same error."""
    whole = saved(kind=kind)
    damaged = [whole[:length] for length in range(0, len(whole), 7)]
    damaged += [whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :] for place in range(0, 700, 3)]

    def outcome(function, *arguments):
        with decode.quiet():
            try:
                return function(*arguments).tobytes()
            except Exception as error:
                return decode.reason(error)

    for content in damaged:
        ours = outcome(decode_file, file_of(content))
        assert ours == outcome(by_pillow, monkeypatch, decode_file, content)


def test_too_many_pixels_are_refused_unread(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", HEIGHT * WIDTH - 1)
    for kind in ("JPEG", "PNG"):
        for function in (read_header, decode_file):
            with decode.quiet(), pytest.raises(decode.InputError, match="714 pixels, more than the 713"):
                function(file_of(saved(kind=kind)))
