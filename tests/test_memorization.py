"""Copies are flagged, and pictures of the same kind that were not trained on are not."""

import pytest
import torch
from PIL import Image

import patch_diffusion as pd
from grouped import grouped
from patch_diffusion.evaluation.intervals import Measure
from patch_diffusion.evaluation.memorization import RATIO, CopyCheck, cut, find_copies, rates, small_pixels, verdict
from patch_diffusion.evaluation.neighbours import Nearest
from patch_diffusion.evaluation.stream import stream_of_images


@pytest.fixture(scope="module")
def digits():
    """Digits that a model was trained on, and others."""
    images = pd.open_images("digits")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return pd.ImageSet(images.pixels[order[:400]]), pd.ImageSet(images.pixels[order[400:560]])


def noisy(images, deviation):
    noise = deviation * torch.randn(images.pixels.shape, generator=torch.Generator().manual_seed(0))
    return pd.ImageSet((images.pixels + noise).round().clamp(0, 255).to(torch.uint8))


def memorization(generated, digits, **options):
    return pd.evaluate(generated, digits[0], held_out=digits[1], **grouped(metrics=["memorization"], **options))


@pytest.mark.slow
def test_copies_are_flagged(digits):
    training, _ = digits
    copies = pd.ImageSet(training.pixels[::4].clone())
    for generated in (copies, noisy(copies, 8)):
        found = memorization(generated, digits)
        rate, others = found.measures["near_copies"], found.measures["near_copies_held_out"]
        assert rate.value > 0.9 and rate.low > 0.8 and others.value < 0.02
        assert found.measures["nearest_ratio"].value < 0.2 < 0.6 < found.measures["nearest_ratio_held_out"].value
        assert any("the model copies: " in note for note in found.notes)


def test_held_out_images_are_not_flagged(digits):
    training, held_out = digits
    halves = [pd.ImageSet(held_out.pixels[place::2]) for place in (0, 1)]
    found = pd.evaluate(
        halves[0], training, held_out=halves[1], options=pd.EvaluationOptions(metrics=("memorization",))
    )
    assert found.measures["near_copies"].value < 0.03
    assert not any("copies" in note for note in found.notes)
    ratios = [found.measures[name] for name in ("nearest_ratio", "nearest_ratio_held_out")]
    assert ratios[0].low < ratios[1].high and ratios[1].low < ratios[0].high


def test_some_copies_among_others_are_counted(digits):
    training, held_out = digits
    mixed = pd.ImageSet(torch.cat([training.pixels[:30], held_out.pixels[:120]]))
    found = memorization(mixed, digits).measures["near_copies"]
    assert found.value == pytest.approx(30 / 150, abs=0.02) and found.low < 0.2 < found.high
    assert found.settings["share by pixels"] >= 0.19 and found.settings["images"] == 150


def test_without_held_out_images_the_rate_stands_alone(digits):
    training, _ = digits
    found = pd.evaluate(
        pd.ImageSet(training.pixels[:50]), training, options=pd.EvaluationOptions(metrics=("memorization",))
    )
    assert "near_copies_held_out" not in found.measures
    assert any("compare with held-out images" in note for note in found.notes)


@pytest.mark.slow
def test_copied_patches_are_counted_where_no_whole_image_is_a_copy(digits):
    """Halves of training images, put together: at the same place each, or at another."""
    training, _ = digits
    left, right = training.pixels[:100], training.pixels[100:200]
    pixels = torch.cat([left[..., :8], right[..., 8:]], dim=3)
    found = memorization(pd.ImageSet(pixels), digits)
    rate, others = found.measures["near_copies@1/2"], found.measures["near_copies_held_out@1/2"]
    assert rate.value > 0.9 and others.value < 0.05 and found.measures["near_copies"].value < 0.5
    assert rate.settings["pixels"] == "16x16 of 32x32" and found.measures["near_copies@1/4"].low > 0.8
    moved = memorization(pd.ImageSet(pixels.roll(8, dims=3)), digits)
    assert moved.measures["near_copies@1/2"].value < 0.1


