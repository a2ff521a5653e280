"""The hardware of a run: number formats, compiling, and blocks that are computed again in the backward pass."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import patch_diffusion as pd
from needs import need
from patch_diffusion.config import Engine, Noise, Optimizer
from patch_diffusion.denoise import compiling
from patch_diffusion.denoise.conditions import Conditions
from patch_diffusion.denoise.objective import Batch, DenoisingObjective
from patch_diffusion.denoise.threads import threads
from patch_diffusion.processes import run_processes
from patch_diffusion.training.hardware import engine
from patch_diffusion.training.hardware.memory import memory_of_image
from refusal import refused

CPU = Engine(device="cpu", threads=1)


class Counting:
    """A compiler that changes nothing, and keeps the shapes of the images of each graph."""

    def __init__(self):
        self.shapes = []

    def __call__(self, graph, examples):
        self.shapes.append(next(tuple(each.shape) for each in examples if getattr(each, "ndim", 0) == 4))
        return graph.forward


class Little(nn.Module):
    """A network that is compiled quickly."""

    image_channels = 3

    def __init__(self, dropout=0.0):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(5, 4, 3, padding=1), nn.SiLU(), nn.Dropout(dropout), nn.Conv2d(4, 3, 1))

    def forward(self, x, c_noise, labels=None):
        return self.layers(x)


class Own(Little):
    """The same as if it were of this package, whose buffers are constants; this one is drawn, as of ncsnpp."""

    def __init__(self):
        super().__init__()
        self.settings = {}
        self.register_buffer("frequencies", torch.randn(3))


class Foreign(nn.Module):
    """A network of somebody else, whose batch norm changes in each step."""

    image_channels = 3

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(5, 3, 1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x, c_noise, labels=None):
        return self.norm(self.conv(x))


@pytest.fixture
def compiler(monkeypatch):
    """``compiler(backend)``: a compiler in the place of torch's own, which takes long."""

    def use(backend):
        torch._dynamo.reset()
        monkeypatch.setattr(compiling, "BACKEND", backend)
        return backend

    yield use
    torch._dynamo.reset()


@pytest.fixture
def make(images, tmp_path):
    """``make(out, network, **engine)``: a trainer of a network on whole images and halves."""

    def make(out="run", network=None, plan=None, batch=4, **options):
        torch.manual_seed(0)
        network = Little() if network is None else network()
        held_out, samples = options.pop("held_out", None), options.pop("samples", 0)
        return pd.Trainer(
            pd.Denoiser(network, 0.5),
            images,
            pd.PatchSchedule(**{"whole": 0.5, "sizes": {"1/2": 1.0}, **(plan or {})}),
            out=tmp_path / out,
            batch=batch,
            samples=samples,
            held_out=held_out,
            checkpoints=1,
            log_every=1,
            show=False,
            track=(),
            engine=replace(CPU, **options),
        )

    return make


@pytest.fixture
def gpu(monkeypatch):
    """``gpu(capability)``: torch answers as on such a GPU of CUDA, of which nothing is there."""

    def pretend(capability):
        monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: capability >= (8, 0))
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda device=None: capability)
        monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
        monkeypatch.setattr(engine, "device_of_process", lambda name, world: torch.device("cuda", 0))
        return engine.Engine(Engine(device="cuda"))

    before = torch.get_float32_matmul_precision()
    yield pretend
    torch.set_float32_matmul_precision(before)


def batch(num=2, side=8, seed=0):
    torch.manual_seed(seed)
    clean = torch.randn(num, 3, side, side)
    coords = pd.coordinate_grid(side, side).expand(num, -1, -1, -1)
    return Batch(clean, torch.rand(num) + 0.1, torch.randn_like(clean), Conditions(coords))


def weights(trainer):
    return {name: tensor.clone() for name, tensor in trainer.state.network.state_dict().items()}


