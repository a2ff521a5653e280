import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import patch_diffusion as pd
from patch_diffusion.config import Optimizer
from patch_diffusion.denoise.objective import DenoisingObjective
from patch_diffusion.training.hardware.engine import Engine
from patch_diffusion.training.optimizing.muon import Muon, _full_precision, orthogonalise
from patch_diffusion.training.state import TrainingState


@pytest.mark.parametrize("shape", [(64, 576), (576, 64), (16, 16), (8, 100)])
def test_singular_values_come_near_one(shape):
    torch.manual_seed(0)
    left, values, right = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    matrix = left @ torch.diag(torch.logspace(0, -1.5, len(values))) @ right
    (result,) = orthogonalise([matrix])
    assert result.shape == matrix.shape
    after = torch.linalg.svdvals(result)
    assert after.min() > 0.6
    assert after.max() < 1.3


def test_directions_stay():
    """U S V' becomes U S' V' with a positive diagonal S'."""
    torch.manual_seed(0)
    matrix = torch.randn(12, 30, dtype=torch.float64)
    (result,) = orthogonalise([matrix])
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    after = left.T @ result @ right.T
    assert torch.allclose(after, torch.diag(after.diagonal()), atol=1e-6)
    assert (after.diagonal() > 0).all()


def test_matrices_that_go_through_together_do_not_mix():
    torch.manual_seed(0)
    matrices = [torch.randn(shape) for shape in [(16, 40), (16, 90), (40, 16), (32, 32)]]
    alone = [orthogonalise([matrix])[0] for matrix in matrices]
    for together, one in zip(orthogonalise(matrices), alone, strict=True):
        assert torch.allclose(together, one, atol=1e-5)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon of its own to compare with")
def test_equals_the_one_of_torch_on_matrices():
    torch.manual_seed(0)
    start = torch.randn(24, 60)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizers = {
        ours: Muon([ours], lr=0.02, betas=(0.9, 0.99), weight_decay=0.1),
        theirs: torch.optim.Muon([theirs], lr=0.02, momentum=0.9, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    }
    for _ in range(3):
        gradient = torch.randn(24, 60)
        for parameter, optimizer in optimizers.items():
            parameter.grad = gradient.clone()
            optimizer.step()
    moved, expected = (ours - start).norm(), (theirs - start).norm()
    assert (ours - theirs).norm() < 0.02 * expected  # theirs iterates in bfloat16
    assert moved > 0


def test_small_parameters_are_left_to_adamw():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(8, 16, 3), nn.GroupNorm(4, 16), nn.Conv2d(16, 3, 3))
    optimizer = Muon(network.parameters(), lr=1e-3)
    network(torch.randn(2, 8, 8, 8)).square().mean().backward()
    optimizer.step()
    states = {name: set(optimizer.state[parameter]) for name, parameter in network.named_parameters()}
    assert states.pop("0.weight") == {"velocity"}
    assert all(state == {"step", "exp_avg", "exp_avg_sq"} for state in states.values())


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_the_vector_of_a_class_that_does_not_come_rests(kind):
    """Levelled as a matrix it moved about as far as the others, as in runs that were made before."""
    torch.manual_seed(0)
    if kind == "unet":
        network = pd.UNet(1, width=32, multipliers=(1,), blocks=1, num_classes=12)
    else:
        network = pd.DiT(1, width=32, depth=1, heads=1, num_classes=11)
    weight, config = network.embed_label.weight, pd.Config(optimizer=Optimizer(kind="muon", betas=(0.9, 0.99)))
    by_class = weight.T if kind == "unet" else weight
    last_moves = {}
    for rules in (("adam-for-embeddings",), ()):
        state = TrainingState(DenoisingObjective(pd.Denoiser(network, 0.5)), config, Engine(config.engine), rules)
        for step in range(30):
            before = by_class.detach().clone()
            gradient = torch.randn_like(by_class)
            gradient[0] *= step == 0
            weight.grad = gradient.T.contiguous() if kind == "unet" else gradient
            state.optimizer.step()
        last_moves[rules] = (by_class.detach() - before).norm(dim=1)  # pyright: ignore[reportPossiblyUnboundVariable]
    ours, earlier = (moves[0] / moves[1:].mean() for moves in last_moves.values())
    assert ours < 0.2
    assert earlier > 0.6


