import pytest

from patch_diffusion.config import Optimizer
from patch_diffusion.training.optimizers import learning_rate


@pytest.mark.parametrize(
    ("decay", "middle", "end"), [("cosine", 0.5, 0.0), ("linear", 0.5, 0.0), ("constant", 1.0, 1.0)]
)
def test_learning_rate_over_the_budget(decay, middle, end):
    options = Optimizer(learning_rate=2.0, warmup=0.2, decay=decay)
    assert learning_rate(options, 0.0) == 0.0
    assert learning_rate(options, 0.1) == pytest.approx(1.0)
    assert learning_rate(options, 0.2) == pytest.approx(2.0)
    assert learning_rate(options, 0.6) == pytest.approx(2.0 * middle)
    for over in (1.0, 1.3):
        assert learning_rate(options, over) == pytest.approx(2.0 * end)


def test_no_warmup():
    assert learning_rate(Optimizer(learning_rate=1.0, warmup=0.0), 0.0) == 1.0
