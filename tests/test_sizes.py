import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import patch_diffusion as pd
from image_files import own_cache, refusal  # noqa: F401
from patch_diffusion.config import Config, Data, Engine, Network
from patch_diffusion.data.reading.sizes import bucket_sizes, choose_sizes
from patch_diffusion.runs.folder import RunFolder


@pytest.fixture
def write(tmp_path):
    """``write(size, num)``: pictures of a size."""

    def write(size, num=1, name="a"):
        folder = tmp_path / "pictures"
        folder.mkdir(exist_ok=True)
        height, width = size
        picture = np.arange(height * width, dtype=np.uint8).reshape(height, width)
        for index in range(num):
            Image.fromarray(picture).save(folder / f"{name}-{height}x{width}-{index:03d}.png")
        return folder

    return write


def test_mixed_sizes_are_refused_with_all_ways_out(write):
    write((8, 8), 5)
    folder = write((10, 20))
    assert refusal(folder) == (
        "1 of 6 images are not 8x8 like the others (first: a-10x20-000.png, 10x20): give --resolution, for example "
        "--resolution 8, to crop and resize all; with --data.fit stretch they are stretched instead, and in training "
        "with --data.fit bucket each goes to the nearest of several shapes"
    )


def test_cropping_takes_the_middle(tmp_path):
    picture = np.zeros((8, 24), np.uint8)
    picture[:, 8:16] = 200
    Image.fromarray(picture).save(tmp_path / "a.png")
    images = pd.open_images(tmp_path, resolution=4)
    assert images.pixels.min() > 150  # nothing of the black sides
    assert images.notes[0] == "all 1 images resized to 4x4, and cropped"


def test_stretching_keeps_all_of_it(tmp_path):
    picture = np.zeros((16, 48), np.uint8)
    picture[:, :12], picture[:, 36:] = 100, 200
    Image.fromarray(picture).save(tmp_path / "a.png")
    images = pd.open_images(tmp_path, resolution=16, fit="stretch")
    assert images.resolution == (16, 16) and images.pixels[0, 0, 8, [0, 8, 15]].tolist() == [100, 0, 200]
    assert images.notes[0] == "all 1 images resized to 16x16, and stretched"


@pytest.mark.parametrize("resolution", [16, 32, 48, 64, 100, 128, 256, 512, (64, 96)])
def test_buckets_are_of_about_the_same_area(resolution):
    height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
    sizes = bucket_sizes((height, width))
    step = max(16, 16 * round(math.sqrt(height * width) / 4 / 16))
    assert sizes and len(set(sizes)) == len(sizes)
    for bucket in sizes:
        assert bucket in ((height, width), (width, height)) or (bucket[0] % step == 0 and bucket[1] % step == 0)
        assert abs(bucket[0] * bucket[1] / (height * width) - 1) <= 0.25
        assert bucket[::-1] in sizes


