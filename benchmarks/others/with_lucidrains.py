"""The training of the README of denoising-diffusion-pytorch (lucidrains), at 64 x 64; see `against_others.py`.

Its settings are those of "Usage" in https://github.com/lucidrains/denoising-diffusion-pytorch, its ``Trainer`` on a
folder of images: ``Unet(dim=64, dim_mults=(1, 2, 4, 8), flash_attn=True)``, ``GaussianDiffusion(timesteps=1000,
sampling_timesteps=250)``, a batch of 32 accumulated twice, Adam at a rate of 8e-5, averages of 0.995. Other than there,
the images are of 64 x 64 and not of 128 x 128. On a CPU ``amp`` is off, as its fp16 needs a GPU, and ``calculate_fid``,
too, since it is no part of the training. It runs in an environment of its own, as the package needs torchvision.
"""

import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import torch
from denoising_diffusion_pytorch import GaussianDiffusion, Trainer, Unet  # pyright: ignore[reportMissingImports]
from judged import denoiser_of, follow


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.manual_seed(job["seed"])
    gpu = torch.cuda.is_available()
    network = Unet(dim=64, dim_mults=(1, 2, 4, 8), flash_attn=True)
    diffusion = GaussianDiffusion(network, image_size=job["side"], timesteps=1000, sampling_timesteps=250)
    trainer = Trainer(
        diffusion,
        job["folder"],
        train_batch_size=32,
        train_lr=8e-5,
        train_num_steps=0,
        gradient_accumulate_every=2,
        ema_decay=0.995,
        amp=gpu,
        calculate_fid=False,
        save_and_sample_every=10**9,  # it is judged and sampled outside of the training time
        results_folder=job["scratch"],
    )

    def step() -> None:
        trainer.train_num_steps = trainer.step + 1
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # a bar and two lines for each step
            trainer.train()

    def predict(noisy: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        average = trainer.ema.ema_model.eval()
        return average.model(noisy.to(trainer.device), times.to(trainer.device)).cpu()

    alphas = diffusion.alphas_cumprod.cpu()
    kind = {"pred_noise": "noise", "pred_v": "v"}[diffusion.objective]
    denoise = denoiser_of(predict, ((1 - alphas) / alphas).sqrt(), kind)
    num = sum(each.numel() for each in network.parameters())
    follow(job, step, denoise, {"name": "lucidrains", "parameters": num, "batch": 64, "predicts": kind})


if __name__ == "__main__":
    main()
