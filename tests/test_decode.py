import struct
import tracemalloc
import zipfile
import zlib
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image, ImageOps, PngImagePlugin

import patch_diffusion as pd
from image_files import (  # noqa: F401
    colour_png_of_16_bits,
    cut_in_half,
    own_cache,
    random_pictures,
    refusal,
    write_folder,
    write_zip,
)
from patch_diffusion.config import Data
from patch_diffusion.data.files.decode import (
    Header,
    ImageFile,
    decode_file,
    decode_with_key,
    quiet,
    read_header,
    read_headers,
    reason,
)
from patch_diffusion.data.inspection.inspect import inspect_images

RANDOM = np.random.default_rng(0)


def file_of(content, name="a.png"):
    return ImageFile(name, lambda: BytesIO(content))


def save(path, *pages, **options):
    """One file of one page or several."""
    path.parent.mkdir(parents=True, exist_ok=True)
    first, *others = (page if isinstance(page, Image.Image) else Image.fromarray(page) for page in pages)
    more = {"save_all": True, "append_images": others} if others else {}
    first.save(path, **more, **options)
    return path


@pytest.mark.parametrize(
    ("modes", "channels"),
    [("L", 1), ("1", 1), ("RGB", 3), ("P", 3), ("L RGB", 3), ("RGBA", 4), ("LA", 4), ("RGB RGBA", 3), ("CMYK", 3)],
)
def test_kinds_of_files(tmp_path, modes, channels):
    rgba = RANDOM.integers(0, 256, (8, 8, 4), dtype=np.uint8)
    for mode in modes.split():
        picture = Image.fromarray(rgba, "RGBA").convert("RGB" if mode == "P" else "RGBA").convert(mode)
        picture.save(tmp_path / f"{mode}.{'tiff' if mode == 'CMYK' else 'png'}")
    assert pd.open_images(tmp_path).channels == channels
    assert pd.open_images(tmp_path, mode="L").channels == 1


@pytest.mark.parametrize(
    "ending", ["bmp", "dds", "gif", "ico", "im", "jp2", "jpg", "pcx", "png", "ppm", "qoi", "sgi", "tga", "tiff", "webp"]
)
def test_whatever_pillow_reads(tmp_path, ending):
    flat = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    save(tmp_path / f"a.{ending}", flat)
    images = pd.open_images(tmp_path, mode="RGB")
    assert images.resolution == (16, 16)
    assert (images.pixels[0, :, 8, 8].int() - torch.tensor([200, 100, 50])).abs().max() < 8


@pytest.mark.parametrize("ending", ["png", "tiff", "pgm", "jp2"])
@pytest.mark.parametrize("archived", [False, True])
def test_grey_of_16_bits(tmp_path, ending, archived):
    pictures = random_pictures(4, channels=1, dtype=np.uint16)
    source = write_folder(tmp_path / "deep", pictures, labels=False, ending=ending)
    images = pd.open_images(write_zip(tmp_path / "deep.zip", source) if archived else source)
    assert images.pixels.dtype == torch.uint16 and images.codec.range == (0, 65535)  # pyright: ignore[reportAttributeAccessIssue]
    assert np.array_equal(images.pixels.numpy(), pictures.pixels)


def test_tiffs_of_either_order_of_bytes(tmp_path):
    values = RANDOM.integers(0, 65536, (8, 8), dtype=np.uint16)
    save(tmp_path / "a.tiff", values)
    big = Image.frombytes("I;16B", (8, 8), values.astype(">u2").tobytes())
    save(tmp_path / "b.tiff", big)
    assert np.array_equal(pd.open_images(tmp_path).pixels.numpy(), np.stack([values, values])[:, None])


