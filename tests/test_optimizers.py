import pytest
import torch

from patch_diffusion.config import Optimizer
from patch_diffusion.files import read_tensors, write_tensors
from patch_diffusion.training.state import optimizer_tensors, restore_optimizer
from patch_diffusion.training.step import learning_rate


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
    assert learning_rate(Optimizer(learning_rate=1.0, warmup=0.0, decay="constant"), 0.0) == 1.0


class Counting(torch.optim.SGD):
    """Keeps numbers of Python, of a group and of each parameter, as some optimizers of others do."""

    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            group["total"] = group.get("total", 0.0) + 0.1
            group["rounds"] = group.get("rounds", 0) + 1
            group["moved"] = True
            for parameter in group["params"]:
                state = self.state[parameter]
                state["count"] = state.get("count", 0) + 1
                state["share"] = 1 / 3


def test_numbers_of_an_optimizer_come_back_as_they_were(tmp_path):
    network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    groups = [{"params": layer.parameters(), "lr": rate} for layer, rate in zip(network, (0.1, 0.2), strict=True)]
    first = Counting(groups, momentum=0.9)
    for _ in range(3):
        for parameter in network.parameters():
            parameter.grad = torch.ones_like(parameter)
        first.step()
    write_tensors(tmp_path / "optimizer.safetensors", optimizer_tensors(first, network))
    second = Counting([{"params": layer.parameters(), "lr": 0.3} for layer in network], momentum=0.9)
    restore_optimizer(second, network, read_tensors(tmp_path / "optimizer.safetensors"))
    for before, after in zip(first.param_groups, second.param_groups, strict=True):
        for name in ("total", "rounds", "moved", "lr"):
            assert after[name] == before[name]
            assert type(after[name]) is type(before[name])
    assert first.param_groups[0]["total"] == 0.1 + 0.1 + 0.1  # which is not 0.3
    for parameter in network.parameters():
        before, after = first.state[parameter], second.state[parameter]
        assert before.keys() == after.keys()
        assert after["count"] == 3
        assert type(after["count"]) is int
        assert after["share"] == 1 / 3
        assert torch.equal(after["momentum_buffer"], before["momentum_buffer"])
