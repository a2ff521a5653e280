"""Reading of pixels, block by block, into image sets in memory or memory-mapped from the cache."""
