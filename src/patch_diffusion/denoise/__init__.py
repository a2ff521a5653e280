"""The model: a network, its preconditioning, noise levels and loss."""
