"""Are kernels, bytes and operations counted as a hand counts them?"""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import patch_diffusion as pd
from patch_diffusion.config import Network
from patch_diffusion.doctor.counting import count_activations, count_evaluation, count_step, count_steps
from patch_diffusion.doctor.kernels import PHASES, KernelCounter
from patch_diffusion.presets import PRESETS
from patch_diffusion.runs.model import build_network
from patch_diffusion.training.batches import Plan
from patch_diffusion.training.budget import training_flops
from patch_diffusion.training.build import build_trainer
from patch_diffusion.training.hardware.memory import memory_of_image

NUMBER = 4  # bytes of a float32
aten = torch.ops.aten


def found(counter, phase):
    return {kernel.operation: times for kernel, times in counter.found.items() if kernel.phase == phase}


@pytest.mark.parametrize("without_numbers", [False, True])
def test_a_convolution_and_silu_by_hand(without_numbers):
    with FakeTensorMode() if without_numbers else torch.enable_grad():
        convolution, x = nn.Conv2d(3, 8, 3, padding=1), torch.randn(2, 3, 4, 6, requires_grad=True)
        with KernelCounter() as counter:
            with counter.during("forward"):
                y = F.silu(convolution(x))
            with counter.during("backward"):
                y.backward(torch.ones_like(y))
    pixels, weights = 2 * 4 * 6, 8 * 3 * 9
    given, made, parameters = 3 * pixels, 8 * pixels, weights + 8
    assert found(counter, "forward") == {"convolution": 1, "silu": 1}
    forward = counter.total(phase="forward")
    assert forward.launches == 2
    assert forward.read == NUMBER * (given + parameters + made)
    assert forward.written == NUMBER * 2 * made
    assert forward.operations == 2 * pixels * weights

    # A gradient of the input, of the weights and of the bias.
    assert counter.total(phase="backward", kind="convolution").launches == 2
    assert counter.total(phase="backward", kind="convolution").operations == 2 * forward.operations
    assert counter.total(phase="backward", kind="convolution").written == NUMBER * (given + weights)
    assert counter.total(phase="backward", operation="convolution_backward, bias").written == NUMBER * 8
    assert counter.total(phase="backward", operation="silu_backward").read == NUMBER * 2 * made
    kernel = next(each for each in counter.found if each.operation == "convolution")
    assert (kernel.product, kernel.taps, kernel.side, kernel.format) == ((1, pixels, 8, 27), 9, 6, "float32")


def test_what_is_no_kernel():
    x = torch.randn(4, 6)
    with KernelCounter() as counter:
        x.view(24)[2:].unsqueeze(0).expand(5, -1).T.detach()
        assert torch.empty(3).shape == x.new_empty(3).shape
    assert not counter.found


def test_what_is_read_and_written():
    x, row, y = torch.zeros(8, 4), torch.zeros(4), torch.zeros(8, 4)
    with KernelCounter() as counter:
        for name, run in {
            "broadcast": lambda: x + row.expand(8, 4),
            "in place": lambda: x.add_(y),
            "copied": lambda: x.copy_(y),
            "filled": lambda: torch.zeros(8, 4),
            "gathered": lambda: torch.zeros(1000, 4).index_select(0, torch.arange(8)),
        }.items():
            with counter.during(name):
                run()
    moved = {name: counter.total(phase=name) for name in ("broadcast", "in place", "copied")}
    assert [(each.read, each.written) for each in moved.values()] == [(144, 128), (256, 128), (128, 128)]
    assert counter.total(phase="filled").read == 0
    assert counter.total(phase="gathered", kind="copy").read < 1000


def test_lists_of_tensors_take_a_kernel_for_each_launch():
    def kernels(num, size, lists):
        tensors = [[torch.zeros(size) for _ in range(num)] for _ in range(lists)]
        with KernelCounter() as counter:
            aten._foreach_mul_(tensors[0], 2.0) if lists == 1 else aten._foreach_add_(*tensors)
        assert counter.total().written == NUMBER * num * size
        assert next(iter(counter.found)).tensors == num
        return counter.total().launches

    assert [kernels(num, 8, 1) for num in (1, 110, 111)] == [1, 1, 2]
    assert [kernels(num, 8, 2) for num in (64, 65)] == [1, 2]
    assert kernels(2, 65_536 * 200, 1) == 2  # 400 chunks, of which a launch takes 320


