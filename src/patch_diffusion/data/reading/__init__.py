"""From pixels that come piece by piece to images in memory or mapped."""
