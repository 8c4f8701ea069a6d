"""Many samples encoded, within a bound of memory: what warm-up and target training go through again and again."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from torch.utils.data import Subset

from onesteptrain.data.pool import Pool, Sample, Unreadable
from onesteptrain.errors import SampleError
from onesteptrain.proxy import Encoded, Encoder


class Encodings(Sequence[Encoded]):
    """Samples that can be encoded; as many as fit stay in memory, the others are encoded again when asked for."""

    def __init__(self, encoder: Encoder, *, memory_gigabytes: float = 4.0) -> None:
        self._encoder = encoder
        self._bytes_left = memory_gigabytes * 1e9
        self._samples: list[Sample] = []
        self._kept: dict[int, Encoded] = {}

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: Any) -> Any:
        kept = self._kept.get(index)
        return kept if kept is not None else self._encoder.encode(self._samples[index])

    @property
    def identity(self) -> str:
        """Which samples these are, in order: a hash of their uids, texts and image references."""
        digest = hashlib.sha256()
        for sample in self._samples:
            digest.update(f"{sample.uid} {sample.turns!r}\n".encode())
        return digest.hexdigest()

    def add(self, sample: Sample | Unreadable) -> str | None:
        """Take one more sample; gives the reason where it cannot be used."""
        if isinstance(sample, Unreadable):
            return sample.reason
        try:
            encoded = self._encoder.encode(sample)
        except SampleError as error:
            return str(error)
        tensors = (*encoded.inputs.values(), encoded.answer, encoded.weight)
        self._bytes_left -= sum(value.nbytes for value in tensors if value is not None)
        if self._bytes_left > 0:
            self._kept[len(self)] = encoded
        self._samples.append(sample)
        return None


class PoolEncodings:
    """Rows of a pool, each encoded when it is first asked for; several trainings take theirs from here."""

    def __init__(self, encoder: Encoder, pool: Pool) -> None:
        self._pool = pool
        self._encodings = Encodings(encoder)
        self._places: dict[int, int] = {}
        self._refused: dict[int, tuple[str, str]] = {}

    def take(self, rows: Sequence[int]) -> tuple[Sequence[Encoded], dict[str, str]]:
        """Some rows, in the order given.

        Returns:
            The samples that can be encoded, and the reason of each that cannot be, by uid.
        """
        missing = set(rows) - self._places.keys() - self._refused.keys()
        for sample in self._pool.rows(min(missing), max(missing) + 1) if missing else ():
            if sample.row not in missing:
                continue
            if (reason := self._encodings.add(sample)) is None:
                self._places[sample.row] = len(self._encodings) - 1
            else:
                self._refused[sample.row] = (sample.uid, reason)
        chosen: Any = Subset(self._encodings, [self._places[row] for row in rows if row in self._places])  # type: ignore[arg-type]
        return chosen, dict(self._refused[row] for row in rows if row in self._refused)


def encode_all(encoder: Encoder, samples: Iterable[Sample | Unreadable]) -> tuple[Encodings, dict[str, str]]:
    """Encode what can be encoded.

    Returns:
        The encoded samples, and the reason of each that cannot be, by uid.
    """
    encodings, refused = Encodings(encoder), {}
    for sample in samples:
        if (reason := encodings.add(sample)) is not None:
            refused[sample.uid] = reason
    return encodings, refused


def most_common(refused: dict[str, str]) -> list[tuple[str, int]]:
    """The ten most frequent reasons, and how many rows share each."""
    return Counter(refused.values()).most_common(10)