def test_floats_have_a_measured_range(tmp_path):
    values = RANDOM.normal(size=(3, 8, 8)).astype(np.float32)
    for index, page in enumerate(values):
        save(tmp_path / f"{index}.tiff", page)
    images = pd.open_images(tmp_path)
    assert images.pixels.dtype == torch.float32 and np.array_equal(images.pixels[:, 0].numpy(), values)
    assert images.codec.range == (values.min(), values.max())  # pyright: ignore[reportAttributeAccessIssue]
    assert images.notes == (
        f"the data has values from {values.min():g} to {values.max():g}, which become -1 and 1; --data.range changes "
        "that",
    )
    assert pd.open_images(tmp_path, range=(-4, 4)).codec.range == (-4, 4)  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_pages_of_a_tiff_are_channels(tmp_path, dtype):
    pages = RANDOM.integers(0, 200, (5, 8, 12)).astype(dtype)
    save(tmp_path / "a.tiff", *pages)
    images = pd.open_images(tmp_path)
    assert images.pixels.shape == (1, 5, 8, 12) and np.array_equal(images.pixels[0].numpy(), pages)
    smaller = pd.open_images(tmp_path, resolution=4)
    assert smaller.pixels.shape == (1, 5, 4, 4) and smaller.pixels.dtype == images.pixels.dtype


def test_pages_that_are_no_channels(tmp_path):
    flat = np.zeros((8, 8), np.uint8)
    save(tmp_path / "a.tiff", flat, np.zeros((4, 4), np.uint8))
    assert "a.tiff (its 2 pages differ in size or type, so they cannot be channels of one image)" in refusal(tmp_path)
    save(tmp_path / "a.tiff", flat, flat.astype(np.uint16))
    assert "a.tiff (its 2 pages differ" in refusal(tmp_path)
    save(tmp_path / "a.tiff", *np.zeros((2, 8, 8, 3), np.uint8))
    assert "a.tiff (has 2 pages of colour" in refusal(tmp_path)


def test_a_thumbnail_in_a_tiff_is_no_channel(tmp_path):
    picture = RANDOM.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    thumbnail = Image.fromarray(picture[::4, ::4])
    thumbnail.encoderinfo = {"tiffinfo": {254: 1}}
    save(tmp_path / "a.tiff", picture, thumbnail)
    assert np.array_equal(pd.open_images(tmp_path).pixels[0].numpy(), picture.transpose(2, 0, 1))


def test_deep_files_are_turned_and_resized_as_others(tmp_path):
    values = np.repeat(np.array([[0, 40_000, 65_535]], np.uint16), 4, 0).repeat(4, 1)
    save(tmp_path / "a.tiff", values, tiffinfo={274: 6})  # turned by a quarter
    images = pd.open_images(tmp_path)
    assert images.resolution == (12, 4) and np.array_equal(images.pixels[0, 0].numpy(), values.T)
    middle = pd.open_images(tmp_path, resolution=4).pixels[0, 0].int()
    assert (middle == 40_000).all()


@pytest.mark.parametrize(
    ("pages", "message"),
    [
        ([np.full((8, 8), -(2**25), np.int32)], "it has whole numbers of 33,554,432; up to 16,777,216 can be kept"),
        ([np.full((8, 8), np.nan, np.float32)], "holds NaN or infinity"),
        ([np.full((8, 8), np.inf, np.float32)], "holds NaN or infinity"),
    ],
)
def test_values_that_cannot_be_used(tmp_path, pages, message):
    save(tmp_path / "odd.tiff", *pages)
    assert f"odd.tiff ({message}" in refusal(tmp_path)


def test_whole_numbers_with_a_sign_are_kept_as_floats(tmp_path):
    values = RANDOM.integers(-1017, 70_000, (8, 8)).astype(np.int32)
    save(tmp_path / "a.tiff", values)
    images = pd.open_images(tmp_path)
    assert images.pixels.dtype == torch.float32 and np.array_equal(images.pixels[0, 0].numpy(), values)


def test_files_are_all_of_one_kind(tmp_path):
    save(tmp_path / "a.png", np.zeros((8, 8), np.uint8))
    save(tmp_path / "b.png", np.zeros((8, 8), np.uint16))
    save(tmp_path / "c.png", np.zeros((8, 8), np.uint8))
    assert refusal(tmp_path) == (
        "1 images are uint16 of 1 channel (first: b.png), 2 are pictures of 8 bits (first: a.png): convert them to one "
        "kind"
    )
    save(tmp_path / "b.png", np.zeros((8, 8), np.uint8))
    save(tmp_path / "c.tiff", *np.zeros((3, 8, 8), np.uint8))
    assert "1 images are uint8 of 3 channels (first: c.tiff)" in refusal(tmp_path)


