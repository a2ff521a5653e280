"""Maps of the parts of an image that are unlike the training images."""
