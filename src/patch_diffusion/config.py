"""The typed options of a training, as given on the command line and as stored in its run folder.

There is one frozen dataclass per group; a field, a command-line option and a JSON key have the same name. This module
imports no heavy library, so that ``--help`` is quick. Ranges are checked by the objects that use the values.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import tyro

from patch_diffusion.errors import Checked, check_library
from patch_diffusion.records import Strict

Mode = Literal["auto", "L", "RGB", "RGBA", "RGB16"]
Fit = Literal["crop", "stretch", "bucket", "multiples"]
Layout = Literal["auto", "channels_first", "channels_last"]
Cache = Literal["auto", "memory", "disk"]
Kind = Literal["auto", "image", "labels"]


def _parse_shares(words: list[str]) -> dict[str, float]:
    pairs = [word.partition("=") for word in words]
    if any(not equals for _, equals, _ in pairs):
        raise ValueError(f"give each size its share, as in 1/2=0.6 1/4=0.4, not {' '.join(words)}")
    return {size: float(share) for size, _, share in pairs}


# On the command line: --patches.sizes 1/2=0.6 1/4=0.4
_SHARES = tyro.constructors.PrimitiveConstructorSpec(
    nargs="*",
    metavar="SIZE=SHARE ...",
    instance_from_str=_parse_shares,
    is_instance=lambda instance: isinstance(instance, dict),
    str_from_instance=lambda shares: [f"{size}={share:g}" for size, share in shares.items()],
)


@dataclass(frozen=True)
class Augment(Strict):
    """Augmentation of whole images, before patches are cropped from them."""

    flip: float = 0.0
    """Probability of flipping an image horizontally; generated images are flipped, too. Use 0.5 for symmetric
    images."""
    p: float = 0.0
    """Probability of each augmentation. The network is told of them, so generated images show none. Use 0.12 for small
    data sets."""
    resample: bool = True
    """Use rotation, scaling and stretching among the augmentations of data.augment.p; flips and shifts by whole pixels
    are always among them."""
    colour: bool = False
    """Use changes of colour among the augmentations of data.augment.p, too."""


@dataclass(frozen=True)
class Data(Strict):
    """The training images, and how they are read."""

    source: Annotated[str, tyro.conf.Suppress] = ""
    """The data set that the images are read from, see `open_images`; DATA on the command line."""
    resolution: Annotated[int | tuple[int, int] | None, tyro.conf.arg(aliases=["--resolution"])] = None
    """Size that images are resized to, in pixels: one number for squares, or height and width. Default: the images' own
    size, if all have the same."""
    classes: bool | None = None
    """Train with class labels: those of the data, or else the names of the sub-folders. Default: True if the data has
    labels; names of sub-folders count only with True."""
    mode: Mode = "auto"
    """Channels of the images: L is grey, RGBA has transparency, RGB16 keeps colour TIFFs of 16 bits as they are. auto:
    L if all files are grey, RGBA if all have transparency, else RGB."""
    fit: Fit = "crop"
    """Handling of other aspect ratios. crop: cut off the edges. stretch: distort. bucket: train on several shapes of
    about equal area, each image cropped to the nearest. multiples: bucket as in earlier versions, for runs made with
    them."""
    range: tuple[float, float] | None = None
    """Pixel values that become -1 and 1 in the network. Default: the full range of whole-number types, or the range
    found in the data for floats."""
    labels: str | None = None
    """Source of the class labels: a CSV file with a first line file,label, or the name of an array or column."""
    conditions: tuple[str, ...] | None = None
    """Conditions: numbers, words or vectors that the model is told of each image, so that samples can be asked for by
    them. A CSV file with a column file, then the columns to use, by default all; or columns of the data, or an .npy.
    Numbers are continuous, words are categories."""
    paired: tuple[str, ...] | None = None
    """Inputs to make images from: a folder, zip, array or column with an image of the same name for each image, as for
    super-resolution, from one contrast to another, or from label maps. Several inputs: several names."""
    paired_kind: Kind = "auto"
    """Kind of the paired inputs. image: pictures or values. labels: maps of categories, as palette images are. auto:
    labels if all are palette images."""
    group: str | None = None
    """Group of each image; a group is held out as a whole. folder: one group for each folder. A pattern with
    parentheses, such as 'patient-([0-9]+)': one for each text that it captures in file names. Else: the name of a
    column."""
    key: str | None = None
    """Name of the images in the data: an array in a file, a column of a table, or a file ending in shards."""
    layout: Layout = "auto"
    """Position of the channel axis in arrays. auto: detected from the shape."""
    cache: Cache = "auto"
    """Place for decoded images: in memory, or memory-mapped on disk. auto: on disk if they are many."""
    held_out: Annotated[float | None, tyro.conf.arg(aliases=["--held-out"])] = None
    """Share of the images to hold out for validation, at least 64 images; their loss is in the log. Default: 0.05, or 0
    for fewer than 640 images; a continued run keeps its own."""
    augment: Augment = Augment()


@dataclass(frozen=True)
class Patches(Strict):
    """The schedule of patch sizes to train on: whole images and random patches of them."""

    whole: float = 0.5
    """Probability that a training step uses whole images instead of patches. Where train chooses the network, it takes
    0.25 for images of 64 x 64 pixels and more, if you give no other."""
    sizes: Annotated[dict[str, float], _SHARES] = field(default_factory=lambda: {"1/2": 3 / 5, "1/4": 2 / 5})
    """Patch sizes, each with its share of the steps on patches. A size is a fraction of the image (1/2) or pixels of
    the shorter side (32)."""
    kind: Literal["stochastic", "progressive"] = "stochastic"
    """Order of the sizes. stochastic: a random size at each step. progressive: from small patches to whole images, each
    size for its share of the budget."""
    growth: Literal["linear", "area", "none"] = "linear"
    """Growth of the batch at steps on patches, for images of side R and patches of side s. linear: R/s times as many.
    area: (R/s)^2 times, for equal numbers of pixels. none: the same number."""
    weight: Literal["patch", "area"] = "patch"
    """Weight of a patch in the loss. patch: mean over its pixels. area: sum over its pixels, as in the published
    implementation."""
    coords: bool = True
    """Give the network the position of each pixel in the image, as two more input channels."""
    context: int | None = None
    """Shorter side, in pixels, of a small copy of the whole image that the network sees beside each patch. It lets you
    train without whole images (patches.whole 0), at a cost that does not grow with the image size. Sampling makes the
    small copy first. Default: no small copy."""


@dataclass(frozen=True)
class Noise(Strict):
    """The noise process, the noise levels of training, and the range of noise levels in sampling."""

    p_mean: float | None = None
    """Mean of ln(sigma), the logarithm of the noise level, in training. Default: 0 for edm with the weight learned,
    else the process's own, -1.2 for edm, 0.8 for x_prediction, 0 for flow."""
    p_std: float | None = None
    """Standard deviation of ln(sigma) in training. Default: 1.6 for edm with the weight learned, else the process's
    own, 1.2 for edm, 0.8 for x_prediction, 1 for flow."""
    process: Literal["edm", "ve", "vp", "x_prediction", "flow"] = "edm"
    """Noise process and preconditioning. edm: EDM. ve: variance exploding. vp: variance preserving. x_prediction: the
    network predicts the clean image, and noise.weight process weights the loss as one of velocity. flow: flow matching,
    whose network learns the velocity of straight paths from images to noise."""
    weight: Literal["process", "learned"] = "learned"
    """Weight of each noise level in the loss. process: as published. learned: all levels contribute equally, as each
    loss is divided by its running mean at that noise level and patch size."""
    sigma_data: float | None = None
    """Standard deviation of the images, scaled to [-1, 1]. Default: measured on the data, about noise.mean_data if that
    is set."""
    sigma_min: float | None = None
    """Lowest noise level in sampling. Default: the process's own, 0.002 for edm."""
    sigma_max: float | None = None
    """Highest noise level in sampling. Default: the process's own, 80 for edm, pure noise for flow."""
    mean_data: tuple[float, ...] | None = None
    """Mean of the images, scaled to [-1, 1]: one number, or one for each channel. It is subtracted from what the
    network sees, and sampling starts from it. Default: 0."""
    levels: tuple[float, ...] | None = None
    """Noise levels, in rising order, at which the log reports losses; learned weights are kept at them, too. Default:
    0.05 to 6.4."""


