import numpy as np
import pytest
from hypothesis import given, strategies as st

import patch_diffusion as pd
from patch_diffusion.data.order import SampleOrder


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


def test_an_image_comes_at_any_place():
    places = [SampleOrder(10, seed).indices(0, 10).tolist().index(0) for seed in range(5000)]
    assert all(abs(places.count(place) - 500) < 120 for place in range(10))  # more than five standard deviations


def test_a_large_order_is_not_a_list():
    assert len(set(SampleOrder(10**12, 0).indices(10**12 - 5, 5).tolist())) == 5


def test_no_images():
    with pytest.raises(pd.InputError, match="no images"):
        SampleOrder(0)
