import pytest
import torch
from hypothesis import given, strategies as st

import patch_diffusion as pd

sides = st.integers(2, 40)


@given(sides, sides)
def test_runs_from_corner_to_corner(height, width):
    x, y = pd.coordinate_grid(height, width)
    assert x.shape == y.shape == (height, width)
    assert (x[:, 0] == -1).all() and (x[:, -1] == 1).all()
    assert (y[0] == -1).all() and (y[-1] == 1).all()
    torch.testing.assert_close(x[0].diff(), torch.full((width - 1,), 2 / (width - 1)), atol=1e-6, rtol=0)
    torch.testing.assert_close(y[:, 0].diff(), torch.full((height - 1,), 2 / (height - 1)), atol=1e-6, rtol=0)


def test_a_single_pixel_is_in_the_middle():
    assert pd.coordinate_grid(1, 3)[1].tolist() == [[0, 0, 0]]


def test_an_empty_image_is_refused():
    with pytest.raises(ValueError, match="at least one pixel"):
        pd.coordinate_grid(0, 4)