@dataclass(frozen=True)
class Network(Strict):
    """The architecture of the network."""

    kind: Literal["ddpmpp", "ncsnpp", "adm", "edm2", "dit", "diffusers", "custom"] = "ddpmpp"
    """Architecture. ddpmpp, ncsnpp, adm: published U-Nets. edm2: the magnitude-preserving U-Net of EDM2. dit: a
    transformer. diffusers: the U-Net of a pipeline of diffusers, only with --from. custom: your own network, only in
    Python."""
    width: int | None = None
    """Number of channels at full resolution, or of each token for dit. Default: chosen for the budget; a preset has its
    own."""
    dropout: float | None = None
    """Dropout probability. Default: 0."""
    label_dropout: float | None = None
    """Probability of training without the class label, or without a condition; guidance by them in sampling needs it
    above 0. Default: 0.1."""
    multipliers: tuple[int, ...] | None = None
    """Channels of each U-Net level, as multiples of the width. Each level after the first halves height and width.
    Default: 1 2 4; more levels for large images."""
    blocks: int | None = None
    """Number of residual blocks in each U-Net level. Default: chosen with the width."""
    attention: tuple[int, ...] | None = None
    """U-Net levels with self-attention; 0 is full resolution. Default: 2; the level above the lowest, if you give
    multipliers."""
    depth: int | None = None
    """Number of layers of a dit. Default: chosen with the width."""
    heads: int | None = None
    """Number of attention heads of a dit. Default: chosen with the width."""
    token: int | None = None
    """Side of a token (patch embedding) of a dit, in pixels. Default: 2."""
    unet: Annotated[dict[str, Any] | None, tyro.conf.Suppress] = None
    """The network of network.kind diffusers, see `TimestepUNet`: read from the pipeline by --from."""


