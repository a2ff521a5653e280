"""Images on their way to the device: the same as `ImageSet.batch` gives, whatever way they take."""

import os
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import patch_diffusion as pd
from patch_diffusion.config import Engine
from patch_diffusion.data.augment import Augment
from patch_diffusion.data.codec import PixelCodec
from patch_diffusion.data.gather import Gather, Windows
from patch_diffusion.data.order import SampleOrder
from patch_diffusion.training import prefetch
from patch_diffusion.training.batches import Position
from patch_diffusion.training.hardware import feed
from patch_diffusion.training.hardware.feed import Feed

CPU = torch.device("cpu")

gather = Gather.__call__


@pytest.fixture(params=["uint8", "uint16", "float32", "channels last"])
def stored(request, tmp_path):
    """A file of 50 arrays, opened as images."""
    dtype = "uint8" if request.param == "channels last" else request.param
    values = np.random.default_rng(0).integers(0, 255, (50, 3, 6, 8)).astype(dtype)
    np.save(tmp_path / "a.npy", values.transpose(0, 2, 3, 1) if request.param == "channels last" else values)
    np.save(tmp_path / "labels.npy", np.arange(50) % 3)
    images = pd.open_images(tmp_path / "a.npy", labels=str(tmp_path / "labels.npy"))
    assert images.file == tmp_path / "a.npy"
    return images


def plain(images):
    """The same, copied to memory."""
    return replace(images, pixels=images.pixels.clone(), file=None)


def feed_of(images, way, monkeypatch, **options):
    """A feed whose images take that way."""
    if way == "device":  # a device that is not the CPU, and has room
        monkeypatch.setattr(feed, "free_memory", lambda device: 2**30)
    orders = [SampleOrder(len(bucket), seed=1) for bucket in images.buckets]
    made = Feed(plain(images) if way == "memory" else images, orders, CPU, **options)
    assert way != "device" or made._on_device()
    return made


@pytest.mark.parametrize("way", ["memory", "file", "device"])
def test_gives_the_images_of_the_order(stored, way, monkeypatch):
    made = feed_of(stored, way, monkeypatch)
    order = SampleOrder(len(stored), seed=1)
    for first, count in ((0, 7), (7, 7), (14, 60), (3, 1)):
        pixels, found = made.get(0, first, count)
        indices = order.indices(first, count)
        # Indexing is the independent implementation.
        assert torch.equal(pixels, stored.pixels[torch.from_numpy(indices)]) and pixels.dtype == stored.pixels.dtype
        assert np.array_equal(found, indices)


@pytest.mark.parametrize("way", ["memory", "file", "device"])
def test_windows_are_parts_of_the_images(stored, way, monkeypatch):
    made = feed_of(stored, way, monkeypatch)
    height, width = stored.resolution
    whole = stored.batch(SampleOrder(len(stored), seed=1).indices(20, 5))[0]
    for seed in range(3):
        draw = torch.Generator().manual_seed(seed)
        top, left = torch.randint(height - 1, (5,), generator=draw), torch.randint(width - 2, (5,), generator=draw)
        windows = Windows(top, left, (2, 3))
        pixels, labels = made.get(0, 20, 5, windows)
        wanted = [
            image[:, t : t + 2, e : e + 3] for image, t, e in zip(whole, top.tolist(), left.tolist(), strict=True)
        ]
        assert torch.equal(pixels, torch.stack(wanted)) and len(labels) == 5


CORNERS = ((0, 1), (1, 0), (0, 0), (1, 1))


def test_gathers_as_indexing_does():
    values = torch.arange(7 * 2 * 3 * 4, dtype=torch.float32).reshape(7, 2, 3, 4)
    indices = np.array([6, 0, 0, 3])
    last = values.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    odd = values.flip(-1).transpose(2, 3).contiguous().transpose(2, 3)
    for pixels in (values, last, odd, values[:, :, ::2]):
        wanted = pixels[torch.from_numpy(indices)]
        assert torch.equal(Gather(pixels)(indices), wanted)
        out = torch.empty_like(Gather(pixels)(indices))
        assert torch.equal(Gather(pixels)(indices, out), wanted) and torch.equal(out, wanted)
        windows = Windows(torch.tensor([0, 1, 0, 1]), torch.tensor([1, 0, 0, 1]), (pixels.shape[2] - 1, 1))
        corner = [wanted[k, :, t : t + windows.size[0], e : e + 1] for k, (t, e) in enumerate(CORNERS)]
        assert torch.equal(Gather(pixels)(indices, None, windows), torch.stack(corner))
    with pytest.raises(IndexError):
        Gather(values)(np.array([7]))


