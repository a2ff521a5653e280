"""Training, sampling and editing on a GPU that is not there: no step waits for it, and nothing is asked that it lacks.

Each case is run on a pretended device of CUDA and of Apple, see `pretended`. A training step has no event. What else
may have one is listed below, with the reason.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

import patch_diffusion as pd
import pretended
from needs import need
from patch_diffusion.config import Ema, Engine, Optimizer, Watch
from patch_diffusion.data.augment import Augment
from patch_diffusion.data.codec import DTYPES, PixelCodec
from patch_diffusion.data.images import Images
from patch_diffusion.data.latents.codec import LatentCodec
from patch_diffusion.data.latents.folder import LatentSet
from patch_diffusion.denoise.denoiser import place
from patch_diffusion.denoise.networks.dit import DiT
from patch_diffusion.denoise.objective import NoiseLevels
from patch_diffusion.denoise.process import EDM, VE, VP, Process
from patch_diffusion.sampling.editing.tasks import deblurring, denoising, inpainting, outpainting, super_resolution
from patch_diffusion.sampling.options import Sampling
from patch_diffusion.training.hardware import feed
from pretended import GENERATOR, MIXED, NO_TYPE, READS_BACK, SYNCHRONIZES, TO_DEVICE, UNSAFE, Record, told

DEVICES = ("cuda", "mps")
STAGED = 512
"""Fewer bytes than CUDA takes over at once, so that what grows with the batch is seen in a small one."""

ONCE_A_TRAINING = {
    (TO_DEVICE, "training/hardware/feed.py _copied"): "images that fit are copied to the device, in pieces",
    (TO_DEVICE, "denoise/denoiser.py place"): "the weights",
    (TO_DEVICE, "training/losses.py __init__"): "the noise levels of the log",
    (SYNCHRONIZES, "training/hardware/engine.py synchronize"): "the clock stops once the work is done",
}
AT_A_LINE_OF_THE_LOG = {
    (READS_BACK, "training/losses.py _values"): "the losses since the last line, also for a checkpoint",
}
AT_A_CHECKPOINT = {
    (READS_BACK, "training/checkpoints/checkpoint.py of"): "copies, written while training goes on",
    (READS_BACK, "training/losses.py state"): "the running means of learned weights",
    (READS_BACK, "training/state.py state"): "the scale of gradients in fp16",
}
AT_A_CONTINUATION = {
    (TO_DEVICE, "runs/model.py restore_weights"): "the weights and their averages",
    (TO_DEVICE, "training/state.py restore_optimizer"): "the moments of the optimizer",
    (TO_DEVICE, "training/losses.py restore"): "the losses since the last line of the log",
}
WHILE_TRAINING = {**ONCE_A_TRAINING, **AT_A_LINE_OF_THE_LOG, **AT_A_CHECKPOINT}
A_BATCH_OF_SAMPLES = {
    (READS_BACK, "sampling/generate.py run"): "the finished pixels",
    (READS_BACK, "data/codec.py decode"): "the same, where the device lacks their type",
    (READS_BACK, "data/codec.py check_finite"): "are all of them finite?",
}
AT_AN_EVALUATION = {
    (READS_BACK, "denoise/whole_image.py losses_of_images"): "the losses of held-out images",
    (READS_BACK, "evaluation/extractors/extractor.py __call__"): "the features of samples",
    (TO_DEVICE, "evaluation/extractors/extractor.py __call__"): "the samples",
    (TO_DEVICE, "evaluation/extractors/random_convolutions.py filters"): "the weights of the extractor, once",
}
A_BATCH_OF_EDITS = {
    (READS_BACK, "sampling/editing/edit.py run"): "the finished pixels",
    (READS_BACK, "data/codec.py decode"): "the same, where the device lacks their type",
    (READS_BACK, "data/codec.py check_finite"): "are all of them finite?",
    (READS_BACK, "sampling/guidance/posterior.py conjugate_gradients"): "a solver that ends once it is exact enough",
}
GIVEN = {
    (TO_DEVICE, "sampling/encode.py encode"): "the images",
    (TO_DEVICE, "sampling/likelihood.py bits_per_dimension"): "the images and the probes",
    (TO_DEVICE, "sampling/likelihood.py log_density"): "constants of a solver",
    (READS_BACK, "sampling/likelihood.py log_density"): "a solver that chooses its steps by their errors",
    (READS_BACK, "denoise/whole_image.py losses_of_images"): "the losses of a batch",
    (READS_BACK, "data/codec.py check_finite"): "are all of them finite?",
}


SLOW = ("diffusers' network, adamw, fp16, progressive sizes", "augmentation without interpolation, read ahead")
SLOW += ("euler", "dpm_solver_2m", "another model", "outpainting", "deblurring")


def named(cases):
    """Return parameters by the names of cases; those that show little that others do not are slow tests."""
    return pytest.mark.parametrize(
        "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in cases]
    )


@pytest.fixture(params=DEVICES)
def device(request):
    """A kind of device that can be pretended here."""
    if reason := pretended.why_not(request.param):
        pytest.skip(reason)
    return request.param


def random_images(channels=3, size=(16, 16), dtype="uint8", num=48):
    """Random images of two classes."""
    random = torch.Generator().manual_seed(0)
    pixels = torch.rand(num, channels, *size, generator=random)
    codec = PixelCodec(dtype, 0.0, {"uint8": 255.0, "uint16": 65535.0, "float32": 1.0}[dtype])
    return pd.ImageSet((pixels * codec.range[1]).to(DTYPES[dtype]), torch.arange(num) % 2, codec=codec)


def buckets():
    """Images of two sizes."""
    return pd.ImageBuckets((random_images(size=(16, 12)), random_images(size=(12, 16))))


LATENT_CODEC = LatentCodec((0.0,) * 3, (1.0,) * 3, posterior=True, factor=8, vae="nowhere")


def latents():
    """Latents with the standard deviations of a posterior."""
    return LatentSet(torch.rand(48, 6, 16, 16).half(), codec=LATENT_CODEC)


def unet(channels=3, **options):
    """A U-Net of the smallest size."""
    return pd.UNet(channels, **{"width": 8, "multipliers": (1, 2), "blocks": 1, **options})


def diffusers_unet():
    """A network of diffusers."""
    need("diffusers", "hub")
    from diffusers.models.unets.unet_2d import UNet2DModel

    network = UNet2DModel(
        in_channels=5,
        out_channels=3,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    return pd.DiffusersNetwork(network)


@dataclass(frozen=True)
class Training:
    """A training on a pretended device.

    ``half`` is the number format of CUDA; Apple GPUs get bf16. If it ``reads_ahead``, images do not fit the device, and
    are read from the host. ``schedule`` and ``options`` are those of a trainer.
    """

    network: Callable[[], torch.nn.Module] = unet
    images: Callable[[], Images] = random_images
    process: Process = field(default_factory=EDM)
    half: str = "bf16"
    mean_data: tuple[float, ...] | None = None
    reads_ahead: bool = False
    accumulation: int | str = 1
    recompute: bool = False
    schedule: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def trainer(self, device: str, out: Any) -> pd.Trainer:
        """Make the trainer."""
        torch.manual_seed(0)
        precision = self.half if device == "cuda" or self.half == "fp32" else "bf16"
        usual = {"batch": 12, "samples": 0, "checkpoints": 1, "log_every": 2, "show": False, "track": ()}
        return pd.Trainer(
            pd.Denoiser(self.network(), 0.5, process=self.process, mean_data=self.mean_data),
            self.images(),
            pd.PatchSchedule(**{"sizes": {"1/2": 1.0}, **self.schedule}),
            out=out,
            engine=Engine(device=device, precision=precision, accumulation=self.accumulation, recompute=self.recompute),
            **{**usual, **self.options},
        )


CONTEXT = {"whole": 0.3, "context": 8}
TRAININGS = {
    "ddpmpp, adamw, bf16, classes, averages of lengths": Training(
        lambda: unet(num_classes=2), options={"ema": Ema(lengths=(0.05, 0.1))}
    ),
    "ncsnpp, muon, fp16, learned weights": Training(
        lambda: unet(kind="ncsnpp", num_classes=2),
        half="fp16",
        options={"optimizer": Optimizer(kind="muon"), "noise": NoiseLevels(weight="learned")},
    ),
    "adm, schedule_free, fp32, read ahead": Training(
        lambda: pd.UNet(3, 64, (1,), 1, kind="adm"),
        process=VP(),
        half="fp32",
        reads_ahead=True,
        options={"optimizer": Optimizer(kind="schedule_free")},
    ),
    "dit, muon, accumulation, buckets, dropout": Training(
        lambda: DiT(3, 32, 2, 2, num_classes=2),
        images=buckets,
        process=VE(),
        accumulation=3,
        options={"optimizer": Optimizer(kind="muon")},
    ),
    "diffusers' network, adamw, fp16, progressive sizes": Training(
        diffusers_unet, half="fp16", mean_data=(0.1, 0.2, 0.3), schedule={"kind": "progressive"}
    ),
    "augmentation, colour": Training(
        lambda: unet(augment_channels=15), options={"augment": Augment(flip=0.5, p=0.9, colour=True)}
    ),
    "augmentation without interpolation, read ahead": Training(
        lambda: unet(augment_channels=9), reads_ahead=True, options={"augment": Augment(p=0.9, resample=False)}
    ),
    "uint16": Training(lambda: unet(1), lambda: random_images(1, dtype="uint16")),
    "uint16, flip, context, read ahead": Training(
        lambda: unet(1, context=True),
        lambda: random_images(1, dtype="uint16"),
        reads_ahead=True,
        schedule=CONTEXT,
        options={"augment": Augment(flip=0.5)},
    ),
    "float32, context": Training(lambda: unet(context=True), lambda: random_images(dtype="float32"), schedule=CONTEXT),
    "latents, accumulation auto": Training(images=latents, accumulation="auto"),
    "schedule_free, fp16, blocks computed again": Training(
        half="fp16", recompute=True, options={"optimizer": Optimizer(kind="schedule_free")}
    ),
}


@named(TRAININGS)
def test_a_step_waits_for_nothing(device, name, tmp_path, monkeypatch):
    case = TRAININGS[name]
    if case.reads_ahead:
        monkeypatch.setattr(feed, "SHARE_OF_DEVICE", 0.0)
    with pretended.pretended(device, staged=STAGED) as record:
        trainer = case.trainer(device, tmp_path / "run")
        only(record, ONCE_A_TRAINING)
        sizes = set()
        for spent in (0.1, 0.5, 0.9):
            sizes.add(trainer.train_step(spent)[0])
            only(record, {(TO_DEVICE, "training/hardware/feed.py _copied"): ONCE_A_TRAINING})
        assert len(sizes) > 1, "steps on patches and on whole images"
        trainer.fit(steps=4)
        only(record, WHILE_TRAINING)


def test_continuing_waits_for_what_it_reads(device, tmp_path):
    case = TRAININGS["ncsnpp, muon, fp16, learned weights"]
    with pretended.pretended(device, staged=STAGED) as record:
        case.trainer(device, tmp_path / "run").fit(steps=2)
        record.take()
        trainer = case.trainer(device, tmp_path / "run")
        trainer.fit(steps=3)
        assert trainer.state.counters.step == 3
        only(record, {**WHILE_TRAINING, **AT_A_CONTINUATION})
        assert pd.load(tmp_path / "run", device=device).device.type == device
        only(record, {**ONCE_A_TRAINING, **AT_A_CONTINUATION})


@pytest.mark.slow
def test_evaluations_wait_for_what_they_show(device, tmp_path):
    case = Training(
        lambda: unet(multipliers=(1,), attention=()),
        options={"samples": 1, "held_out": random_images(num=8), "watch": Watch(("memorization",), 1, 8)},
    )
    with pretended.pretended(device, staged=STAGED) as record:
        case.trainer(device, tmp_path / "run").fit(steps=2)
        only(record, {**WHILE_TRAINING, **A_BATCH_OF_SAMPLES, **AT_AN_EVALUATION})


@pytest.fixture
def make_model(device):
    """``make_model()``: a model of 8 x 12 pictures of two classes, to be called where a device is pretended."""

    def make(**options):
        torch.manual_seed(0)
        network = unet(num_classes=2, label_dropout=0.1, dropout=0.0, context="context" in options)
        return place(pd.Denoiser(network, 0.5, resolution=(8, 12), **options), torch.device(device)).eval()

    return make


GUIDED = {"guidance": 2.0, "steps": 2}
SAMPLINGS = {
    **{solver: {"solver": solver} for solver in ("euler", "heun", "dpm_solver_2m", "dpm_solver_3m", "unipc")},
    **{solver: {"solver": solver} for solver in ("euler_maruyama", "stochastic_heun", "ancestral")},
    "class": {**GUIDED, "guidance_interval": (0.1, 90.0)},
    "crops": {**GUIDED, "guide": "crops"},
    "another model": {**GUIDED, "guide": None},
    "half precision": {"precision": "bf16"},
    "tiles": {"resolution": (16, 16), "tile": 8, "overlap": 2, "batch": 12, "solver": "ancestral", "steps": 2},
}
MODELS = {
    "euler_maruyama": {"process": VP()},
    "context": {"context": 4},
    "16 bits": {"codec": PixelCodec("uint16"), "mean_data": (0.1, 0.2, 0.3)},
    "latents": {"codec": LATENT_CODEC},
}


@named([*SAMPLINGS, "context", "16 bits", "latents"])
def test_a_batch_of_samples_is_read_once(device, make_model, name):
    options = {"steps": 3, "batch": 3, **SAMPLINGS.get(name, {"steps": 2})}
    with pretended.pretended(device, staged=STAGED) as record:
        model = make_model(**MODELS.get(name, {}))
        if options.get("guide", "") is None:
            options["guide"] = make_model()
        record.take()
        assert len(list(pd.generate(model, range(6), Sampling(**options)))) == 6
        places = Counter(event.where for event in only(record, A_BATCH_OF_SAMPLES))
        assert places.pop("data/codec.py check_finite") == places.total() == 2, places


IMAGE = random_images(size=(8, 12)).pixels[0]
MASK = torch.arange(8 * 12).view(8, 12) < 30
EDITS = {
    "inpainting": (lambda model: inpainting(IMAGE, MASK), {}),
    "outpainting": (lambda model: outpainting(IMAGE, {"left": 4}), {}),
    "super-resolution": (lambda model: super_resolution(model, IMAGE[:, :4, :6]), {}),
    "deblurring": (lambda model: deblurring(model, IMAGE, blur=0.8), {}),
    "denoising, guided": (lambda model: denoising(IMAGE, noise=20.0), {"guidance": 2.0, "guide": "crops"}),
}


@named(EDITS)
def test_an_edit_is_read_once(device, make_model, name):
    known, options = EDITS[name]
    with pretended.pretended(device, staged=STAGED) as record:
        model = make_model()
        measurement = known(model)
        record.take()
        assert len(list(pd.edit(model, measurement, range(2), Sampling(steps=2, **options)))) == 2
        only(record, A_BATCH_OF_EDITS)


@pytest.mark.slow
def test_the_flow_both_ways_and_the_loss_of_whole_images(device, make_model):
    need("torchdiffeq", "likelihood")
    with pretended.pretended(device, staged=STAGED) as record:
        model = make_model()
        record.take()
        noise = pd.encode(model, torch.zeros(2, 3, 8, 12), steps=3)
        pd.decode(model, noise, steps=3)
        pd.bits_per_dimension(model, IMAGE[None], tolerance=1.0)
        pd.whole_image_loss(model, random_images(size=(8, 12), num=4), sigmas=(0.1, 1.0))
        only(record, GIVEN)


def test_what_a_gpu_would_wait_for_is_seen(device):
    """Each kind of event, so that no other test is green because the device is blind."""
    with pretended.pretended(device) as record:
        there, here = torch.rand(4, device=device), torch.rand(4)

        def kinds(action: Callable[[], object]) -> set[str]:
            action()
            return {event.kind for event in record.take()}

        for read in (
            lambda: there[0].item(),
            lambda: there.tolist(),
            lambda: bool(there[0] > 0),
            lambda: there.nonzero(),
            lambda: there[there > 0],
            lambda: there.cpu(),
            lambda: here.copy_(there),
            lambda: torch.equal(there, there),
        ):
            assert kinds(read) == {READS_BACK}
        assert kinds(lambda: there + here) == {MIXED}
        assert kinds(lambda: torch.rand(2, device=device, generator=torch.Generator())) == {GENERATOR}
        assert not kinds(lambda: torch.rand(2, device=device, generator=torch.Generator(device)))
        assert not kinds(lambda: (there * 2 + torch.tensor(1.0)).clamp(min=there.mean()).to(torch.float16))
        waits, queued = kinds(lambda: here.to(device)), kinds(lambda: here.to(device, non_blocking=True))
        large = kinds(lambda: torch.rand(2**15).to(device, non_blocking=True))
        sixteen_bits = torch.zeros(4, dtype=torch.uint16)
        if device == "cuda":
            assert waits == {TO_DEVICE} and not queued and large == {TO_DEVICE}
            assert not kinds(lambda: torch.rand(2**15).pin_memory().to(device, non_blocking=True))
            assert not kinds(lambda: there.double())
            held = sixteen_bits.pin_memory().to(device, non_blocking=True)
            assert not kinds(lambda: held.view(torch.int16)[torch.zeros(2, dtype=torch.long, device=device)])
            assert kinds(lambda: held[torch.zeros(2, dtype=torch.long, device=device)]) == {NO_TYPE}
        else:
            assert not waits and queued == large == {UNSAFE}
            assert kinds(there.double) == kinds(lambda: sixteen_bits.to(device)) == {NO_TYPE}


def test_numbers_on_the_device_are_those_of_the_host(device):
    def made(device):
        torch.manual_seed(0)
        model = pd.Denoiser(unet(), 0.5, resolution=(8, 12)).to(device).eval()
        return next(pd.generate(model, [0], Sampling(steps=3, solver="euler"))).pixels

    here = made("cpu")
    with pretended.pretended(device):
        assert (made(device).int() - here.int()).abs().max() <= 1


def only(record: Record, allowed):
    """Return the events since the last call, and fail if there are others than those that are allowed."""
    events = record.take()
    others = [event for event in events if event[:2] not in allowed]
    assert not others, f"\n{told(others)}"
    return events
