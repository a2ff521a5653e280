"""Preparation of a data set: checking it and writing it as one zip of images of equal size."""
