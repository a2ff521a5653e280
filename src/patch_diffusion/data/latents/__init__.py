"""Latent diffusion: training on the latents of an autoencoder in place of pixels."""