def test_a_warning_of_patches_stands_where_there_is_none_of_images():
    def near(ratio, num=100):
        return Nearest(torch.tensor([[ratio, 1.0]]).expand(num, 2), torch.zeros(num, 2, dtype=torch.long))

    def notes(*whole_and_patches):
        first, second = (
            CopyCheck(near(ratio), near(0.9), {"1/2": torch.full((100,), of)}) for ratio, of in whole_and_patches
        )
        return rates(first, second, "random", 0)[1]

    far, copied = 0.9, 0.1
    assert ["have a patch of 1/2 of their side" in note for note in notes((far, copied), (far, far))] == [True]
    assert ["are near copies of training" in note for note in notes((copied, copied), (far, far))] == [True]
    assert notes((far, copied), (far, copied)) == []


def test_what_many_have_is_no_copy():
    """Two training images share a black corner: a picture that has it, too, copies neither."""
    pixels = torch.randint(0, 256, (6, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pixels[:3, :, :16, :16] = 0
    stream = stream_of_images(pd.ImageSet(pixels[1:]))
    found = find_copies(small_pixels(pixels[:1]), torch.zeros(1, 2), stream, torch.randn(5, 2))
    assert found.patches["1/2"].item() > 0.5
    stream = stream_of_images(pd.ImageSet(pixels[2:]))
    found = find_copies(small_pixels(pixels[:1]), torch.zeros(1, 2), stream, torch.randn(4, 2))
    assert found.patches["1/2"].item() == 0


def test_patches_are_cut_as_slices_are():
    small = torch.arange(2 * 3 * 32 * 32).reshape(2, -1)
    whole = small.reshape(2, 3, 32, 32)
    for parts, side in ((2, 16), (4, 8)):
        places = [(top, left) for top in range(parts) for left in range(parts)]
        for patch, (top, left) in zip(cut(small, parts), places, strict=True):
            expected = whole[:, :, side * top : side * (top + 1), side * left : side * (left + 1)]
            assert torch.equal(patch, expected.reshape(2, -1))


def test_verdicts():
    few, many, other = Measure(0.01, 0.0, 0.03), Measure(0.3, 0.25, 0.36), Measure(0.02, 0.01, 0.04)
    assert verdict(few, other) == verdict(few, None) == verdict(many, many) == ""
    assert "the model copies: 30.0%" in verdict(many, other) and "2.0%" in verdict(many, other)
    assert "by chance" in verdict(many, None)


def test_images_of_several_sizes_are_compared():
    grey = torch.full((1, 1, 7, 9), 33, dtype=torch.uint8)
    large = torch.full((1, 3, 70, 90), 33, dtype=torch.uint8)
    assert torch.equal(small_pixels(grey), small_pixels(large)) and small_pixels(grey).shape == (1, 3 * 32 * 32)


def test_images_of_other_channels_are_refused(digits):
    training, _ = digits
    with pytest.raises(pd.InputError, match="images of 4 channels cannot be copies of images of 3"):
        memorization(pd.ImageSet(training.pixels[:20].expand(-1, 4, -1, -1)), digits)


def test_the_picture_of_the_closest_pairs(digits, tmp_path):
    training, held_out = digits
    mixed = pd.ImageSet(torch.cat([held_out.pixels[:60], training.pixels[:3]]))
    memorization(mixed, digits, pairs=tmp_path / "pairs.png")
    with Image.open(tmp_path / "pairs.png") as opened:
        picture = opened.copy()
    assert picture.width > 900 and picture.height > 500
    first, second = (picture.crop((left, 28, left + 88, 116)) for left in (4, 96))
    assert sum(abs(a - b) for a, b in zip(first.tobytes()[:-400], second.tobytes()[:-400], strict=True)) / 88**2 < 3
    with pytest.raises(pd.InputError, match="written as .png"):
        memorization(mixed, digits, pairs=tmp_path / "pairs.jpg")
    with pytest.raises(pd.InputError, match="ask for that too"):
        pd.evaluate(mixed, training, options=pd.EvaluationOptions(metrics=("frechet",), pairs=tmp_path / "pairs.png"))


def test_the_ratio_is_that_of_the_paper():
    assert RATIO == 1 / 3