def test_a_gradient_in_inference_mode_is_not_needed():
    layer = nn.Linear(4, 6)
    with torch.inference_mode(), KernelCounter() as counter:
        layer(torch.zeros(3, 4))
    assert found(counter, "") == {"zeros": 1, "addmm": 1}
    assert counter.total().operations == 2 * 3 * 4 * 6


UNET = Network(width=8, multipliers=(1, 2), blocks=1, attention=(1,), dropout=0.0)
DIT = Network(kind="dit", width=16, depth=1, heads=2, token=2, dropout=0.0)


def tiny(network):
    patches = dataclasses.replace(PRESETS["small"].patches, whole=1.0)
    batch = {"batch": 4, "batch_pixels": None, "samples": 0, "minutes": None}
    return dataclasses.replace(PRESETS["small"], network=network, patches=patches, **batch)


@pytest.fixture(scope="module")
def pretended():
    """The counted step of a tiny U-Net, which nothing was computed for."""
    (step,) = count_steps(tiny(UNET), (8, 8))
    return step


def check_operations(step, network):
    flops = training_flops(pd.Denoiser(build_network(network, 3, 0, coords=True), 0.5), 3, (8, 8))
    forward = step.kernels.total(phase="forward").operations
    assert forward == step.num * flops // 3
    # Images need no gradient, and attention computes its weights again.
    assert 1.5 < step.kernels.total(phase="backward").operations / forward < 2.3


def test_operations_of_the_forward_pass_are_those_that_training_counts(pretended):
    check_operations(pretended, UNET)
    check_operations(count_steps(tiny(DIT), (8, 8))[0], DIT)


def test_a_pretended_step_is_counted_as_the_real_one(pretended, tmp_path):
    images = pd.ImageSet(torch.randint(0, 256, (64, 3, 8, 8), dtype=torch.uint8))
    trainer = build_trainer(tiny(UNET), images, tmp_path / "run", show=False)
    plan = Plan(0, 0, (8, 8), 0, pretended.size, pretended.num)
    counter = KernelCounter()
    with counter, counter.during("batch"):
        batch = trainer.batches.make(plan, range(plan.num))
    for each in (KernelCounter(), counter):  # the first makes the optimizer's state
        count_step(each, trainer.state, trainer.engine, batch, plan.size, tiny(UNET).optimizer.clip)
    assert {kernel.phase for kernel in counter.found} == set(PHASES)
    assert counter.total(phase="optimizer").launches > 0
    for phase in set(PHASES) - {"optimizer"}:  # without numbers, Muon looks at no flag, as on a GPU
        assert counter.total(phase=phase) == pretended.kernels.total(phase=phase), phase


def test_the_memory_of_an_image_is_counted_as_that_of_a_real_one(tmp_path):
    images = pd.ImageSet(torch.randint(0, 256, (64, 3, 16, 16), dtype=torch.uint8))
    config = dataclasses.replace(tiny(UNET), patches=PRESETS["small"].patches)
    config = dataclasses.replace(config, engine=dataclasses.replace(config.engine, precision="bf16"))
    demand = build_trainer(config, images, tmp_path / "run", show=False).demand()
    assert count_activations(config, (16, 16)) == memory_of_image(demand, (16, 16)) > 10_000


def test_a_thread_takes_its_part_of_the_images(pretended):
    (part,) = count_steps(tiny(UNET), (8, 8), threads=2)
    forward = [step.kernels.total(phase="forward") for step in (pretended, part)]
    assert pretended.num == part.num == 4
    assert forward[0].launches == forward[1].launches
    assert forward[0].operations == 2 * forward[1].operations


def test_an_evaluation_of_a_large_network_takes_no_memory():
    counter = count_evaluation(PRESETS["ddpmpp-64"], (64, 64), 2)
    assert counter.total().operations > 1e11
    assert counter.total(kind="attention").launches > 0