def test_several_buckets(monkeypatch):
    buckets = tuple(
        pd.ImageSet(torch.randint(0, 255, (num, 1, *size), dtype=torch.uint8), torch.arange(num))
        for num, size in ((5, (4, 6)), (9, (8, 2)))
    )
    images = pd.ImageBuckets(buckets)
    for way in ("memory", "device"):
        made = feed_of(images, way, monkeypatch) if way == "device" else Feed(images, orders_of(images), CPU)
        for number, bucket in enumerate(buckets):
            pixels, labels = made.get(number, 2, 12)
            indices = SampleOrder(len(bucket), seed=1).indices(2, 12)
            assert torch.equal(pixels, bucket.pixels[torch.from_numpy(indices)]) and labels.tolist() == indices.tolist()


def orders_of(images):
    return [SampleOrder(len(bucket), seed=1) for bucket in images.buckets]


def test_only_what_fits_is_copied_to_the_device(stored, monkeypatch):
    num_bytes = stored.pixels.numel() * stored.pixels.element_size()
    for room, fits in ((4 * num_bytes, True), (4 * num_bytes - 4, False)):
        monkeypatch.setattr(feed, "free_memory", lambda device, room=room: room)
        assert Feed(stored, orders_of(stored), CPU)._on_device() is fits


def test_the_copy_goes_by_pieces(stored, monkeypatch):
    monkeypatch.setattr(feed, "_BYTES_AT_ONCE", 1000)
    made = feed_of(stored, "device", monkeypatch)
    assert torch.equal(made._resident[0], stored.pixels)


@pytest.mark.parametrize(
    ("error", "raised", "match"),
    [
        (OSError(5, "Input/output error"), pd.InputError, r"a\.npy can no longer be read: Input/output error"),
        (TimeoutError(110, "Connection timed out"), pd.InputError, r"a\.npy can no longer be read: Connection timed"),
        (MemoryError("too much"), MemoryError, "too much"),
    ],
)
def test_errors_of_a_disk_name_the_file(stored, monkeypatch, error, raised, match):
    def fails(*arguments):
        raise error

    monkeypatch.setattr(Gather, "__call__", fails)
    made = feed_of(stored, "file", monkeypatch)
    with pytest.raises(raised, match=match):
        made.get(0, 0, 3)
    monkeypatch.setattr(Gather, "__call__", gather)
    assert len(made.get(0, 0, 3)[0]) == 3


@pytest.mark.skipif(os.name == "nt", reason="files in use cannot be changed there")
def test_a_file_that_is_cut_is_refused_before_it_ends_the_process(stored, monkeypatch):
    made = feed_of(stored, "file", monkeypatch)
    made.get(0, 0, 3)
    size = stored.file.stat().st_size
    os.truncate(stored.file, 200)
    with pytest.raises(pd.InputError, match=rf"a\.npy was cut from {size:,} to 200 bytes"):
        made.get(0, 3, 3)


@pytest.mark.skipif(os.name == "nt", reason="files in use cannot be removed there")
def test_a_file_that_is_written_anew_in_its_place_is_refused(stored, monkeypatch):
    made = feed_of(stored, "file", monkeypatch)
    made.get(0, 0, 7)
    os.utime(stored.file)  # which changes its time, and nothing else
    made.get(0, 7, 7)
    with stored.file.open("r+b") as file:
        np.save(file, 255 - np.load(stored.file))
    os.utime(stored.file, ns=(0, 1))
    with pytest.raises(pd.InputError, match=r"a\.npy was changed while it was read: restore it"):
        made.get(0, 14, 7)


def test_a_file_that_is_replaced_stays_as_it_was(stored, monkeypatch):
    wanted = stored.batch(SampleOrder(50, seed=1).indices(0, 3))[0]
    made = feed_of(stored, "file", monkeypatch)
    stored.file.unlink()
    stored.file.write_bytes(b"another")
    assert torch.equal(made.get(0, 0, 3)[0], wanted)


