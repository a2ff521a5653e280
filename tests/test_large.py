"""Data sets far larger than memory cost little to open, and their order costs nothing."""

import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from patch_diffusion.data.order import SampleOrder

NUM = 1_000_000


@pytest.fixture
def large(tmp_path):
    """An array of a million 64 x 64 pictures, 12 GB long, of which the disk keeps a header: the rest is a hole."""
    path = tmp_path / "large.npy"
    shape = (NUM, 3, 64, 64)
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        file.truncate(file.tell() + int(np.prod(shape)))
    if path.stat().st_blocks * 512 > 2**24:
        pytest.skip("this disk keeps holes as zeros")
    return path


@pytest.mark.scheduled
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, wants a disk with holes")
def test_opening_a_million_takes_little_memory(large):
    """Opening, and batches from all over it, as a process that has the library already; the growth is asserted."""
    program = f"""
import re, pathlib, torch
import patch_diffusion as pd
from patch_diffusion.data.order import SampleOrder
from patch_diffusion.training.hardware.feed import Feed

def resident(name):  # MB; what is the file's own lies in the system's memory and can be given up
    return int(re.search(name + r":\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1]) / 1024

pd.open_images("digits")
before = resident("RssAnon")
images = pd.open_images({str(large)!r})
whole = resident("VmRSS")
feed = Feed(images, [SampleOrder(len(images))], torch.device("cpu"))
for first in range(0, 2048, 64):
    feed.get(0, first, 64)
print(len(images), resident("RssAnon") - before, whole)
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    num, grown, whole = int(found[0]), float(found[1]), float(found[2])
    assert num == NUM and grown < 20, found
    assert whole < 600, found  # with torch itself, which is most of it


def test_the_order_of_ten_million_takes_no_memory():
    order = SampleOrder(10_000_000, 0)
    order.indices(0, 256)  # what is imported for it
    tracemalloc.start()
    try:
        for first in (0, 5_000_000, 9_999_900, 123_456_789):
            assert len(order.indices(first, 256)) == 256
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 200_000  # bytes; a list of them takes 80 MB


def test_every_one_of_many_comes_once_in_an_epoch():
    order, seen = SampleOrder(300_000, 7), np.zeros(300_000, np.int8)
    for first in range(0, 300_000, 10_000):
        seen[order.indices(first, 10_000)] += 1
    assert (seen == 1).all()