def steps(trainer, num=3):
    for _ in range(num):
        trainer.train_step()
    return weights(trainer)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(
    ("capability", "name", "told"),
    [
        ((9, 0), torch.bfloat16, "cuda:0 (bf16, and TF32 for fp32)"),
        ((7, 5), torch.float16, "cuda:0 (fp16)"),
    ],
)
def test_the_number_format_of_a_gpu(gpu, capability, name, told):
    chosen = gpu(capability)
    assert chosen.type is name and chosen.scaler.is_enabled() is (name is torch.float16)
    assert str(chosen) == told
    assert torch.get_float32_matmul_precision() == "high" and torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_the_number_format_elsewhere(device):
    assert engine._precision("auto", torch.device(device)) == "fp32"
    with refused("engine.precision"):
        engine._precision("fp16", torch.device(device))


def test_a_gpu_without_bf16_says_so(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: including_emulation)
    with refused("engine.precision"):
        engine._precision("bf16", torch.device("cuda"))


@pytest.mark.parametrize("kind", ["adamw", "muon", "schedule_free"])
def test_losses_are_scaled_for_each_optimizer(make_trainer, kind):
    """A step whose gradients overflow changes nothing, and halves the scale; the next one is taken."""
    rate = Optimizer(kind, clip=1.0, decay="constant", warmup=0.0)
    trainer = make_trainer(optimizer=rate, noise=Noise(weight="process"), engine=CPU)
    trainer.engine.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=1000)
    before = weights(trainer)
    trainer.train_step()
    assert trainer.state.losses.summary().skipped == 1
    for name, tensor in weights(trainer).items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=1e-5 if kind == "schedule_free" else 0)
    assert trainer.engine.scaler.get_scale() == 2.0**126
    trainer.engine.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    trainer.train_step()
    assert trainer.state.losses.summary().skipped == 1
    assert any(not torch.equal(tensor, before[name]) for name, tensor in weights(trainer).items())


def test_a_run_continues_in_fp16(make_trainer):
    """As one does whose precision is auto, on another GPU."""
    make_trainer(engine=CPU).fit(steps=1)
    again = make_trainer(engine=CPU)
    again.state.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    assert again.fit(steps=2) and again.state.scaler.get_scale() == 8.0


def test_which_buffers_change():
    for network, changes in (
        (pd.UNet(3, 8, (1,), 1, kind="ncsnpp"), False),
        (Foreign(), True),
        (nn.Linear(2, 2), False),
    ):
        objective = DenoisingObjective(pd.Denoiser(network, mean_data=[0.1]))
        assert engine._has_changing_buffers(objective) is changes


def test_every_shape_of_the_steps_is_compiled(make, compiler):
    """Patch sizes, and microbatches of two sizes where the batch cannot be split equally, though torch would stop."""
    used = compiler(Counting())
    with torch._dynamo.config.patch(recompile_limit=1):
        trainer = make(batch=5, compile=True, accumulation=2)
        assert trainer.engine.compiled and trainer._graphs() == 3
        for _ in range(8):
            trainer.train_step()
        assert torch._dynamo.config.recompile_limit in (1, 4)  # the new torch has a limit for each module
    assert len(used.shapes) == len(set(used.shapes)) == 3
    trainer.demand().loss((8, 4), 3)
    assert len(used.shapes) == 3  # what is measured beside the steps is not compiled


def test_compiled_training_is_the_same(make, compiler):
    expected = steps(make("usual"))
    used = compiler(Counting())
    assert_same(steps(make(compile=True)), expected)
    assert used.shapes


def test_threads_do_not_share_what_is_compiled(make, compiler):
    compiler("eager")
    for compile, num in ((False, 2), (True, 1)):
        trainer = make(f"{compile}", Own, compile=compile, threads=2)
        with trainer.engine.threads(trainer.state.denoiser):
            found = threads()
        torch.set_num_threads(1)
        assert found == num