@pytest.mark.slow
def test_training_does_not_depend_on_the_way(tmp_path, make_trainer, monkeypatch):
    """Of stochastic and progressive sizes, in parts; a guess that was wrong costs a read, not a difference."""
    values = np.random.default_rng(0).integers(0, 256, (30, 3, 8, 12), dtype=np.uint8)
    np.save(tmp_path / "a.npy", values)
    mapped = pd.open_images(tmp_path / "a.npy")
    for number, kind in enumerate(("stochastic", "progressive")):
        losses = []
        for images in (plain(mapped), mapped):
            trainer = make_trainer(
                f"{number}-{images.file is None}",
                images=images,
                schedule={"kind": kind, "whole": 0.5},
                engine=Engine(accumulation=2),
                log_every=1,
            )
            trainer.fit(steps=6)
            losses.append((trainer.run.path / "log.jsonl").read_text().count('"loss": '))
            losses.append(trainer.state.network.state_dict())
        assert losses[0] == losses[2] == 6
        assert all(torch.equal(losses[1][name], losses[3][name]) for name in losses[1])


@pytest.mark.slow
def test_the_trainer_prepares_each_batch_once_and_ahead(make_trainer, monkeypatch):
    trainer = make_trainer(engine=Engine(accumulation=2))
    made, make = [], trainer.batches.make
    monkeypatch.setattr(trainer.batches, "make", lambda plan, slots: (made.append((plan, slots)), make(plan, slots))[1])
    for _ in range(5):
        trainer.train_step()
    trainer.step.batches.get(Position(5, 0, trainer.state.counters.by_resolution))
    assert len(made) in (11, 12)  # one more is being made
    assert [plan.step for plan, _ in made[:11]] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5]
    assert trainer.state.counters.images == made[10][0].first


@pytest.mark.slow
def test_a_dead_disk_stops_training_with_a_note_in_the_log(tmp_path, make_trainer, monkeypatch):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).integers(0, 256, (30, 3, 8, 12), dtype=np.uint8))
    trainer = make_trainer(images=pd.open_images(tmp_path / "a.npy"))
    never = threading.Event()
    monkeypatch.setattr(Gather, "__call__", lambda *arguments: never.wait(60) and gather(*arguments))
    monkeypatch.setattr(prefetch, "SECONDS_TO_A_NOTE", 0.05)
    monkeypatch.setattr(prefetch, "SECONDS_TO_THE_END", 0.2)
    try:
        with pytest.raises(pd.InputError, match="no data from"):
            trainer.fit(steps=3)
    finally:
        never.set()
    assert "waiting for data" in (trainer.run.path / "log.jsonl").read_text()


def test_latents_take_their_room_with_the_deviation(monkeypatch):
    from patch_diffusion.data.latents.codec import LatentCodec
    from patch_diffusion.data.latents.folder import LatentSet

    codec = LatentCodec((0.0,) * 4, (1.0,) * 4, posterior=True, factor=8, vae="none")
    latents = LatentSet(torch.randn(20, 8, 4, 4).half(), codec=codec)
    for room, fits in ((4 * 20 * 8 * 4 * 4 * 2, True), (4 * 20 * 8 * 4 * 4 * 2 - 4, False)):
        monkeypatch.setattr(feed, "free_memory", lambda device, room=room: room)
        assert Feed(latents, orders_of(latents), CPU)._on_device() is fits


class NoIndexOfUint16(TorchDispatchMode):
    """A device like CUDA, which has few kernels for numbers of 16 bits without sign."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if (
            name.startswith(("index", "gather", "flip", "cat", "where", "take"))
            and getattr(args[0], "dtype", None) == torch.uint16
        ):
            raise NotImplementedError(f"\"{name}_cuda\" not implemented for 'UInt16'")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("way", ["memory", "device"])
@pytest.mark.parametrize("context", [None, 4])
@pytest.mark.parametrize("flip", [0.0, 0.5])
def test_pixels_of_16_bits_need_no_kernel_of_their_own(way, flip, context, make_trainer, monkeypatch):
    pixels = torch.randint(0, 2**16, (32, 1, 8, 12), generator=torch.Generator().manual_seed(0)).to(torch.uint16)
    images = pd.ImageSet(pixels, codec=PixelCodec("uint16"))
    trainer = make_trainer(
        images=images,
        network={"context": context is not None, "num_classes": 0},
        schedule={"sizes": {"1/2": 1.0}, "whole": 0.5, "context": context},
        augment=Augment(flip=flip),
    )
    if way == "device":
        monkeypatch.setattr(feed, "free_memory", lambda device: 2**30)
        trainer.batches.feed._in_memory = False
    expected = [trainer.batches.microbatch(Position(step, 0, {})) for step in range(8)]
    with NoIndexOfUint16():
        found = [trainer.batches.microbatch(Position(step, 0, {})) for step in range(8)]
    assert len({each.plan.size for each in found}) > 1
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.batch.clean, other.batch.clean)
