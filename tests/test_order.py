from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, strategies as st

import patch_diffusion as pd
from patch_diffusion.data.order import SampleOrder, permute
from patch_diffusion.training.hardware.engine import Engine


@given(st.integers(1, 300), st.integers(0, 5), st.integers(0, 3))
def test_an_epoch_holds_every_image_once(num, seed, epoch):
    indices = SampleOrder(num, seed).indices(epoch * num, num)
    assert sorted(indices.tolist()) == list(range(num))


@given(st.integers(1, 50), st.lists(st.integers(1, 40), min_size=1, max_size=8))
def test_pieces_join_to_the_whole(num, counts):
    order = SampleOrder(num, 1)
    starts = np.cumsum([0, *counts])
    pieces = [order.indices(int(start), count) for start, count in zip(starts, counts, strict=False)]
    assert np.concatenate(pieces).tolist() == order.indices(0, sum(counts)).tolist()


def test_epochs_and_seeds_differ():
    first, second = SampleOrder(100, 0).indices(0, 100), SampleOrder(100, 0).indices(100, 100)
    assert first.tolist() != second.tolist() != list(range(100))
    assert first.tolist() != SampleOrder(100, 1).indices(0, 100).tolist()


@pytest.mark.slow
def test_an_image_comes_at_any_place():
    places = [SampleOrder(10, seed).indices(0, 10).tolist().index(0) for seed in range(5000)]
    assert all(abs(places.count(place) - 500) < 120 for place in range(10))  # more than five standard deviations


@pytest.mark.parametrize("num", [10, 16, 64])
def test_images_and_their_neighbours_are_uniform_over_all_orders(num):
    """Pearson's chi-square of images by places, and of pairs of images by two places, within five deviations."""
    keys = 2000
    orders = np.stack([permute(np.arange(num), num, key, "order", 0) for key in range(keys)])

    def check(found, cells, degrees):
        assert len(found) == cells
        expected = found.sum() / cells
        chi_square = float(((found - expected) ** 2 / expected).sum())
        assert chi_square < degrees + 5 * (2 * degrees) ** 0.5

    by_place = [np.bincount(orders[:, place], minlength=num) for place in range(num)]
    check(np.concatenate(by_place), num**2, (num - 1) ** 2)
    apart = ~np.eye(num, dtype=bool)
    for one, other in ((0, 1), (num // 2, num - 1)):
        pairs = np.bincount(orders[:, one] * num + orders[:, other], minlength=num**2).reshape(num, num)
        check(pairs[apart], num * (num - 1), num * (num - 1) - 1)


def test_a_large_order_is_not_a_list():
    assert len(set(SampleOrder(10**12, 0).indices(10**12 - 5, 5).tolist())) == 5


def test_no_images():
    with pytest.raises(pd.InputError, match="no images"):
        SampleOrder(0)


@given(st.integers(1, 40), st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 3), st.data())
def test_processes_share_an_epoch_without_gap_or_overlap(num, seed, processes, accumulation, data):
    """Step by step, whatever the batch sizes; and a run that stops anywhere goes on with the next images."""
    order, position, steps = SampleOrder(num, seed), 0, []
    while position < 2 * num:
        batch = data.draw(st.integers(1, num + 3))
        shares = []
        for rank in range(processes):
            rank_of = SimpleNamespace(group=SimpleNamespace(rank=rank, world=processes), accumulation=accumulation)
            shares.append([slot for part in Engine.microbatches(rank_of, batch) for slot in part])
        taken = [slot for share in shares for slot in share]
        assert sorted(taken) == list(range(batch))
        found = {slot: int(order.indices(position + slot, 1)[0]) for slot in taken}
        steps += [found[slot] for slot in range(batch)]
        position += batch
    assert steps == order.indices(0, position).tolist()
    assert sorted(steps[:num]) == sorted(steps[num : 2 * num]) == list(range(num))


@given(st.integers(1, 2**40), st.integers(0, 2**62), st.integers(0, 2**40), st.integers(1, 20))
def test_any_range_is_found_without_what_lies_before(num, seed, start, count):
    order = SampleOrder(num, seed)
    found = order.indices(start, count).tolist()
    assert found == [int(order.indices(start + place, 1)[0]) for place in range(count)]
    assert all(0 <= image < num for image in found)
    epochs = [(start + place) // num for place in range(count)]
    assert len(set(zip(epochs, found, strict=True))) == count