def test_mode_is_for_8_bits(tmp_path):
    save(tmp_path / "deep.png", np.zeros((8, 8), np.uint16))
    assert "data.mode L is for pictures of 8 bits, and these are uint16 of 1 channel" in refusal(tmp_path, mode="L")


def test_colour_of_16_bits_is_noted(tmp_path):
    (tmp_path / "a.png").write_bytes(colour_png_of_16_bits())
    (tmp_path / "b.ppm").write_bytes(b"P6\n4 4\n65535\n" + np.zeros((4, 4, 3), ">u2").tobytes())
    save(tmp_path / "c.png", np.zeros((4, 4, 3), np.uint8))
    assert any(
        "2 images of 16 bits per colour (first: a.png) read as 8 bits" in n for n in pd.open_images(tmp_path).notes
    )


def test_animations_give_their_first_frame(tmp_path):
    frames = [np.full((8, 8), value, np.uint8) for value in (10, 200)]
    save(tmp_path / "a.gif", *frames)
    save(tmp_path / "b.png", *frames)
    images = pd.open_images(tmp_path, mode="L")
    assert images.pixels.unique().tolist() == [10]
    assert "2 animations (first: a.gif): only the first frame is read" in images.notes


def test_transparency_is_laid_over_white_and_said(tmp_path):
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "a.png")
    Image.new("RGB", (4, 4), (0, 0, 255)).save(tmp_path / "b.png")
    images = pd.open_images(tmp_path)
    assert images.pixels[0].unique().tolist() == [255]
    assert images.pixels[1, :, 0, 0].tolist() == [0, 0, 255]
    assert any("1 transparent image put on white" in note for note in images.notes)


def test_palette_colours_and_their_transparency(tmp_path):
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.save(tmp_path / "a.png")
    assert pd.open_images(tmp_path).pixels[0, :, 0, 0].tolist() == [10, 20, 30]
    palette.save(tmp_path / "a.png", transparency=1)
    assert pd.open_images(tmp_path, mode="RGB").pixels[0, :, 0, 0].tolist() == [255, 255, 255]
    assert pd.open_images(tmp_path).pixels[0, :, 0, 0].tolist() == [10, 20, 30, 0]


@pytest.mark.parametrize(("mode", "colour", "channels"), [("RGBA", (1, 2, 3, 255), 3), ("LA", (7, 255), 1)])
def test_an_opaque_alpha_channel_is_left_out(tmp_path, mode, colour, channels):
    Image.new(mode, (4, 4), colour).save(tmp_path / "a.png")
    images = pd.open_images(tmp_path)
    assert images.pixels[0, :, 0, 0].tolist() == list(colour[:channels])
    assert "the alpha channel is opaque in all images and was left out" in images.notes
    assert not any("put on white" in note for note in images.notes)


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tiff"])
def test_exif_orientation(tmp_path, ending):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    colours = np.zeros((16, 32, 3), np.uint8)
    colours[:, :16] = 200
    save(tmp_path / f"a.{ending}", colours, exif=exif)
    images = pd.open_images(tmp_path)
    assert images.resolution == (32, 16)
    assert (images.pixels[0, :, 4] > 150).all() and (images.pixels[0, :, 28] < 50).all()


def test_orientation_after_the_pixels_of_a_png_is_left(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    content = save(tmp_path / "a.png", np.zeros((4, 6), np.uint8)).read_bytes()
    late = exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(late)) + b"eXIf" + late + struct.pack(">I", zlib.crc32(b"eXIf" + late))
    (tmp_path / "a.png").write_bytes(content[:-12] + chunk + content[-12:])
    assert read_header(file_of((tmp_path / "a.png").read_bytes())).size == (4, 6)
    assert pd.open_images(tmp_path).resolution == (4, 6)