def test_pictures_and_losses_of_held_out_images_are_not_compiled(make, compiler, images):
    used = compiler(Counting())
    trainer = make(compile=True, samples=1, held_out=images)
    trainer.fit(steps=4)
    assert 0 < len(used.shapes) <= trainer._graphs()


def test_a_machine_that_cannot_compile_says_so(make, compiler):
    def broken(graph, examples):
        raise RuntimeError("no working C++ compiler found\nin many lines")

    compiler(broken)
    with refused("engine.compile") as error:
        make(compile=True).fit(steps=1)
    assert "(no working C++ compiler found): leave it out" in str(error.value)


@pytest.mark.parametrize("kind", ["right", "broken", "wrong"])
def test_auto_compiles_only_what_agrees(make, compiler, kind):
    """Whatever comes of it, the training is that without."""

    def backend(graph, examples):
        if kind == "broken":
            raise RuntimeError("no kernel")
        return (lambda *inputs: [1.02 * each for each in graph.forward(*inputs)]) if kind == "wrong" else graph.forward

    usual = make("usual", lambda: Little(dropout=0.5))
    usual.fit(steps=3)
    compiler(backend)
    trainer = make(network=lambda: Little(dropout=0.5), compile="auto")
    trainer.fit(steps=3)
    assert trainer.engine.compiled is (kind == "right")
    assert_same(weights(trainer), weights(usual))
    found = (trainer.run.path / "log.jsonl").read_text()
    told = {"right": "", "broken": ": no kernel", "wrong": ": its losses differ by 0.02 of their size"}[kind]
    assert ("not compiled" in found) is bool(told) and told in found


def test_auto_leaves_buffers_as_they_were(make, compiler):
    usual = make("usual", Foreign)
    usual.fit(steps=2)
    compiler("eager")
    trainer = make(network=Foreign, compile="auto")
    trainer.fit(steps=2)
    assert trainer.engine.compiled
    assert_same(weights(trainer), weights(usual))


def both_ways(kind):
    """In each of two processes: the gradients of a compiled step are those of a usual one, and are exchanged."""
    torch.distributed._DEFAULT_FIRST_BUCKET_BYTES = 32  # pyright: ignore[reportPrivateImportUsage]
    graphs = []

    def backend(graph, examples):
        graphs.append(graph)
        return aot_eager(graph, examples)

    from torch._dynamo.backends.debugging import aot_eager

    compiling.BACKEND = backend
    found = []
    for compile in (False, True):
        process = engine.Engine(replace(CPU, compile=compile, recompute=kind == "dit"))
        torch.manual_seed(process.group.rank)
        network = pd.DiT(3, 16, 2, 2, dropout=0.0) if kind == "dit" else Own()
        objective = DenoisingObjective(pd.Denoiser(network))
        module = process.wrap(objective)
        assert not module.broadcast_buffers  # pyright: ignore[reportAttributeAccessIssue]
        frequencies = {name: buffer.clone() for name, buffer in network.named_buffers()}
        for buffer in network.buffers():
            torch.distributed.broadcast(buffer, 1)
        assert_same(dict(network.named_buffers()), frequencies)
        if compile:
            process.compile(objective, 2)
        for last in (False, True):
            process.backward(module, batch(seed=2 * process.group.rank + last), 1.0, last=last)
        found.append({name: parameter.grad for name, parameter in network.named_parameters()})
    assert len(graphs) > 1  # torch has split the graph, so that gradients are exchanged during the backward pass
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-6)
        other = gradient.clone()
        torch.distributed.broadcast(other, 0)
        assert torch.equal(other, gradient)


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("kind", ["own", pytest.param("dit", marks=pytest.mark.scheduled)])
def test_compiled_processes_exchange_the_same_gradients(kind):
    run_processes(2, both_ways, kind)


