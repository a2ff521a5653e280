"""Interoperation with other tools: import of published networks, and export of models."""