@pytest.mark.parametrize("clip", [False, True])
def test_scaled_gradients_move_as_plain_ones_and_an_overflow_moves_nothing(clip):
    """As in fp16; a clipped gradient is unscaled before the step."""
    torch.manual_seed(0)
    start = {"matrix": torch.randn(16, 40), "bias": torch.randn(16)}
    plain, scaled = ({name: nn.Parameter(tensor.clone()) for name, tensor in start.items()} for _ in range(2))
    optimizer, ours = (Muon(each.values(), lr=0.02, weight_decay=0.1) for each in (plain, scaled))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for overflows in (True, False, False, True, False):
        gradients = {name: torch.randn_like(tensor) for name, tensor in start.items()}
        before = {name: parameter.detach().clone() for name, parameter in scaled.items()}
        for name, parameter in scaled.items():
            parameter.grad = gradients[name] * scaler.scale(torch.tensor(1.0))
        if overflows:
            scaled["matrix"].grad[3, 5] = float("inf")
        if clip:
            scaler.unscale_(ours)
        scaler.step(ours)
        scaler.update()
        if overflows:
            assert all(torch.equal(scaled[name], before[name]) for name in start)
            continue
        for name, parameter in plain.items():
            parameter.grad = gradients[name]
        optimizer.step()
        for name in start:
            torch.testing.assert_close(scaled[name], plain[name], rtol=1e-5, atol=1e-6)
            assert not torch.equal(scaled[name], before[name])


class Operations(TorchDispatchMode):
    """Counts the operations of torch that are no views."""

    num = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.num += not func.is_view
        return func(*args, **(kwargs or {}))


def test_a_step_takes_no_more_operations_if_there_are_more_matrices():
    counts = []
    for times in (1, 5):
        parameters = [nn.Parameter(torch.randn(shape)) for shape in [(64, 32, 3, 3), (32, 64), (16, 64)] * times]
        optimizer, operations = Muon(parameters, lr=0.1), Operations()
        for _ in range(2):  # the first makes the state
            for parameter in parameters:
                parameter.grad = torch.randn_like(parameter)
            operations.num = 0
            with operations:
                optimizer.step()
        counts.append(operations.num)
    assert counts[0] == counts[1]


def test_matrices_move_alike_in_any_memory_layout_and_company():
    """Channels-last ones are levelled with their columns in another order; few rows get rows of zeros."""
    torch.manual_seed(0)
    shapes = [(40, 12, 3, 3), (16, 12, 3, 3), (8, 64), (100, 12), (12, 100), (64, 16), (16, 64)]
    starts = [torch.randn(shape) for shape in shapes]
    gradients = [torch.randn(shape) for shape in shapes]

    def moved(starts, gradients, last):
        parameters = [nn.Parameter(start.clone()) for start in starts]
        if last:
            for parameter in parameters:
                parameter.data = parameter.to(memory_format=torch.channels_last) if parameter.ndim == 4 else parameter
        optimizer = Muon(parameters, lr=0.1, weight_decay=0.1)
        for _ in range(2):
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = torch.empty_like(parameter).copy_(gradient)
            optimizer.step()
        return [parameter.detach() for parameter in parameters]

    plain, last = (moved(starts, gradients, last) for last in (False, True))
    for index, (first, second) in enumerate(zip(plain, last, strict=True)):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)
        (alone,) = moved([starts[index]], [gradients[index]], last=False)
        torch.testing.assert_close(first, alone, rtol=1e-4, atol=1e-4)
        assert (first - starts[index]).norm() > 0.01


def test_the_squares_are_not_rounded_on_a_gpu(monkeypatch):
    """Rounded as TF32 does they make what is small large; the products before and after may be rounded."""
    seen = []
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    monkeypatch.setattr(torch, "set_float32_matmul_precision", seen.append)
    with _full_precision(torch.device("cuda")):
        assert seen == ["highest"]
    with _full_precision(torch.device("cpu")):
        pass
    assert seen == ["highest", "high"]


@pytest.mark.parametrize("norm", [1.0, 1e-7])
@pytest.mark.parametrize(("shape", "rank"), [((64, 16), 6), ((16, 48), 2), ((64, 64), 6), ((64, 576), 60)])
def test_directions_that_gradients_lack_do_no_harm(shape, rank, norm):
    """A small batch leaves most directions without a gradient, and rounding there is enlarged most: 485 times."""
    torch.manual_seed(0)
    matrix = torch.randn(shape[0], rank, dtype=torch.float64) @ torch.randn(rank, shape[1], dtype=torch.float64)
    matrix *= norm / matrix.norm()
    others = torch.randn(2, 64, 64)  # of a larger side
    (result, *_) = orthogonalise([matrix.float(), *others])
    expected = matrix / (matrix.norm() + 1e-7)
    for _ in range(5):
        square = expected @ expected.T
        expected = 3.4445 * expected + (-4.7750 * square + 2.0315 * square @ square) @ expected
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=1e-4)