@pytest.mark.slow
def test_auto_with_the_compiler_of_torch(make, compiler):
    compiler(compiling.BACKEND)
    trainer = make(plan={"whole": 1.0}, compile="auto")
    trainer.fit(steps=2)
    told = (trainer.run.path / "log.jsonl").read_text()
    assert trainer.engine.compiled or "the network is not compiled: " in told


NETWORKS = {
    "unet": lambda: pd.UNet(3, 8, (1, 2), 1, dropout=0.3),
    "ncsnpp": lambda: pd.UNet(3, 8, (1, 2), 1, dropout=0.3, kind="ncsnpp"),
    "dit": lambda: pd.DiT(3, 16, 2, 2, dropout=0.3),
}


def diffusers_network():
    unets = need("diffusers.models.unets.unet_2d", "diffusers")
    return pd.DiffusersNetwork(
        unets.UNet2DModel(
            in_channels=5,
            out_channels=3,
            block_out_channels=(8, 8),
            norm_num_groups=4,
            down_block_types=["DownBlock2D", "DownBlock2D"],
            up_block_types=["UpBlock2D", "UpBlock2D"],
            layers_per_block=2,
            dropout=0.3,
        )
    )


def gradients(network, *, recompute):
    network.recompute = recompute
    objective = DenoisingObjective(pd.Denoiser(network)).train()
    data = batch()
    torch.manual_seed(1)
    losses = objective(data)
    network.zero_grad()
    losses.sum().backward()
    return losses.detach(), {name: parameter.grad.clone() for name, parameter in network.named_parameters()}


@pytest.mark.parametrize(
    "make", [*NETWORKS.values(), pytest.param(diffusers_network, marks=pytest.mark.slow)], ids=[*NETWORKS, "diffusers"]
)
def test_blocks_computed_again_give_the_same_gradients(make):
    """Bit for bit, also with dropout; and the network keeps less for the backward pass."""
    torch.manual_seed(0)
    network = make()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    usual, expected = gradients(network, recompute=False)
    losses, found = gradients(network, recompute=True)
    assert torch.equal(losses, usual)
    assert_same(found, expected)
    kept = []
    for recompute in (False, True):
        network.recompute = recompute
        kept.append(kept_of(network))
    assert kept[1] < 0.7 * kept[0]


def kept_of(network):
    """Bytes that are kept of a forward pass for the backward pass."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept = {}

    def count(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        losses = DenoisingObjective(pd.Denoiser(network)).train()(batch())
    del losses
    return sum(kept.values())


@pytest.mark.parametrize(
    "options", [{}, {"threads": 2}, pytest.param({"compile": True}, marks=pytest.mark.slow), {"precision": "bf16"}]
)
def test_training_with_recomputed_blocks_is_the_same(make, compiler, options):
    compiler("aot_eager")
    found = {}

    def network():
        return pd.DiT(3, 16, 2, 2, dropout=0.0 if options else 0.1)

    for recompute in (False, True):
        trainer = make(f"{recompute}", network, {"whole": 1.0}, recompute=recompute, **options)
        trainer.fit(steps=2)
        found[recompute] = weights(trainer), memory_of_image(trainer.demand(), (8, 12))
    torch.set_num_threads(1)
    for name, tensor in found[True][0].items():
        torch.testing.assert_close(tensor, found[False][0][name], rtol=0, atol=1e-6 if "compile" in options else 0)
    assert found[True][1] < 0.7 * found[False][1]
    assert bool(trainer.engine.compiled) is ("compile" in options)


def test_what_is_computed_again_is_no_part_of_a_model(make_trainer):
    trainer = make_trainer(engine=replace(CPU, recompute=True))
    trainer.fit(steps=1)
    assert trainer.state.network.recompute and not pd.load(trainer.run.path).network.recompute
    assert "recompute" not in trainer.state.network.settings


def test_a_network_that_cannot_compute_again_says_so(make):
    with refused("engine.recompute"):
        make(network=Foreign, recompute=True)