def test_too_many_pixels_are_refused_by_name_and_number(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "pictures", random_pictures(3), labels=False)
    save(folder / "bomb.png", np.zeros((100, 100), np.uint8))
    for most in (6_000, 4_000):  # Pillow itself warns of up to twice as many, and refuses more
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
        message = f"bomb.png (10,000 pixels, more than the {most:,} that are read: make it smaller, or a JPEG,"
        assert message in refusal(folder)
        assert message in refusal(write_zip(tmp_path / "a.zip", folder))
    save(folder / "bomb.png", *np.zeros((3, 8, 8), np.uint8), format="TIFF")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 150)
    assert "bomb.png (192 pixels, more than the 150" in refusal(folder)


@pytest.mark.parametrize("turned", [1, 6])
def test_a_large_jpeg_is_decoded_in_draft(tmp_path, monkeypatch, turned):
    exif = Image.Exif()
    exif[0x0112] = turned
    small = Image.fromarray(RANDOM.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    large = small.resize((1200, 900), Image.Resampling.BICUBIC)
    for name, picture in (("a", large), ("b", large.resize((600, 450)))):
        picture.save(tmp_path / f"{name}.jpg", exif=exif, quality=95)
    how = {"resolution": (590, 430) if turned == 6 else (430, 590), "cache": "memory"}
    plain = pd.open_images(tmp_path, **how).buckets[0].pixels.int()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500_000)
    draft = pd.open_images(tmp_path, **how).buckets[0].pixels.int()
    assert (draft[0] - plain[0]).abs().float().mean() < 3 and not torch.equal(draft[0], plain[0])
    assert torch.equal(draft[1], plain[1])
    (tmp_path / "b.jpg").unlink()
    assert "a.jpg (1,080,000 pixels, more than the 500,000 that are kept" in refusal(tmp_path)
    found = inspect_images(Data(str(tmp_path)))
    assert not found.unusable and found.sizes == {(1200, 900) if turned == 6 else (900, 1200): 1}
    large.save(tmp_path / "a.png")
    assert "a.png (1,080,000 pixels, more than the 500,000 that are read: make" in refusal(tmp_path, resolution=64)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400_000)
    assert "a.jpg (1,080,000 pixels, more than the 1,000,000" in refusal(tmp_path, resolution=64)


@pytest.mark.parametrize("place", [33, -12], ids=["before the pixels", "after them"])
@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP"])
def test_a_png_is_read_without_its_text_where_that_is_too_long(tmp_path, place, kind):
    pictures = random_pictures(2)
    folder = write_folder(tmp_path / "pictures", pictures, labels=False)
    content = (folder / "00000.png").read_bytes()
    text = b"a\0\0" + zlib.compress(bytes(PngImagePlugin.MAX_TEXT_CHUNK + 1))
    chunk = struct.pack(">I", len(text)) + kind + text + struct.pack(">I", zlib.crc32(kind + text))
    (folder / "00000.png").write_bytes(content[:place] + chunk + content[place:])
    with (folder / "00000.png").open("rb") as file, pytest.raises(ValueError, match="too large"):
        Image.open(file).load()
    assert np.array_equal(pd.open_images(folder).pixels.numpy(), pictures.pixels)


def test_files_that_are_none_are_named(tmp_path):
    folder = write_folder(tmp_path / "pictures", random_pictures(50), labels=False)
    cut_in_half(folder / "00007.png")
    (folder / "00008.png").write_bytes(b"")
    (folder / "00009.png").write_bytes(b"no picture")
    (folder / "00010.png").unlink()
    (folder / "00010.png").symlink_to(folder / "nowhere.png")
    message = refusal(folder)
    assert message.startswith("3 of 50 images cannot be used, and training skips none in data of fewer than 100: ")
    assert "00008.png (an empty file), 00009.png (not an image, or a broken one), 00010.png ([Errno 2]" in message
    for name in ("00008.png", "00009.png", "00010.png"):
        (folder / name).unlink()
    assert "1 of 47 images cannot be used" in refusal(folder)
    assert "00007.png (image file is truncated" in refusal(folder)


