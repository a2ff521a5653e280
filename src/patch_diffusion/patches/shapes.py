"""Shapes of patches, from names such as "1/2" or "32". Any number of axes; exported pipelines carry this module."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from patch_diffusion.errors import InputError

Shape = tuple[int, ...]
"""Height and width of an image or a patch, or depth, height and width."""


def parse_size(size: str | int) -> Fraction | int:
    """Parse a patch size: a fraction of the image such as "1/2", or a number of pixels such as "32"."""
    text = str(size).strip()
    try:
        parsed = Fraction(text) if "/" in text else int(text)
    except (ValueError, ZeroDivisionError):
        parsed = 0
    if parsed <= 0 or (isinstance(parsed, Fraction) and parsed >= 1):
        raise InputError(
            f"patch size '{size}' is neither a fraction of the image such as '1/2' nor pixels such as '32'"
        )
    return parsed


def patch_shape(size: str | int, resolution: Shape) -> Shape:
    """Return the shape in pixels of a patch of an image.

    Args:
        size: a fraction of the image such as "1/2", or pixels of its shorter side.
        resolution: shape of the image.

    Raises:
        InputError: the size is neither, or the patch does not fit in the image.
    """
    parsed, shorter = parse_size(size), min(resolution)
    if isinstance(parsed, Fraction):
        shape = tuple(int(length * parsed) for length in resolution)
    elif parsed <= shorter:
        shape = tuple(length * parsed // shorter for length in resolution)
    else:
        raise InputError(
            f"patch size {size} does not fit images of {as_text(resolution)}: take at most {shorter}, or a fraction "
            "like 1/2"
        )
    if min(shape) < 1:
        raise InputError(
            f"patch size {size} of images of {as_text(resolution)} is less than one pixel: take a larger one"
        )
    return shape


def no_multiples(shape: Sequence[int], stride: int, *, what: str = "height and width") -> str:
    """Return the sentence that a network takes no images of a shape, since its sides are no multiples, and the nearest.

    >>> no_multiples((17, 16), 4)
    'height and width must be multiples of 4 for this network, not 17x16: take 16x16 or 20x16'
    """
    below = [side // stride * stride for side in shape]
    above = [max(1, -(-side // stride)) * stride for side in shape]
    nearest = " or ".join(as_text(each) for each in (below, above) if min(each) > 0)
    return f"{what} must be multiples of {stride} for this network, not {as_text(shape)}: take {nearest}"


def as_text(shape: Sequence[int]) -> str:
    """Return a shape as text, such as "64x48"."""
    return "x".join(map(str, shape))
