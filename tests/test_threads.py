import threading

import pytest
import torch
from torch import nn

import patch_diffusion as pd
from patch_diffusion.config import Engine
from patch_diffusion.denoise import threads
from patch_diffusion.denoise.conditions import Conditions
from patch_diffusion.denoise.networks.unet import Enlarge, Reduce, group_norm
from patch_diffusion.denoise.objective import Batch, DenoisingObjective
from patch_diffusion.denoise.threads import Shared, backward, sharing
from patch_diffusion.files import read_tensors
from patch_diffusion.training.hardware.engine import Engine as Running
from patch_diffusion.training.optimizing.muon import orthogonalise


@pytest.fixture(autouse=True)
def three_threads():
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(1)


@pytest.fixture
def model():
    torch.manual_seed(0)
    network = pd.UNet(
        image_channels=3, width=8, multipliers=(1, 2), blocks=1, num_classes=2, augment_channels=2, dropout=0.0
    )
    for parameter in network.parameters():  # the last layers begin at zero
        nn.init.normal_(parameter, std=0.1)
    return pd.Denoiser(network).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def samples(num=7):
    draw = torch.Generator().manual_seed(num)
    clean, noise = torch.randn(2, num, 3, 8, 12, generator=draw)
    sigma = torch.rand(num, generator=draw) + 0.1
    labels = torch.arange(num) % 3 - 1
    coords = pd.coordinate_grid(8, 12).expand(num, -1, -1, -1)
    return Batch(clean, sigma, noise, Conditions(coords, labels, torch.randn(num, 2, generator=draw)))


def gradients(model):
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("num", [1, 2, 3, 7])
def test_gradients_are_those_of_one_thread(model, num):
    inputs = samples(num)
    losses = DenoisingObjective(model)(inputs)
    (0.25 * losses).sum().backward()
    expected = gradients(model)
    with sharing(model):
        shared = backward(DenoisingObjective(model), inputs, 0.25)
    assert shared is not None and not shared.requires_grad
    torch.testing.assert_close(shared, losses.detach(), rtol=1e-5, atol=1e-6)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5)
        assert gradient.stride() == dict(model.named_parameters())[name].stride()


@pytest.mark.slow
def test_every_loss_may_have_a_weight_of_its_own(model):
    loss, inputs, weights = DenoisingObjective(model), samples(), torch.arange(7.0)
    (weights * loss(inputs)).sum().backward()
    expected, engine = gradients(model), Running(Engine(device="cpu"))
    engine.backward(loss, inputs, weights)
    alone = gradients(model)
    with sharing(model):
        engine.backward(loss, inputs, weights)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5)
        assert torch.equal(alone[name], expected[name])


@pytest.mark.slow
def test_threads_compute_in_the_number_format_of_the_training(model):
    """Autocast holds for the thread that enters it alone."""
    engine, inputs = Running(Engine(device="cpu", precision="bf16")), samples()
    with engine.autocast():
        losses = DenoisingObjective(model)(inputs)
    losses.sum().backward()
    expected = gradients(model)
    with sharing(model):
        exact = backward(DenoisingObjective(model), inputs, 1.0)
        gradients(model)
        shared = engine.backward(DenoisingObjective(model), inputs, 1.0)
    assert exact is not None
    apart, rounding = (losses - shared).abs().max(), (losses - exact).abs().max()
    assert apart < 0.1 * rounding
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=0.05, atol=0.02 * expected[name].abs().max().item())


def test_norms_compute_in_the_format_of_their_weights():
    norm, given = group_norm(16, 1e-5), torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = norm(given.bfloat16())
    assert found.dtype is torch.bfloat16
    assert torch.equal(found, norm(given.bfloat16().float()).detach().bfloat16())
    half = norm.half()
    assert half(given.half()).dtype is torch.float16


@pytest.mark.parametrize("resize", [Reduce((1, 3, 3, 1)), Enlarge((1, 3, 3, 1))])
def test_filters_compute_in_float32(resize):
    given = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = resize(given)
    assert found.dtype is torch.bfloat16
    assert torch.equal(found, resize(given.float()).bfloat16())
    assert resize(given).dtype is torch.bfloat16


def test_gradients_are_added_to_those_that_are_there_and_repeat(model):
    loss, inputs = DenoisingObjective(model), samples()
    with sharing(model):
        backward(loss, inputs, 1.0)
        once = gradients(model)
        backward(loss, inputs, 1.0)
        again = gradients(model)
        backward(loss, inputs, 0.5)
        backward(loss, inputs, 0.5)
        halves = gradients(model)
    for name, gradient in once.items():
        assert torch.equal(gradient, again[name])
        torch.testing.assert_close(gradient, halves[name], rtol=1e-4, atol=1e-5)


