"""What counts as near."""

from __future__ import annotations

from dataclasses import dataclass

from onesteptrain.errors import ConfigError

_FARTHEST = 48


@dataclass(frozen=True)
class GuardOptions:
    """From where on two rows are near-duplicates: their questions and their images must both be near."""

    text_similarity: float = 0.7
    """Lowest Jaccard similarity, from 0 to 1, of two near texts, over their runs of three characters."""

    image_distance: int = 24
    """Most bits, of 256, in which the perceptual hashes of two near images differ."""

    def __post_init__(self) -> None:
        if not 0.5 <= self.text_similarity <= 1:  # below that, unrelated questions are near
            raise ConfigError(f"text_similarity is {self.text_similarity}; choose from 0.5 (loose) to 1 (same)")
        if not 0 <= self.image_distance <= _FARTHEST:  # beyond that, unrelated images are near
            raise ConfigError(f"image_distance is {self.image_distance} bits; choose from 0 (same) to {_FARTHEST}")
