"""Do other networks than the U-Net learn the built-in digits by patches, with nothing else changed?

    python benchmarks/digits_networks.py dit --minutes 2 --out runs/dit
    python examples/recognise_digits.py runs/dit/generated

Trains with the settings of the preset ``digits``, but the optimizer of ``small``, and writes 300 samples.
"""

import argparse
from pathlib import Path

import torch

import patch_diffusion as pd
from patch_diffusion.presets import PRESETS


def dit() -> torch.nn.Module:
    return pd.DiT(1, width=64, depth=4, heads=2, token=2, dropout=0.0, num_classes=10)


def unet2d() -> torch.nn.Module:
    from diffusers.models.unets.unet_2d import UNet2DModel

    unet = UNet2DModel(
        in_channels=3,
        out_channels=1,
        num_class_embeds=11,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        norm_num_groups=8,
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    )
    return pd.DiffusersNetwork(unet, num_classes=10)


NETWORKS = {"dit": dit, "unet2d": unet2d}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("--minutes", type=float, default=2)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()

    preset = PRESETS["digits"]
    images = pd.open_images("digits")
    torch.manual_seed(0)
    denoiser = pd.Denoiser(NETWORKS[arguments.network](), images.standard_deviation)
    trainer = pd.Trainer(
        denoiser,
        images,
        pd.PatchSchedule(),
        out=arguments.out,
        batch=preset.batch,
        noise=preset.noise,
        optimizer=PRESETS["small"].optimizer,
        samples=0,
        checkpoints=1,
    )
    model = trainer.fit(minutes=arguments.minutes)
    pd.write_samples(pd.generate(model, range(300)), arguments.out / "generated", grid=arguments.out / "digits.png")


if __name__ == "__main__":
    main()
