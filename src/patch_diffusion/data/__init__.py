"""Data sets of images: reading, caching, augmentation, latents, and the order of training images."""
