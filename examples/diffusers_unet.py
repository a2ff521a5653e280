"""A network of another library: a UNet2DModel of diffusers, trained by patches and handed back to diffusers.

    python examples/diffusers_unet.py --minutes 5

The patches are cut outside of the network, so all it needs are two more input channels, for the coordinates of the
pixels. The same goes for any torch.nn.Module of yours, see docs/any-network.md. Needs diffusers:
pip install 'patch_diffusion[hub]'.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from diffusers.models.unets.unet_2d import UNet2DModel

import patch_diffusion as pd


def build(images: pd.ImageSet | pd.ImageBuckets, width: int) -> pd.DiffusersNetwork:
    """A network for such images, and their classes if they have any."""
    unet = UNet2DModel(
        in_channels=images.channels + 2,
        out_channels=images.channels,
        num_class_embeds=images.num_classes + 1 if images.num_classes else None,  # one for "no class"
        block_out_channels=(width, 2 * width, 4 * width),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
    )
    return pd.DiffusersNetwork(unet, num_classes=images.num_classes)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", default="digits", metavar="DATA", help="images of one size")
    parser.add_argument("--out", type=Path, default=Path("runs/unet2d"), metavar="RUN")
    parser.add_argument("--minutes", type=float, default=5.0, help="of training")
    parser.add_argument("--width", type=int, default=16, metavar="CHANNELS", help="at full resolution")
    parser.add_argument("--samples", type=int, default=20, metavar="N")
    options = parser.parse_args(words)

    images = pd.open_images(options.data)
    denoiser = pd.Denoiser(build(images, options.width), sigma_data=images.standard_deviation)
    trainer = pd.Trainer(denoiser, images, pd.PatchSchedule(whole=0.5), out=options.out, batch=32)
    trainer.fit(minutes=options.minutes)

    # The run holds the weights of the module, not its code: hence the same network to open it again.
    model = pd.load(options.out, network=build(images, options.width))
    samples = pd.generate(model, range(options.samples))
    pd.write_samples(samples, options.out / "pictures", grid=options.out / "grid.png")
    model.module.unet.save_pretrained(options.out / "unet")  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    same = UNet2DModel.from_pretrained(options.out / "unet")
    print(f"pictures are in {options.out / 'grid.png'}")
    print(f"diffusers opens {options.out / 'unet'}, a network of {same.num_parameters():,} weights")


if __name__ == "__main__":
    main()
