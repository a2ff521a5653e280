"""The model of scaling on paper: its closed forms."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

path = Path(__file__).parents[1] / "benchmarks" / "scaling.py"
spec = importlib.util.spec_from_file_location("scaling", path)
scaling = importlib.util.module_from_spec(spec)
sys.modules["scaling"] = scaling
spec.loader.exec_module(scaling)

MACHINE = scaling.Machine(peak_flops=1e12, utilisation=0.5, launch_seconds=0.0)
SIZES = (
    scaling.Size("quarter", 0.2, 4.0, 1e9 / 16, 0),
    scaling.Size("half", 0.3, 2.0, 1e9 / 4, 0),
    scaling.Size("whole", 0.5, 1.0, 1e9, 0),
)
WORK = scaling.Work("none", 10**6, 12288, 4096, SIZES)


def test_one_gpu_computes_and_exchanges_nothing():
    row = scaling.scale(MACHINE, WORK, 1)
    assert row["exchange_seconds"] == row["exposed_seconds"] == row["ring_bytes_per_gpu"] == 0
    # 4,096 images of 1 GFLOP at 0.5 TFLOP/s, and patches of half and a quarter of that
    assert row["compute_seconds"] == pytest.approx(8.192 * (0.5 + 0.3 / 2 + 0.2 / 4))
    assert row["step_seconds"] == pytest.approx(row["compute_seconds"] + 40e6 / MACHINE.memory_bytes)
    assert row["own_sizes_step_seconds"] == pytest.approx(row["step_seconds"])


def test_time_per_image_falls_by_what_arithmetic_allows():
    """p = 0.5: 1.9 times the images in 0.7 of the time; each rank its own size: in the time of a whole image."""
    row = scaling.scale(replace(MACHINE, memory_bytes=1e30), WORK, 1)
    assert row["speed_up_by_patches"] == pytest.approx(1.9 / 0.7)
    many = scaling.scale(replace(MACHINE, memory_bytes=1e30, node_bytes=1e30, network_bytes=1e30), WORK, 64)
    assert many["speed_up_with_own_sizes"] == pytest.approx(1.9, rel=1e-3)


def test_a_ring_sends_at_most_twice_the_bytes():
    assert scaling.ring_bytes(100, 1) == 0
    assert scaling.ring_bytes(100, 2) == 100
    assert scaling.ring_bytes(100, 4) == 150
    assert 199 < scaling.ring_bytes(100, 1024) < 200


def test_an_exchange_in_a_node_does_not_touch_the_network():
    fast = replace(MACHINE, node_bytes=1e30)
    assert scaling.exchange_seconds(fast, 10**6, 8) == pytest.approx(0, abs=1e-12)
    # Between two nodes each of eight cards carries an eighth, half of it there and back; one bucket, two messages.
    expected = 4e6 / 8 / fast.network_bytes + 2 * fast.latency_seconds
    assert scaling.exchange_seconds(fast, 10**6, 16) == pytest.approx(expected)


def test_an_exchange_hides_behind_the_backward_pass_but_for_its_last_bucket():
    parameters = int(10 * MACHINE.bucket_bytes / 4)
    assert scaling.exposed_seconds(MACHINE, 100.0, 1.0, parameters) == pytest.approx(0.1)
    assert scaling.exposed_seconds(MACHINE, 0.0, 1.0, parameters) == 1.0
    assert scaling.exposed_seconds(MACHINE, 1.5, 1.0, parameters) == pytest.approx(1 - 0.8)


@pytest.mark.parametrize("ranks", [1, 2, 8])
def test_the_expected_maximum_equals_a_simulation(ranks):
    probabilities, values = [0.5, 0.2, 0.3], [1.0, 0.25, 0.5]
    draws = np.random.default_rng(0).choice(values, (200_000, ranks), p=probabilities).max(1)
    assert scaling.expected_maximum(probabilities, values, ranks) == pytest.approx(draws.mean(), abs=4e-3)


def test_a_step_takes_at_least_the_launches_of_its_operations():
    size = replace(SIZES[0], operations=1000)
    slow = replace(MACHINE, launch_seconds=1e-3)
    assert scaling.compute_seconds(slow, size, 8, 8) == pytest.approx(1.0)
    assert scaling.compute_seconds(MACHINE, size, 8, 8) == pytest.approx(4 / 16 * 1e9 / 5e11)


def test_the_largest_share_of_a_batch_counts():
    assert scaling.compute_seconds(MACHINE, SIZES[2], 9, 8) == pytest.approx(2 * 1e9 / 5e11)


@pytest.mark.slow
def test_a_preset_is_counted_without_being_computed():
    work = scaling.work_of("small", 64, 0, 16)
    assert [size.name for size in work.sizes] == ["16x16", "32x32", "64x64"]
    assert work.parameters == 745_091 and work.image_bytes == 64 * 64 * 3
    # Convolutions cost by the pixel; attention and what is computed once an image make the difference.
    assert work.sizes[2].flops / work.sizes[1].flops == pytest.approx(4, rel=0.1)
    assert all(size.operations > 300 for size in work.sizes)