@pytest.mark.parametrize(
    ("levels", "mode", "noted"), [(0, "auto", True), (2, "auto", True), (9, "auto", False), (0, "RGB", False)]
)
def test_grey_pictures_stored_in_colour_are_noted(tmp_path, levels, mode, noted):
    pictures = random_pictures(200)
    pictures.pixels = np.repeat(pictures.pixels[:, :1].clip(9, 246), 3, axis=1)
    pictures.pixels[::2, 1] += np.uint8(levels)  # as the rounding of a JPEG
    notes = pd.open_images(write_folder(tmp_path / "pictures", pictures), mode=mode).notes
    assert any("--data.mode L reads one channel" in note for note in notes) == noted


def test_one_broken_file_of_many_is_passed_over_by_name(tmp_path):
    pictures = random_pictures(200)
    folder = write_folder(tmp_path / "pictures", pictures)
    cut_in_half(folder / "00007.png")
    (folder / "00009.png").write_bytes(b"")
    for cache in ("memory", "disk", "disk"):
        images = pd.open_images(folder, cache=cache)
        assert len(images) == 198
        others = np.delete(np.arange(200), [7, 9])
        assert np.array_equal(images.pixels.numpy(), pictures.pixels[others])
        assert np.array_equal(images.labels.numpy(), pictures.labels[others])
        skipped = [note for note in images.notes if note.startswith("skipped ")]
        assert skipped[0].startswith("skipped 00007.png: image file is truncated")
        assert skipped[1] == "skipped 00009.png: an empty file"


@pytest.mark.slow
def test_only_so_many_are_named(tmp_path):
    folder = write_folder(tmp_path / "pictures", random_pictures(2200, size=(2, 2)), labels=False)
    for index in range(22):
        (folder / f"{index:05d}.png").write_bytes(b"")
    notes = pd.open_images(folder).notes
    assert "skipped 00019.png: an empty file" in notes and "skipped 2 more" in notes
    assert not any("00020.png" in note for note in notes)


def test_constant_images_are_noted(tmp_path):
    pictures = random_pictures(5)
    pictures.pixels[3] = 9
    folder = write_folder(tmp_path / "pictures", pictures, labels=False)
    notes = pd.open_images(folder).notes
    assert notes == ("1 of 5 images checked have one value only (first: 00003.png)",)


def test_headers_say_what_decoding_gives(tmp_path):
    pages = np.zeros((2, 8, 12), np.uint16)
    contents = [save(tmp_path / "a.tiff", *pages), save(tmp_path / "b.png", np.zeros((4, 6, 3), np.uint8))]
    files = [file_of(path.read_bytes()) for path in contents] + [file_of(b""), file_of(b"x")]
    headers, unusable = read_headers(files)
    assert unusable == {2: "an empty file", 3: "not an image, or a broken one"}
    assert headers[0].size == (8, 12) and (headers[0].dtype, headers[0].channels) == ("uint16", 2)
    assert headers[1].size == (4, 6) and (headers[1].dtype, headers[1].channels) == ("uint8", None)
    assert decode_file(files[0]).shape == (2, 8, 12) and decode_file(files[0]).dtype == np.uint16
    assert decode_file(files[1], mode="L").shape == (1, 4, 6)
    assert decode_file(files[1], (3, 5)).shape == (3, 3, 5)


def test_arrays_are_files_too():
    array = RANDOM.integers(0, 256, (2, 4, 6), dtype=np.uint8)
    file = ImageFile("a", lambda: array)
    assert read_header(file).channels == 2 and read_header(file).size == (4, 6)
    assert np.array_equal(decode_file(file), array) and decode_file(file, (2, 3)).shape == (2, 2, 3)


