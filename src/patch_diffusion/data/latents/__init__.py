"""Latents of an autoencoder in place of pixels."""
