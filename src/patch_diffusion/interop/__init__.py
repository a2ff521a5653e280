"""Interoperation with other tools: import of published EDM and Patch-Diffusion networks, and export of models."""
