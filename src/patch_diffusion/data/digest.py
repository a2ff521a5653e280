"""A digest of the images that a run is trained on, by which it notices when they have changed."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patch_diffusion.data.attributes import Attributes
from patch_diffusion.data.images import Images
from patch_diffusion.data.keys import keys_of_rows

_CHANGED = {
    "content": "some of the {num:,} images are others",
    "labels": "the labels of the images differ",
    "groups": "the groups of the images differ",
    "conditions": "the conditions of the images differ",
    "order": "the images are in another order, as when files are renamed",
}
"""The parts of a digest, in the order in which they are compared, and what is said where the first of them differs."""


def digest_of(images: Images) -> dict[str, Any]:
    """Return a digest of all images of a data set, of both sides of a split, as a dict that JSON can store.

    It holds their number, and hashes of their content, of label, group and conditions of each, and of their order. It
    does not depend on where they lie, on the names or times of files, or on the resolution they are read at.
    """
    buckets = images.buckets
    keys = np.concatenate([bucket.content for bucket in buckets])
    facts = {"content": np.zeros(len(keys), np.uint64)}
    if buckets[0].labels is not None:
        labels = [bucket.labels[: len(bucket.content)].numpy() for bucket in buckets if bucket.labels is not None]
        facts["labels"] = np.concatenate(labels).astype(np.uint64)
    if buckets[0].groups is not None:
        facts["groups"] = np.concatenate([bucket.groups for bucket in buckets if bucket.groups is not None])
    if buckets[0].attributes is not None:
        told = [bucket.attributes for bucket in buckets if bucket.attributes is not None]
        facts["conditions"] = np.concatenate([_hashes_of(attributes) for attributes in told])
    found = {name: _hash(np.stack([keys, fact])[:, np.lexsort((fact, keys))]) for name, fact in facts.items()}
    return {"images": len(keys), **found, "order": _hash(keys)}


def change_of(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return a few words on how images differ from those of an earlier digest; empty if they do not, or if it is empty.

    >>> change_of({"images": 20}, {"images": 21})
    '21 images now, 20 then'
    """
    if not before or before == now:
        return ""
    if before["images"] != now["images"]:
        return f"{now['images']:,} images now, {before['images']:,} then"
    # A model without classes may be given images with and without labels.
    compared = [name for name in _CHANGED if name != "labels" or {name} <= before.keys() & now.keys()]
    part = next((name for name in compared if before.get(name) != now.get(name)), None)
    return "" if part is None else _CHANGED[part].format(num=now["images"])


def _hashes_of(attributes: Attributes) -> NDArray[np.uint64]:
    """Return a hash of all attributes of each image."""
    rows = np.concatenate([values.numpy() for values in attributes.values], axis=1)
    return keys_of_rows(rows)


def _hash(values: NDArray[np.uint64]) -> str:
    return blake2b(np.ascontiguousarray(values, "<u8").tobytes(), digest_size=8).hexdigest()
