"""Train image diffusion models from scratch by Patch Diffusion, and sample whole images from them.

>>> import patch_diffusion as pd
>>> images = pd.open_images("digits")  # a folder, a zip, an array, or the built-in digits
>>> network = pd.UNet(image_channels=1, width=16, multipliers=(1, 2))
>>> denoiser = pd.Denoiser(network, sigma_data=images.standard_deviation)
>>> trainer = pd.Trainer(denoiser, images, pd.PatchSchedule(whole=0.5), out="runs/first", batch=32, samples=0)
>>> model = trainer.fit(steps=20)  # continues a stopped run; pd.load("runs/first") opens it later
>>> next(pd.generate(model, seeds=[0])).save("pictures").name
'000000.png'

The names to begin with:

- Images: `open_images`, `ImageSet`.
- Training: `train` with a `Config`, or `Trainer` with a `Denoiser` of a `UNet` and a `PatchSchedule` of your own.
- Using a model: `load`, `generate` with `Sampling`, `edit`, `export_model`.
- Judging it: `describe`, `evaluate`, `race`. Other images by it: `detect`.
- Mistakes of the caller: `InputError`, whose message is one sentence.

The public names are imported when they are first used, so that ``import patch_diffusion`` is quick.
"""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .version import __version__ as __version__

if TYPE_CHECKING:
    from patch_diffusion.config import Config as Config
    from patch_diffusion.data.images import ImageBuckets as ImageBuckets, ImageSet as ImageSet
    from patch_diffusion.data.sources import open_images as open_images
    from patch_diffusion.denoise.denoiser import Denoiser as Denoiser
    from patch_diffusion.denoise.networks.adapters import DiffusersNetwork as DiffusersNetwork
    from patch_diffusion.denoise.networks.dit import DiT as DiT
    from patch_diffusion.denoise.networks.edm2 import EDM2UNet as EDM2UNet
    from patch_diffusion.denoise.networks.unet import UNet as UNet
    from patch_diffusion.denoise.objective import NoiseLevels as NoiseLevels, denoising_loss as denoising_loss
    from patch_diffusion.denoise.process import (
        EDM as EDM,
        VE as VE,
        VP as VP,
        Flow as Flow,
        XPrediction as XPrediction,
    )
    from patch_diffusion.denoise.velocity import as_flow as as_flow, from_flow as from_flow
    from patch_diffusion.denoise.whole_image import whole_image_loss as whole_image_loss
    from patch_diffusion.doctor.diagnose import diagnose as diagnose
    from patch_diffusion.doctor.report import Diagnosis as Diagnosis
    from patch_diffusion.errors import InputError as InputError
    from patch_diffusion.evaluation.detection.detect import Detection as Detection, Finding as Finding, detect as detect
    from patch_diffusion.evaluation.detection.options import DetectionOptions as DetectionOptions
    from patch_diffusion.evaluation.distances import (
        frechet_distance as frechet_distance,
        gaussian_of as gaussian_of,
        kernel_distance as kernel_distance,
    )
    from patch_diffusion.evaluation.evaluate import Evaluation as Evaluation, evaluate as evaluate
    from patch_diffusion.evaluation.extractors.choose import open_extractor as open_extractor
    from patch_diffusion.evaluation.extractors.extractor import Extractor as Extractor
    from patch_diffusion.evaluation.linear_floor import linear_floor as linear_floor
    from patch_diffusion.evaluation.meter import SampleMeter as SampleMeter
    from patch_diffusion.evaluation.neighbours import (
        density_coverage as density_coverage,
        precision_recall as precision_recall,
    )
    from patch_diffusion.evaluation.options import EvaluationOptions as EvaluationOptions
    from patch_diffusion.installation import environment as environment
    from patch_diffusion.interop.edm_import import import_model as import_model
    from patch_diffusion.interop.export import export_model as export_model
    from patch_diffusion.interop.prior import as_prior as as_prior
    from patch_diffusion.patches.coords import coordinate_grid as coordinate_grid
    from patch_diffusion.patches.crop import (
        Patch as Patch,
        random_patches as random_patches,
        whole_image as whole_image,
    )
    from patch_diffusion.patches.schedule import PatchSchedule as PatchSchedule
    from patch_diffusion.presets import PRESETS as PRESETS
    from patch_diffusion.races.race import race as race
    from patch_diffusion.runs.folder import describe as describe
    from patch_diffusion.runs.model import load as load
    from patch_diffusion.sampling.editing.edit import edit as edit
    from patch_diffusion.sampling.editing.image import read_image as read_image, read_mask as read_mask
    from patch_diffusion.sampling.editing.measurement import Measurement as Measurement
    from patch_diffusion.sampling.editing.tasks import (
        deblurring as deblurring,
        denoising as denoising,
        inpainting as inpainting,
        outpainting as outpainting,
        super_resolution as super_resolution,
    )
    from patch_diffusion.sampling.encode import decode as decode, encode as encode
    from patch_diffusion.sampling.fewest import fewest_steps as fewest_steps
    from patch_diffusion.sampling.folder import write_samples as write_samples
    from patch_diffusion.sampling.generate import Sample as Sample, generate as generate
    from patch_diffusion.sampling.likelihood import bits_per_dimension as bits_per_dimension, log_density as log_density
    from patch_diffusion.sampling.options import Sampling as Sampling
    from patch_diffusion.sampling.pictures import picture_grid as picture_grid
    from patch_diffusion.sampling.solvers import (
        SCHEDULES as SCHEDULES,
        dpm_solver_2m as dpm_solver_2m,
        dpm_solver_3m as dpm_solver_3m,
        euler as euler,
        exponential_sigmas as exponential_sigmas,
        few_sigmas as few_sigmas,
        flow_sigmas as flow_sigmas,
        heun as heun,
        karras_sigmas as karras_sigmas,
        unipc as unipc,
        ve_sigmas as ve_sigmas,
        vp_sigmas as vp_sigmas,
    )
    from patch_diffusion.sampling.stochastic import (
        SOLVERS as SOLVERS,
        ancestral as ancestral,
        consistency as consistency,
        euler_maruyama as euler_maruyama,
        stochastic_heun as stochastic_heun,
    )
    from patch_diffusion.training.train import train as train
    from patch_diffusion.training.trainer import Trainer as Trainer
    from patch_diffusion.training.tune import tune as tune
    from patch_diffusion.web.server import serve as serve

# What the type checker is told above is where the names are.
_MODULE_OF = {
    alias.name: str(node.module)
    for node in ast.walk(ast.parse(Path(__file__).read_text(encoding="utf-8")))
    if isinstance(node, ast.ImportFrom) and node.level == 0
    for alias in node.names
    if alias.asname
}

__all__ = sorted([*_MODULE_OF, "__version__"])  # pyright: ignore[reportUnsupportedDunderAll]


def __dir__() -> list[str]:
    return __all__


if not TYPE_CHECKING:  # a type checker that saw this would take every misspelt name for a public one

    def __getattr__(name: str) -> Any:
        if name not in _MODULE_OF:
            raise AttributeError(f"module 'patch_diffusion' has no attribute '{name}'")
        value = globals()[name] = getattr(import_module(_MODULE_OF[name]), name)
        return value
