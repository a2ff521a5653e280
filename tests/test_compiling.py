"""Sampling with a network that torch compiles: the same images, from as few compiled graphs as there can be."""

import gc
import threading
import warnings
import weakref
from dataclasses import replace

import pytest
import torch
from torch import nn

import patch_diffusion as pd
from patch_diffusion.cli import main
from patch_diffusion.denoise import compiling
from patch_diffusion.doctor.machine import has_compiler
from refusal import refused


class Little(nn.Module):
    """A network of classes that is compiled quickly, as if it were of this package, whose batches threads may share."""

    image_channels, num_classes, label_dropout, stride = 1, 4, 0.1, 2

    def __init__(self, channels=3):
        super().__init__()
        self.settings = {}
        self.first, self.last = nn.Conv2d(channels, 4, 3, padding=1), nn.Conv2d(4, 1, 3, padding=1)
        self.classes = nn.Embedding(5, 4)

    def forward(self, x, c_noise, labels=None):
        own = c_noise.new_zeros(len(x), 4) if labels is None else self.classes(labels + 1)
        return self.last(torch.tanh(self.first(x) + own[..., None, None] + c_noise[:, None, None, None]))


@pytest.fixture
def make():
    """``make(**options)``: a model of 8 x 12 pictures."""

    def model(channels=3, **options):
        torch.manual_seed(0)
        return pd.Denoiser(Little(channels), 0.5, resolution=(8, 12), **options)

    return model


@pytest.fixture
def compiler(monkeypatch):
    """``compiler(backend)``: a compiler in the place of torch's own, which takes long."""

    def use(backend):
        torch._dynamo.reset()
        monkeypatch.setattr(compiling, "BACKEND", backend)

    yield use
    torch._dynamo.reset()


@pytest.fixture
def shapes(compiler):
    """The shapes of the images of each compiled graph, by a compiler that changes nothing."""
    found = []

    def keep(graph, examples):
        found.append(next(tuple(each.shape) for each in examples if each.ndim == 4 and each.shape[-1] != 3))
        return graph.forward

    compiler(keep)
    return found


def pixels(samples):
    return [sample.pixels for sample in samples]


def same(model, seeds, options):
    """Generate with and without the compiler, and check that the images and all other settings are the same."""
    eager = list(pd.generate(model, seeds, options))
    compiled = list(pd.generate(model, seeds, replace(options, compile=True)))
    for one, other in zip(eager, compiled, strict=True):
        assert other.settings == {**one.settings, "compile": True}
        torch.testing.assert_close(other.pixels.float(), one.pixels.float(), rtol=0, atol=1.0)


def test_a_network_is_compiled_once_whatever_the_last_batch_is(make, shapes):
    model = make()
    network, options = model.network, pd.Sampling(steps=2, solver="euler", batch=4)
    same(model, range(11), options)
    assert shapes == [(4, 3, 8, 12)]
    same(model, range(5), options)
    same(model, range(4), replace(options, steps=3))
    assert len(shapes) == 1
    same(model, range(2), options)  # alone it is another batch
    assert shapes[1:] == [(2, 3, 8, 12)]
    assert model.network is network and "_compiled_call_impl" not in vars(network)


def test_guidance_tiles_and_small_copies(make, shapes):
    model, options = make(), pd.Sampling(steps=2, solver="euler", batch=2, guidance=2.0)
    same(model, range(3), options)
    assert shapes == 2 * [(2, 3, 8, 12)]  # with labels and without
    same(model, range(3), replace(options, guide=make()))
    same(model, range(3), replace(options, guide="crops:1/2"))
    assert {shape[2:] for shape in shapes} == {(8, 12), (4, 6)} and len(shapes) <= 5
    shapes.clear()
    same(model, range(2), pd.Sampling(steps=2, solver="euler", batch=2, resolution=(8, 20), tile=8))
    assert shapes == [(2, 3, 8, 8)]
    shapes.clear()
    small = make(channels=5, context=4)
    same(small, range(3), pd.Sampling(steps=2, solver="euler", batch=2))
    assert sorted(shapes) == [(2, 5, 4, 6), (2, 5, 8, 12)]


