"""Draws by seed: each follows from words alone, whatever the order of the rows, the shards and the process."""

from __future__ import annotations

import hashlib


def seeded_bits(*words: int | str) -> int:
    """64 bits that are a function of the words: what is drawn for, a seed, a uid."""
    digest = hashlib.blake2b(":".join(map(str, words)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def uniform(*words: int | str) -> float:
    """A number in [0, 1) that is a function of the words."""
    return seeded_bits(*words) / 2**64
