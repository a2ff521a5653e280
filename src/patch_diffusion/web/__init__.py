"""The web page of ``patch-diffusion serve``: watch runs, sample from their models and edit images, on this machine."""
