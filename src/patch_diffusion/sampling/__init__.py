"""Sampling: images from noise by a trained denoiser."""