def test_more_shapes_than_torch_allows(make, shapes):
    model = make()
    with torch._dynamo.config.patch(recompile_limit=1):
        for num in range(1, 5):
            list(pd.generate(model, range(num), pd.Sampling(steps=1, guidance=2.0, compile=True)))
    assert [shape[0] for shape in shapes] == [1, 1, 2, 2, 3, 3, 4, 4]  # with labels and without


def test_threads_do_not_share_what_is_compiled(make, compiler):
    callers = set()

    def keep(graph, examples):
        def run(*inputs):
            callers.add((threading.get_ident(), torch.get_num_threads()))
            return graph.forward(*inputs)

        return run

    compiler(keep)
    torch.set_num_threads(2)
    try:
        list(pd.generate(make(), range(4), pd.Sampling(steps=1, compile=True)))
    finally:
        torch.set_num_threads(1)
    assert callers == {(threading.get_ident(), 2)}


@pytest.mark.parametrize("covariance", ["isotropic", "network"])
def test_edits(make, compiler, covariance):
    """An edit by the network's covariance goes back through a graph several times."""
    compiler("aot_eager")
    model = make()
    image = torch.randint(0, 256, (1, 8, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    known = pd.inpainting(image, torch.arange(12).expand(8, 12) < 6)
    options = pd.Sampling(steps=2, batch=2)
    eager, found = (
        list(pd.edit(model, known, range(3), each, label=1, covariance=covariance, repeats=1))
        for each in (options, replace(options, compile=True))
    )
    torch.testing.assert_close(torch.stack(pixels(found)).float(), torch.stack(pixels(eager)).float(), rtol=0, atol=1.0)
    assert found[0].settings == {**eager[0].settings, "compile": True}


def test_an_evaluation_compiles_one_batch(make, shapes, images):
    options = pd.EvaluationOptions(metrics=("frechet",), samples=5)
    real = pd.ImageSet(images.pixels[:, :1])
    made = pd.evaluate(make(), real, sampling=pd.Sampling(steps=1, batch=2, compile=True), options=options)
    assert shapes == [(2, 3, 8, 12)] and made.settings["compile"] is True


def test_what_is_compiled_goes_with_the_model(make, shapes):
    model = make()
    list(pd.generate(model, [0], pd.Sampling(steps=1, compile=True)))
    known = weakref.ref(compiling._graphs[model][(model.network, 1, (3, 8, 12))])
    assert shapes
    del model
    gc.collect()
    assert known() is None


def test_other_weights_and_another_network(make, shapes):
    """What was compiled before is right for weights that changed, and is not taken for a network in its place."""
    model, options = make(), pd.Sampling(steps=2, solver="euler")
    same(model, [0, 1], options)
    with torch.no_grad():
        model.network.first.weight.mul_(2)
    same(model, [0, 1], options)
    assert len(shapes) == 1
    model.network = Little()
    same(model, [0, 1], options)


def test_a_machine_that_cannot_compile_says_so(make, compiler, tmp_path, capsys, make_trainer):
    def broken(graph, examples):
        raise RuntimeError("no working C++ compiler found\nin many lines")

    compiler(broken)
    with refused(
        "compile", r"^compile cannot compile the network .* \(no working C\+\+ compiler found\): leave it out$"
    ):
        next(pd.generate(make(), [0], pd.Sampling(steps=1, compile=True)))
    make_trainer().fit(steps=1)
    words = ["sample", str(tmp_path / "run"), "--out", str(tmp_path / "out"), "--steps", "1", "--compile"]
    assert main(words) == 1
    assert "compile cannot compile the network on this machine (no working" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_switch_and_nothing_else(make):
    with refused("compile", "is True or False, not 'auto'"):
        pd.generate(make(), [0], pd.Sampling(compile="auto"))  # pyright: ignore[reportArgumentType]


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(), reason="needs a C++ compiler")
def test_with_the_compiler_of_torch(make):
    """It takes some ten seconds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # those of torch's own modules
        same(make(), range(3), pd.Sampling(steps=8, batch=2))
    torch._dynamo.reset()
