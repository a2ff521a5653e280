import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

import patch_diffusion as pd
from forked import start
from image_files import classes_of, encoded, own_cache, random_pictures, refusal, write_folder, write_shard, write_zip  # noqa: F401
from patch_diffusion.data.files import collection, decode
from patch_diffusion.data.reading import cache, pixels
from patch_diffusion.errors import InputError

PICTURES = random_pictures()


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "pictures", PICTURES)


@pytest.fixture
def decoded(monkeypatch):
    """Names of the files that are decoded."""
    names = []

    def counting(file, *arguments):
        names.append(file.name)
        return decode.decode_with_key(file, *arguments)

    monkeypatch.setattr(collection, "decode_with_key", counting)
    return names


def entries(own_cache):  # noqa: F811
    return sorted(path for path in own_cache.glob("*") if path.is_dir())


def test_files_are_decoded_once(folder, own_cache, decoded):  # noqa: F811
    first = pd.open_images(folder, cache="disk")
    assert len(decoded) == 20 and len(entries(own_cache)) == 1
    again = pd.open_images(folder, cache="disk")
    assert len(decoded) == 20 and again.notes == first.notes
    assert any(f"decoded images are kept in {entries(own_cache)[0]}" in note for note in first.notes)
    for images in (first, again):
        assert np.array_equal(images.pixels.numpy(), PICTURES.pixels)
        assert np.array_equal(images.labels.numpy(), PICTURES.labels)


def test_memory_leaves_nothing_on_disk(folder, own_cache, decoded):  # noqa: F811
    several = [pd.open_images(folder, cache="memory") for _ in range(2)]
    assert len(decoded) == 40 and not own_cache.exists() and not several[-1].notes
    pd.open_images(folder)  # few, and quick to read
    assert not own_cache.exists()


def test_many_go_to_disk(folder, own_cache, monkeypatch):  # noqa: F811
    monkeypatch.setattr(pixels, "MOST_IN_MEMORY", 20 * 3 * 8 * 12)
    pd.open_images(folder)
    assert not own_cache.exists()
    monkeypatch.setattr(pixels, "MOST_IN_MEMORY", 20 * 3 * 8 * 12 - 1)
    pd.open_images(folder)
    assert len(entries(own_cache)) == 1


def touch(path):
    """Change a file's time, as rewriting it does."""
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 10**9))


def test_what_changed_is_read_anew(folder, tmp_path, decoded):
    def opened(source, **options):
        decoded.clear()
        return pd.open_images(source, cache="disk", **options)

    opened(folder)
    for change in (
        lambda: touch(folder / "00003.png"),
        lambda: (folder / "00003.png").rename(folder / "renamed.png"),
        lambda: (folder / "renamed.png").unlink(),
    ):
        change()
        assert opened(folder, classes=False) and decoded
        assert opened(folder, classes=False) and not decoded
    for options in ({"resolution": 6}, {"resolution": 6, "fit": "stretch"}, {"mode": "L"}):
        assert opened(folder, classes=False, **options) and decoded
        assert opened(folder, classes=False, **options) and not decoded
    archive = write_zip(tmp_path / "a.zip", folder)
    assert opened(archive, classes=False) and decoded
    touch(archive)
    assert opened(archive, classes=False) and decoded


def test_labels_and_range_are_not_what_is_kept(folder, decoded):
    pd.open_images(folder, cache="disk")
    decoded.clear()
    assert pd.open_images(folder, cache="disk", classes=False).labels is None
    assert pd.open_images(folder, cache="disk", range=(0, 100)).codec.range == (0, 100)  # pyright: ignore[reportAttributeAccessIssue]
    (folder / "dataset.json").write_text(json.dumps({"labels": [[f"{i:05d}.png", 9] for i in range(20)]}))
    assert classes_of(pd.open_images(folder, cache="disk")) == ["9"] * 20
    assert not decoded


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: (entry / "pixels-0.npy").write_bytes(b""),
        lambda entry: (entry / "pixels-0.npy").write_bytes((entry / "pixels-0.npy").read_bytes()[:-1]),
        lambda entry: (entry / "pixels-0.npy").write_bytes(bytes((entry / "pixels-0.npy").stat().st_size)),
        lambda entry: (entry / "pixels-0.npy").unlink(),
        lambda entry: (entry / "kept-0.npy").unlink(),
        lambda entry: (entry / "facts.json").write_text("{"),
        lambda entry: (entry / "facts.json").write_text("[]"),
        lambda entry: (entry / "facts.json").write_text("{}"),
        lambda entry: (entry / "facts.json").unlink(),
    ],
)
def test_a_damaged_entry_is_made_anew(folder, own_cache, decoded, damage):  # noqa: F811
    pd.open_images(folder, cache="disk")
    damage(entries(own_cache)[0])
    decoded.clear()
    assert np.array_equal(pd.open_images(folder, cache="disk").pixels.numpy(), PICTURES.pixels)
    assert len(decoded) == 20 and len(entries(own_cache)) == 1