def test_evaluation_is_that_of_one_thread(model):
    clean, sigma, _, conditions = samples()
    coords = pd.coordinate_grid(8, 12)
    expected = model(clean, sigma, conditions).detach()
    with sharing(model), torch.inference_mode():
        shared = Shared(model)(clean, sigma, conditions)
        one_level = Shared(model)(clean, torch.tensor(0.5), Conditions(coords))
    torch.testing.assert_close(shared, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(one_level, model(clean, 0.5, coords).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("given", "num", "found"), [(3, 1, [3]), (4, 2, [2, 2]), (4, 3, [1, 1, 1]), (3, 7, [1, 1, 1])])
def test_fewer_samples_than_threads_have_the_threads_that_are_left(model, given, num, found):
    seen = []
    model.network.register_forward_pre_hook(lambda *given: seen.append(torch.get_num_threads()))
    torch.set_num_threads(given)
    with sharing(model):
        for _ in range(2):
            backward(DenoisingObjective(model), samples(num), 1.0)
        assert torch.get_num_threads() == 1
    assert seen == found * 2


def test_what_is_not_shared_has_all_threads(model):
    """A single image, what goes backward, and a model that threads may not share; in a thread that shares, one."""
    found = []
    model.network.register_forward_pre_hook(lambda *given: found.append(torch.get_num_threads()))
    other = pd.Denoiser(nn.Conv2d(5, 3, 1), coords=True)
    other.network.register_forward_pre_hook(lambda *given: found.append(torch.get_num_threads()))
    other.network.forward = lambda x, c_noise, labels=None: x[:, :3]
    one, many = samples(num=1), samples()
    with sharing(model):
        with torch.inference_mode():
            Shared(model)(one.clean, one.sigma, one.conditions)
            Shared(other)(many.clean, many.sigma, many.conditions.without("augment"))
            Shared(model)(many.clean, many.sigma, many.conditions)
        Shared(model)(many.clean, many.sigma, many.conditions)
        assert torch.get_num_threads() == 1
    assert found == [3, 3, 1, 1, 1, 3]


def test_each_thread_takes_a_share(model):
    shares = []
    model.network.register_forward_hook(
        lambda network, inputs, output: shares.append(
            (len(output), torch.get_num_threads(), threading.current_thread().name, output.is_inference())
        )
    )
    clean, sigma, _, conditions = samples(8)
    with sharing(model), torch.inference_mode():
        Shared(model)(clean, sigma, conditions)
    assert sorted(share[0] for share in shares) == [2, 3, 3]
    assert all(share[1] == 1 and share[2].startswith("worker") and share[3] for share in shares)


def test_matrices_are_levelled_as_by_one_thread(model):
    draw = torch.Generator().manual_seed(0)
    matrices = [torch.randn(rows, 24, generator=draw) for rows in (8, 8, 16, 8, 40, 8, 24)]
    expected = orthogonalise(matrices)
    with sharing(model):
        assert threads.threads() == 3
        shared = orthogonalise(matrices)
    for matrix, other in zip(shared, expected, strict=True):
        torch.testing.assert_close(matrix, other, rtol=1e-4, atol=1e-5)


def test_torch_has_its_threads_back(model):
    before = threading.active_count()
    with pytest.raises(RuntimeError, match="of two"), sharing(model):
        assert torch.get_num_threads() == 1
        with sharing(model):  # inside another it does nothing
            pass
        assert torch.get_num_threads() == 1 and threads._current is not None

        def fails(*inputs):
            raise RuntimeError("of two")

        model.network.forward = fails
        backward(DenoisingObjective(model), samples(), 1.0)
    assert torch.get_num_threads() == 3 and threads._current is None and threading.active_count() == before


@pytest.mark.parametrize("why", ["dropout", "foreign", "one thread"])
def test_what_threads_may_not_share(model, why):
    if why == "dropout":
        model = pd.Denoiser(pd.UNet(image_channels=3, width=8, multipliers=(1,), blocks=1, dropout=0.1))
    elif why == "foreign":
        model = pd.Denoiser(nn.Conv2d(5, 3, 1))
    else:
        torch.set_num_threads(1)
    with sharing(model):
        assert threads._current is None
        assert backward(DenoisingObjective(model), samples(), 1.0) is None
    with sharing(model.eval()):  # without dropout there is nothing to draw
        assert (threads._current is not None) == (why == "dropout")


@pytest.mark.slow
def test_training_by_threads(make_trainer):
    def train(out, num):
        trainer = make_trainer(
            out, {"dropout": 0.0}, log_every=1, engine=Engine(threads=num), batch=7, samples=1, watchdog="stop"
        )
        trainer.fit(steps=6)
        return trainer

    one, two, again = train("one", 1), train("two", 2), train("again", 2)
    ours, others = (read_tensors(trainer.run.model_file) for trainer in (two, one))
    for name, weights in read_tensors(again.run.model_file).items():
        assert torch.equal(weights, ours[name])
        torch.testing.assert_close(weights, others[name], rtol=1e-4, atol=1e-4)
