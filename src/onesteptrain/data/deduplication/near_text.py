"""Whether two texts say nearly the same: Jaccard similarity of their runs of three characters, and the same numbers.

Runs of characters need no word borders, so that they serve every script. Numbers must agree because "12 + 5?" and
"12 + 6?" are different problems, however alike they look.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from onesteptrain.errors import MissingExtraError

Hashes = NDArray[np.uint64]

_RUN = 3
"""Characters in a row that make one shingle."""

_PERMUTATIONS = 128
_MISSED_SHARE = 1e-3
"""Share of the pairs exactly at the threshold that the hash bands may miss; nearly none above it."""

_BATCH = 4096
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


def numbers(text: str) -> tuple[str, ...]:
    """The numbers in a plain text, sorted, as reworded questions name them in another order."""
    return tuple(sorted(_NUMBER.findall(_THOUSANDS.sub("", text))))


@functools.lru_cache(maxsize=8192)
def shingles(text: str) -> Hashes:
    """The distinct runs of three characters of a plain text, rising, each as one number; nothing is hashed."""
    codes = np.frombuffer(text.ljust(_RUN).encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    runs = np.unique(codes[:-2] << np.uint64(42) | codes[1:-1] << np.uint64(21) | codes[2:])
    runs.flags.writeable = False  # the cache hands it out again
    return runs


def similarity(first: str, second: str) -> float:
    """Jaccard similarity of two plain texts: shared runs of three characters by all that one of them has."""
    left, right = shingles(first), shingles(second)
    shared = len(np.intersect1d(left, right, assume_unique=True))
    return shared / (len(left) + len(right) - shared)


def near_texts(first: str, second: str, threshold: float) -> bool:
    """Whether two plain texts are that similar and hold the same numbers."""
    return first == second or (numbers(first) == numbers(second) and similarity(first, second) >= threshold)


def choose_bands(threshold: float) -> tuple[int, int]:
    """Number and width of the bands that a signature of minima is cut into; texts that agree in one are compared.

    They are the widest that miss at most one in a thousand of the pairs at the threshold. Two texts of similarity s
    agree in one minimum with probability s, and in none of b bands of w minima with probability (1 - s^w)^b.
    """
    shapes = ((_PERMUTATIONS // width, width) for width in range(16, 0, -1))
    return next((bands, width) for bands, width in shapes if (1 - threshold**width) ** bands <= _MISSED_SHARE)


def band_keys(texts: Sequence[str], threshold: float) -> Hashes:
    """One key a band for each plain text, `[text, band]`; near texts share at least one.

    Raises:
        MissingExtraError: rensa is not installed.
    """
    bands, width = choose_bands(threshold)
    keys = np.zeros((len(texts), bands), np.uint64)
    for start in range(0, len(texts), _BATCH):
        part = texts[start : start + _BATCH]
        agreed = hash_tuples([numbers(text) for text in part])
        minima = _minima([shingles(text) for text in part])[:, : bands * width]
        keys[start : start + _BATCH] = mix(minima.reshape(len(part), bands, width).astype(np.uint64), agreed[:, None])
    return keys


def mix(columns: Hashes, *others: Hashes) -> Hashes:
    """One well-spread number for the numbers along the last axis and some more."""
    total = np.zeros(columns.shape[:-1], np.uint64)
    for column in (*np.moveaxis(columns, -1, 0), *others):
        total = _spread(total ^ column)
    return total


def hash_tuples(values: Sequence[tuple[str, ...]]) -> Hashes:
    """A 64-bit number for each tuple; the same in every process."""
    digests = b"".join(blake2b("\0".join(value).encode(), digest_size=8).digest() for value in values)
    return np.frombuffer(digests, np.uint64)


def _spread(values: Hashes) -> Hashes:
    """The finalizer of splitmix64: every bit of the input moves half of the output's."""
    values = (values + np.uint64(0x9E3779B97F4A7C15)).astype(np.uint64)
    values = (values ^ values >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ values >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return values ^ values >> np.uint64(31)


def _minima(sets: Sequence[Hashes]) -> NDArray[np.uint32]:
    try:
        from rensa import RMinHash
    except ImportError as error:
        raise MissingExtraError('near texts are found with rensa: pip install "onesteptrain[guard]"') from error
    offsets = np.cumsum([0, *map(len, sets)])
    digests = RMinHash.digest_matrix_from_flat_token_hashes(
        _spread(np.concatenate(sets)), offsets.tolist(), num_perm=_PERMUTATIONS, seed=0
    )
    return np.array(digests.to_rows(), np.uint32)
