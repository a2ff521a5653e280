"""What makes features of images: a kind a file, and `open_extractor` that knows them all."""
