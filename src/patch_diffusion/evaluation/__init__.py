"""Evaluation of models: metrics with their confidence intervals and the settings that made them."""