def test_a_disk_without_room_is_refused_before_writing(folder, own_cache, monkeypatch):  # noqa: F811
    monkeypatch.setattr("patch_diffusion.files.shutil.disk_usage", lambda path: type("Usage", (), {"free": 100})())
    message = refusal(folder, cache="disk")
    assert "0.0 MB are needed" in message and "PATCH_DIFFUSION_CACHE" in message and "data.cache memory" in message
    assert not entries(own_cache)


def test_nothing_half_written_is_left(folder, own_cache, monkeypatch):  # noqa: F811
    def fails(path, blocks, shape, dtype):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "write_blocks", fails)
    with pytest.raises(OSError, match="No space left"):
        pd.open_images(folder, cache="disk")
    assert not entries(own_cache)


def test_a_refusal_leaves_nothing(folder, own_cache):  # noqa: F811
    for index in range(5):
        content = (folder / f"{index:05d}.png").read_bytes()
        (folder / f"{index:05d}.png").write_bytes(content[:-40])
    assert "cannot be used" in refusal(folder, cache="disk")
    assert not entries(own_cache)


def test_a_cache_that_is_closed_is_no_obstacle(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PATCH_DIFFUSION_CACHE", str(tmp_path / "file" / "cache"))
    np.savez(tmp_path / "a.npz", images=PICTURES.pixels)
    images = pd.open_images(tmp_path / "a.npz")
    assert np.array_equal(images.pixels.numpy(), PICTURES.pixels)
    assert any("images are kept in memory" in note and "cannot be written to" in note for note in images.notes)
    assert "cannot be written to (PATCH_DIFFUSION_CACHE names another)" in refusal(tmp_path / "a.npz", cache="disk")
    np.save(tmp_path / "a.npy", PICTURES.pixels.astype(np.float32))
    assert pd.open_images(tmp_path / "a.npy").codec.range == (0, 255)  # pyright: ignore[reportAttributeAccessIssue]
    shard = write_shard(tmp_path / "a.tar", [(f"{i}.png", encoded(PICTURES.pixels[i])) for i in range(3)])
    assert len(pd.open_images(f"wds:{shard}")) == 3


def test_a_later_look_at_floats_is_remembered(tmp_path, own_cache):  # noqa: F811
    path = tmp_path / "a.npy"
    np.save(path, PICTURES.pixels.astype(np.float32))
    first = pd.open_images(path)
    (entry,) = entries(own_cache)
    facts = json.loads((entry / "facts.json").read_text())
    facts["facts"]["high"] = 300.0
    (entry / "facts.json").write_text(json.dumps(facts))
    assert first.codec.range == (0, 255) and pd.open_images(path).codec.range == (0, 300)  # pyright: ignore[reportAttributeAccessIssue]
    assert pd.open_images(path, cache="memory").codec.range == (0, 255)  # pyright: ignore[reportAttributeAccessIssue]
    touch(path)
    assert pd.open_images(path).codec.range == (0, 255)  # pyright: ignore[reportAttributeAccessIssue]


def test_where_it_is(monkeypatch, tmp_path):
    monkeypatch.delenv("PATCH_DIFFUSION_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    for platform in ("linux", "win32"):
        monkeypatch.setattr(sys, "platform", platform)
        assert cache.cache_folder() == tmp_path / "patch_diffusion"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache.cache_folder().parts[-3:] == ("Library", "Caches", "patch_diffusion")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(os.path, "expanduser", str)  # nobody has a home
    assert cache.cache_folder() == Path(tempfile.gettempdir(), ".cache", "patch_diffusion")


def test_what_killed_processes_left_is_swept_after_a_while(folder, own_cache):  # noqa: F811
    old, new = own_cache / "a-1.partial", own_cache / "a-2.partial"
    for path in (old, new):
        path.mkdir(parents=True)
    os.utime(old, (0, 0))
    pd.open_images(folder, cache="disk")
    assert not old.exists() and new.exists()


def test_blocks_become_one_array(tmp_path):
    blocks = [np.full((num, 2, 3), value, np.uint16) for value, num in ((1, 5), (2, 0), (3, 12_345))]
    cache.write_blocks(tmp_path / "a.npy", blocks, (2, 3), "uint16")
    assert np.array_equal(np.load(tmp_path / "a.npy"), np.concatenate(blocks))
    cache.write_blocks(tmp_path / "b.npy", [], (2, 3), "uint16")
    assert np.load(tmp_path / "b.npy").shape == (0, 2, 3)


def read_with_the_other(rank, pictures, place, kept):
    """In each of two processes, which begin together; a picture that is decoded is written down."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2"}

    def slow(file, *arguments):
        time.sleep(0.05)
        with (place / "log").open("a") as log:
            log.write(file.name + "\n")
        return decode.decode_with_key(file, *arguments)

    collection.decode_with_key = slow
    (place / f"ready-{rank}").touch()
    while not all((place / f"ready-{other}").exists() for other in range(2)):
        time.sleep(0.01)
    images = pd.open_images(pictures, cache=kept)
    assert images.file.name == "pixels-0.npy"
    (place / f"said-{rank}").write_text(f"{len(images)} {int(images.pixels.long().sum())}")


@pytest.mark.slow
@pytest.mark.parametrize("kept", ["disk", "auto"])
def test_two_processes_read_once(folder, tmp_path, kept):
    """Few images stay in memory for one process; for several, one decodes and all map what it wrote."""
    start(read_with_the_other, (folder, tmp_path, kept), 2, join=True)
    said = [(tmp_path / f"said-{rank}").read_text() for rank in range(2)]
    assert said == [f"20 {PICTURES.pixels.astype(int).sum()}"] * 2
    if os.name != "nt":
        assert len((tmp_path / "log").read_text().split()) == 20


def test_several_processes_keep_in_memory_what_has_no_name(own_cache, monkeypatch):  # noqa: F811
    monkeypatch.setenv("WORLD_SIZE", "2")
    images = pd.open_images([*PICTURES.pixels], layout="channels_first")
    assert images.file is None and not own_cache.exists()


@pytest.mark.slow
def test_a_killed_process_leaves_nothing_that_is_taken_for_whole(folder, own_cache):  # noqa: F811
    program = f"""
import os
import patch_diffusion as pd
from patch_diffusion.data.files import collection, decode

def dies(file, *arguments):
    if file.name == "00010.png":
        os._exit(9)
    return decode.decode_with_key(file, *arguments)

collection.decode_with_key = dies
pd.open_images({str(folder)!r}, cache="disk")
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 9
    assert [path.suffix for path in entries(own_cache)] == [".partial"]
    assert np.array_equal(pd.open_images(folder, cache="disk").pixels.numpy(), PICTURES.pixels)
    if os.name != "nt":
        assert [path.suffix for path in entries(own_cache)] == [""]


def test_where_there_are_no_locks_the_second_to_finish_takes_what_is_there(tmp_path, monkeypatch):
    def acquire(lock):
        raise NotImplementedError

    monkeypatch.setattr(FileLock, "acquire", acquire)
    key = {"a": 1}

    def write(folder):
        np.save(folder / "a.npy", np.arange(3))
        if not cache.find(key):  # meanwhile, another process does the same
            cache.make(key, lambda other: (np.save(other / "a.npy", np.arange(3)), {"first": True})[1])
        return {"first": False}

    entry = cache.make(key, write)
    assert entry.facts == {"first": True} and entry.tensor("a.npy").tolist() == [0, 1, 2]
    assert [path.suffix for path in cache.cache_folder().iterdir()] == [""]


def test_what_has_no_name_goes_with_the_process(own_cache):  # noqa: F811
    images = pd.open_images([*PICTURES.pixels], cache="disk", layout="channels_first")
    assert np.array_equal(images.pixels.numpy(), PICTURES.pixels)
    if os.name != "nt":
        assert not entries(own_cache)


def test_an_entry_is_not_found_under_another_key(own_cache, monkeypatch):  # noqa: F811
    cache.make({"a": 1}, lambda folder: {"value": 1})
    monkeypatch.setattr(cache, "digest", lambda *parts: entries(own_cache)[0].name)
    assert cache.find({"a": 1}).facts == {"value": 1} and cache.find({"a": 2}) is None


def test_errors_of_what_is_written_come_through(own_cache):  # noqa: F811
    def refuses(folder):
        raise InputError("no")

    with pytest.raises(InputError, match="^no$"):
        cache.make({"a": 1}, refuses)
    assert not entries(own_cache)


@pytest.mark.slow
def test_training_from_the_cache_is_training_from_memory(folder, make_trainer):
    losses = []
    for number, kept in enumerate(("memory", "disk")):
        trainer = make_trainer(out=str(number), images=pd.open_images(folder, cache=kept), network={"num_classes": 5})
        losses.append([trainer.train_step()[1].item() for _ in range(3)])
    assert losses[0] == losses[1]


def test_others_may_read_an_entry_if_the_umask_lets_them():
    before = os.umask(0o022)
    try:
        entry = cache.make({"of": "all"}, lambda folder: np.save(folder / "a.npy", np.zeros(3)) or {})
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in (entry.folder, entry.folder / "a.npy")] == [0o755, 0o644]