@pytest.mark.parametrize("read", [read_header, decode_file])
def test_what_cannot_be_read_is_closed(read):
    """A broken entry of a zip that stayed open would keep the zip open."""

    class Broken(BytesIO):
        def read(self, *_):
            raise zipfile.BadZipFile("Bad CRC-32")

    opened = []

    def open_it():
        opened.append(Broken())
        return opened[-1]

    with pytest.raises(zipfile.BadZipFile):
        read(ImageFile("a.png", open_it))
    assert opened and all(each.closed for each in opened)


def saved(mode="RGB", kind="JPEG", **options):
    small = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    stream = BytesIO()
    Image.fromarray(small).resize((34, 21), Image.Resampling.BICUBIC).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"optimize": True}, {"comment": b"a picture"}])
def test_ordinary_files_are_what_pillow_reads(kind, mode, options):
    content = saved(mode, kind, **options)
    with Image.open(BytesIO(content)) as image:
        image.load()
    assert read_header(file_of(content)) == Header((21, 34), grey=mode == "L")
    for other in ("L", "RGB", "RGBA"):
        pixels = decode_file(file_of(content), None, other)
        assert np.array_equal(np.atleast_3d(image.convert(other)).transpose(2, 0, 1), pixels)  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_damage_is_what_pillow_says_it_is(kind):
    """Cut anywhere, or with any byte of the header changed: the same pixels, or the same error."""
    whole = saved(kind=kind)
    damaged = [whole[:length] for length in range(0, len(whole), 7)]
    damaged += [whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :] for place in range(0, 700, 3)]

    def by_pillow(content):
        with Image.open(BytesIO(content)) as image:
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB")).transpose(2, 0, 1)

    def outcome(read):
        with quiet():
            try:
                return read().tobytes()
            except Exception as error:
                return reason(error)

    for content in damaged[1:]:
        assert outcome(lambda: decode_file(file_of(content))) == outcome(lambda: by_pillow(content))  # noqa: B023


def test_too_many_pixels_are_refused_unread(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 21 * 34 - 1)
    for kind, function in (("PNG", read_header), ("PNG", decode_file), ("JPEG", decode_file)):
        with quiet(), pytest.raises(pd.InputError, match="714 pixels, more than the 713"):
            function(file_of(saved(kind=kind)))


def test_a_damaged_file_that_pillow_would_read_is_refused_of_a_zip(tmp_path):
    folder = write_folder(tmp_path / "pictures", random_pictures(200), labels=False, ending="jpg")
    path = write_zip(tmp_path / "a.zip", folder)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        sound, after = (archive.getinfo(f"{index:05d}.jpg") for index in (7, 8))
    content[after.header_offset - 8] ^= 1  # one of the last bytes of the seventh
    path.write_bytes(content)
    assert decode_file(file_of(bytes(content[sound.header_offset + 39 : after.header_offset]))).shape == (3, 8, 12)
    images = pd.open_images(path)
    assert len(images) == 199 and "skipped 00007.jpg: Bad CRC-32 for file '00007.jpg'" in images.notes


def test_a_file_that_is_a_program_is_not_run(tmp_path, monkeypatch):
    """Pillow hands EPS to Ghostscript, whatever the name of the file ends in."""
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: 1 / 0)
    for number in range(3):
        Image.new("L", (8, 8)).save(tmp_path / f"{number}.png")
    Image.new("L", (8, 8)).save(tmp_path / "a.eps", "EPS")
    assert len(pd.open_images(tmp_path)) == 3  # left aside by its name
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    with pytest.raises(pd.InputError, match=r"a\.png \(a kind of file that is not read \(EPS\): convert it to PNG\)"):
        pd.open_images(tmp_path)


def test_a_small_file_takes_little_memory(tmp_path):
    """Though the most bytes that a file may have are allowed for; labels and groups are read by the same function."""
    file = tmp_path / "a.png"
    Image.fromarray(RANDOM.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file)
    decode_with_key(ImageFile(file.name, lambda: file.open("rb")), None, "RGB", "crop")  # imports what it takes
    tracemalloc.start()
    decode_with_key(ImageFile(file.name, lambda: file.open("rb")), None, "RGB", "crop")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**21
