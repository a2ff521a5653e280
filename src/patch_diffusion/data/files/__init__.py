"""Image files in folders, zips, shards and data sets: finding, opening and decoding them to one size and pixel type."""