def test_the_resolution_is_always_a_bucket():
    for side in range(8, 301):
        for resolution in ((side, side), (side, 3 * side // 2)):
            buckets = bucket_sizes(resolution)
            assert resolution in buckets and resolution[::-1] in buckets, resolution
            assert choose_sizes({0: resolution, 1: (900, 900)}, str, (side, side), "bucket")[1] == (side, side)


def test_square_images_stay_square(write):
    write((40, 40), 12)
    images = pd.open_images(write((60, 40), 12), resolution=40, fit="bucket")
    assert {bucket.resolution: len(bucket) for bucket in images.buckets} == {(40, 40): 12, (48, 32): 12}
    before = pd.open_images(write((60, 40), 12), resolution=40, fit="multiples")
    assert before.resolution == (48, 32) and len(before.buckets) == 1  # those that earlier versions had


@pytest.mark.slow
def test_a_run_made_before_keeps_its_buckets(write, tmp_path):
    write((40, 40), 8)
    data = Data(str(write((60, 40), 8)), resolution=40, fit="bucket", held_out=0.0)
    network = Network(kind="ddpmpp", width=8, multipliers=(1,), blocks=1, attention=())
    config = Config(data=data, network=network, steps=1, batch=2, samples=0, engine=Engine(device="cpu"))
    old = replace(config, data=replace(data, fit="multiples"))
    pd.train(old, tmp_path / "run", show=False)
    stored = tmp_path / "run" / "config.json"
    content = json.loads(stored.read_text())
    content["data"]["fit"] = "bucket"
    del content["model"]["resolution_is_bucket"]
    stored.write_text(json.dumps(content))
    assert pd.train(replace(config, steps=2), tmp_path / "run", show=False).resolution == (48, 32)
    pd.train(config, tmp_path / "new", show=False)
    assert RunFolder(tmp_path / "new").read_config()[0].data.fit == "bucket"


def test_each_image_goes_to_the_nearest_bucket(write):
    for size, num in (((64, 64), 9), ((60, 62), 9), ((100, 200), 12), ((200, 100), 10), ((48, 96), 2), ((130, 65), 1)):
        folder = write(size, num)
    images = pd.open_images(folder, resolution=64, fit="bucket")
    assert isinstance(images, pd.ImageBuckets)
    assert {bucket.resolution: len(bucket) for bucket in images.buckets} == {(48, 96): 14, (64, 64): 18, (96, 48): 11}
    assert len(images) == 43 and images.resolution == (64, 64)
    assert images.notes[0] == "the images have 3 shapes: 18 64x64, 14 48x96, 11 96x48"
    assert images.notes[1] == "32 of 43 images resized to the nearest shape, 9 of them cropped to its aspect"
    assert images.options.fit == "bucket" and all(bucket.options == images.options for bucket in images.buckets)


def test_small_buckets_join_the_nearest(write):
    write((64, 64), 20)
    write((100, 200), 7)
    folder = write((50, 100), 1, name="b")
    sizes = {bucket.resolution: len(bucket) for bucket in pd.open_images(folder, resolution=64, fit="bucket").buckets}
    assert sizes == {(48, 96): 8, (64, 64): 20}
    (folder / "b-50x100-000.png").unlink()
    images = pd.open_images(folder, resolution=64, fit="bucket")
    assert isinstance(images, pd.ImageSet) and images.resolution == (64, 64) and len(images) == 27


def test_small_buckets_join_one_after_another():
    """Each of the three has too few, and together they have enough."""
    sizes = dict(enumerate([(112, 32)] * 3 + [(96, 48)] * 3 + [(80, 48)] * 3 + [(64, 64)] * 9))
    chosen = choose_sizes(sizes, str, (64, 64), "bucket")
    tall = {chosen[index] for index in range(9)}
    assert len(tall) == 1 and tall != {(64, 64)} and all(chosen[index] == (64, 64) for index in range(9, 18))


def test_labels_go_with_their_images_into_buckets(write):
    for name in ("a", "b"):
        write((64, 64), 10, name)
        folder = write((50, 100), 8, name)
    names = sorted(path.name for path in folder.iterdir())
    rows = [f"{name},{'wolf' if name[0] == 'b' else 'cat'}" for name in names]
    (folder / "labels.csv").write_text("\n".join(["file,label", *rows]))
    images = pd.open_images(folder, resolution=64, fit="bucket", labels="labels.csv")
    assert images.class_names == ("cat", "wolf") and images.num_classes == 2
    assert [bucket.labels.tolist() for bucket in images.buckets] == [[0] * 8 + [1] * 8, [0] * 10 + [1] * 10]


def test_buckets_come_back_from_the_cache(write):
    write((64, 64), 10)
    folder = write((50, 100), 8)
    first, again, in_memory = (
        pd.open_images(folder, resolution=64, fit="bucket", cache=cache) for cache in ("disk", "disk", "memory")
    )
    for other in (again, in_memory):
        assert [bucket.resolution for bucket in other.buckets] == [(48, 96), (64, 64)]
        for ours, theirs in zip(first.buckets, other.buckets, strict=True):
            assert torch.equal(ours.pixels, theirs.pixels)


@pytest.mark.parametrize("fit", ["crop", "stretch", "bucket"])
def test_tiny_images_are_not_blown_up(write, fit):
    folder = write((3, 3))
    assert "3x3 is too small to enlarge to 32x32" in refusal(folder, resolution=32, fit=fit)


@pytest.mark.parametrize("fit", ["stretch", "bucket"])
def test_fit_needs_a_resolution(write, fit):
    assert refusal(write((8, 8)), fit=fit) == f"data.fit {fit} needs data.resolution"
