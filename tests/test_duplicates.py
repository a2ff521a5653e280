import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from patch_diffusion.data.inspection import duplicates
from patch_diffusion.data.inspection.duplicates import MOST_BITS, content_hash, equal_groups, likeness, near_pairs


def scene(seed, side=64):
    """A smooth random picture, as photographs are: few high frequencies."""
    random = np.random.default_rng(seed)
    small = random.integers(0, 256, (12, 12, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)


def pixels_of(image):
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def as_jpeg(image, quality):
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(stream)


def test_content_is_values_shape_and_type():
    array = np.arange(12, dtype=np.uint8).reshape(1, 3, 4)
    assert content_hash(array) == content_hash(array.copy(order="F"))
    others = [array + 1, array.reshape(1, 4, 3), array.astype(np.uint16), array.astype(np.int8)]
    assert len({content_hash(other) for other in [array, *others]}) == 5


def test_groups_of_equal_hashes():
    assert equal_groups([b"a", b"b", b"a", b"c", b"b", b"a"]) == [[0, 2, 5], [1, 4]]
    assert equal_groups([b"a", b"b"]) == [] == equal_groups([])


@pytest.mark.parametrize(
    "alter",
    [
        lambda image: as_jpeg(image, 20),
        lambda image: image.resize((24, 24), Image.Resampling.LANCZOS),
        lambda image: image.convert("L"),
        lambda image: ImageEnhance.Brightness(image).enhance(0.8),
        lambda image: image.crop((1, 1, 63, 63)),
    ],
    ids=["jpeg", "smaller", "grey", "darker", "cropped"],
)
def test_altered_copies_are_found_among_others(alter):
    pictures = [scene(seed) for seed in range(40)]
    pictures.append(alter(pictures[7]))
    pairs = near_pairs([likeness(pixels_of(picture)) for picture in pictures])
    assert [pair[:2] for pair in pairs] == [(7, 40)]


def test_sixteen_bits_and_floats_have_likenesses_too():
    eight = pixels_of(scene(1))
    for other in (eight.astype(np.uint16) * 257, (eight / 255).astype(np.float32) * 4 - 2):
        assert near_pairs([likeness(eight), likeness(other)])[0][2] > 0.999


def test_blocks_find_the_same_as_all_pairs_one_by_one(monkeypatch):
    monkeypatch.setattr(duplicates, "_BLOCK", 8)
    pictures = [scene(seed) for seed in range(27)]
    pictures += [as_jpeg(pictures[seed], 30) for seed in (0, 7, 8, 26)]
    found = [likeness(pixels_of(picture)) for picture in pictures]
    expected = {
        (one, other)
        for other in range(len(found))
        for one in range(other)
        if (found[one].bits != found[other].bits).sum() <= MOST_BITS
        and np.float32(found[one].small) @ np.float32(found[other].small) >= 0.93
    }
    assert expected >= {(0, 27), (7, 28), (8, 29), (26, 30)}
    assert {pair[:2] for pair in near_pairs(found)} == expected


def test_the_search_ends_where_all_are_alike():
    assert len(near_pairs([likeness(pixels_of(scene(0)))] * 300, most=500)) == 500


def test_a_picture_of_one_grey_is_like_no_other():
    flat = likeness(np.full((3, 8, 8), 7, np.uint8))
    assert near_pairs([flat, flat]) == [] == near_pairs([])