def _check_optimizer(kind: str) -> None:
    if kind == "schedule_free":
        check_library("schedulefree", "schedule-free", "optimizer.kind schedule_free")


def _check_lora(rank: int) -> None:
    check_library("peft", "lora", f"optimizer.lora {rank}")


@dataclass(frozen=True)
class Optimizer(Strict):
    """The optimizer and its learning rate schedule."""

    kind: Annotated[Literal["adamw", "muon", "schedule_free"], Checked(_check_optimizer)] = "muon"
    """Optimizer. muon: Muon for convolutions and matrices, AdamW for the rest; it learns more from each image.
    schedule_free: AdamW that needs no decay and averages weights itself; it needs the extra schedule-free."""
    learning_rate: float | None = None
    """Peak learning rate. Default: 0.005 for muon, 0.001 for the others; for network.kind edm2, 0.05 and 0.01."""
    betas: tuple[float, float] | None = None
    """Decay rates of the two moments of AdamW. The first is also the momentum of Muon, and the interpolation weight of
    schedule_free. Default: 0.95 0.99 for muon, 0.9 0.99 for the others."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    clip: float | None = None
    """Largest norm of the gradients; larger gradients are scaled down to it. Default: no clipping."""
    warmup: float = 0.02
    """Fraction of the budget over which the learning rate rises from 0 to its peak."""
    decay: Literal["cosine", "linear", "constant"] | None = None
    """Shape of the learning rate after warm-up: down to 0 at the end of the budget, or constant. Default: cosine for
    adamw, linear for muon, constant for schedule_free, which takes no other."""
    only: tuple[str, ...] | None = None
    """Parts of the network to train, while the others stay as they are: attention, norms, embeddings, first, last,
    encoder, middle, decoder, or blocks of a dit. Default: all."""
    lora: Annotated[int | None, Checked(_check_lora)] = None
    """Rank of low-rank updates (LoRA) to train instead of the weights; the model is saved with them added. It needs the
    extra lora. Default: train the weights."""


@dataclass(frozen=True)
class Ema(Strict):
    """The exponential moving average (EMA) of the weights, which samples are made with."""

    half_life_images: float = 500_000
    """Half-life of the average, in training images: after so many, the share of earlier weights has halved."""
    ramp: float = 0.05
    """Upper limit of the half-life, as a fraction of the images seen so far; it makes short runs average well."""
    lengths: tuple[float, ...] = ()
    """Lengths of further averages (power-function EMA) to keep in checkpoints, such as 0.05 0.1. Other lengths can be
    made from them afterwards; with ten checkpoints or more these are accurate."""


@dataclass(frozen=True)
class Engine(Strict):
    """The hardware that training uses: device, processes, precision and memory."""

    device: str = "auto"
    """Device to train on: auto, cpu, cuda, cuda:1 or mps. auto: a GPU if there is one."""
    threads: int | None = None
    """Number of CPU threads of each process; they share each batch. Default: one for each core."""
    processes: int | None = None
    """Number of training processes on this machine, one for each GPU; they share each batch. Default: 1, or the number
    that torchrun sets."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format of the network's computations; the weights stay fp32. auto: bf16 on CUDA GPUs that support it, fp16
    on others, and fp32 elsewhere; train also takes bf16 for images of 64 pixels or more on CPUs that support it."""
    compile: bool | Literal["auto"] = False
    """Compile the network with torch.compile, once for each patch size; this takes minutes at the start. auto: only if
    a compiled pass agrees with a usual one, and else train without."""
    recompute: bool = False
    """Compute each block of the network again in the backward pass, which takes less memory and about a third more
    computing."""
    accumulation: int | Literal["auto"] = 1
    """Number of microbatches that each process splits its share of a batch into, to save memory. auto: as few as fit
    into memory."""
    shard: bool = False
    """Split weights, gradients, optimizer state and averages among the processes (FSDP2), for models that are too large
    for one device."""


@dataclass(frozen=True)
class Watch(Strict):
    """Metrics of samples, measured during training against the training images."""

    metrics: tuple[Literal["frechet", "kernel", "memorization"], ...] = ()
    """Metrics of samples to measure during training. frechet, kernel: distances to the training images (FID and KID,
    with the extractor inception). memorization: the share of samples that copy training images."""
    times: int = 5
    """Number of measurements, evenly spaced over the budget. Their time does not count in the minutes of the budget."""
    samples: int = 500
    """Number of samples in each measurement; the seeds are always the same."""
    extractor: str = "random"
    """Feature extractor: random, inception, dinov2 or a file, as for evaluate."""


@dataclass(frozen=True)
class Config(Strict):
    """All options of a training: data, patches, network, optimizer, budget and so on.

    There are nested groups of options, a budget (``steps``, ``images``, ``minutes`` or ``wall_minutes``), and options
    for checkpoints and logs. `train` takes a config, ``config.json`` in a run folder holds one, and the command line's
    options have the same names. Values are checked where they are used, with an `InputError`. See also `PRESETS`.

    >>> Config(batch=16, steps=100).patches.whole
    0.5
    """

    data: Data = Data()
    patches: Patches = field(default_factory=Patches)
    noise: Noise = Noise()
    network: Network = Network()
    optimizer: Optimizer = Optimizer()
    ema: Ema = Ema()
    engine: Engine = Engine()
    watch: Watch = Watch()

    batch: int | Literal["auto"] = "auto"
    """Batch size, in whole images. Steps on patches use larger batches, see patches.growth. auto: the preset's batch
    size or, without one, a size that suits network, budget and machine; in as many microbatches as memory requires."""
    few_steps: int | None = None
    """Number of sampling steps to train the model for, by consistency training: 1, 2 or 4. The command tune does it
    from a trained model. Default: ordinary training."""
    batch_pixels: int | None = None
    """Limit of the number of pixels in a step. For large images it lowers the preset's batch size and share of
    whole-image steps. It has no effect if you set batch. Default: no limit."""
    start: Annotated[str | None, tyro.conf.arg(name="from", metavar="SOURCE")] = None
    """Model to train on from: a run, one of its checkpoints, or RUN:best, RUN:step:400 or RUN:ema:0.05; a published EDM
    or Patch-Diffusion file; or a folder of a diffusers pipeline with a UNet2DModel. Default: random weights."""
    seed: int = 0
    """Seed of all random numbers."""
    steps: int | None = None
    """Budget in training steps."""
    images: int | None = None
    """Budget in training images, counted each time one is used."""
    minutes: float | None = None
    """Budget in minutes of training, over all continuations. Validation and sample pictures come on top, at most 5
    %."""
    wall_minutes: float | None = None
    """Budget in minutes of real time, over all continuations. It includes reading the data, validation, and the last
    checkpoint."""
    checkpoints: int = 10
    """Number of checkpoints to keep, evenly spaced over the budget."""
    checkpoint_minutes: float = 10.0
    """Longest time between two saved checkpoints, in minutes. A checkpoint that is not one of those to keep is replaced
    by the next."""
    checkpoint_steps: int | None = None
    """Number of steps after which a further checkpoint is saved and kept, each time."""
    checkpoint_last: int = 1
    """Number of newest checkpoints to keep in any case."""
    checkpoint_best: bool = False
    """Keep only the best checkpoint and the newest ones."""
    checkpoint_by: Literal["loss", "frechet", "kernel"] = "loss"
    """Measure of the best checkpoint: the lowest validation loss, or the lowest value of one of watch.metrics, which
    then saves a checkpoint at each measurement."""
    watchdog: Literal["restore", "stop", "off"] = "restore"
    """Reaction to a failing training, such as one whose loss explodes. restore: go back to the last good checkpoint at
    half the learning rate, and stop if it fails again. stop: stop at once. off: only warn."""
    samples: int = 10
    """Number of times to save a picture of samples, evenly spaced over the budget."""
    log_every: int = 20
    """Number of steps between two lines of log.jsonl."""
    track: tuple[Literal["tensorboard", "wandb", "trackio"], ...] | None = None
    """Experiment trackers to log to; the option without a name turns them off. Default: tensorboard, if it is
    installed."""


BUDGETS = ("steps", "images", "minutes", "wall_minutes")
"""The names of the options that set the training budget; only one of them counts."""
