"""Draws by seed, against the figures that earlier versions drew: a subset that was drawn once is drawn again."""

from __future__ import annotations

import hashlib

import pytest

from onesteptrain.storage.seeds import seeded_bits, uniform


@pytest.mark.parametrize(
    ("words", "text"), [((3, "a"), "3:a"), (("warm-up", 0, "é:x"), "warm-up:0:é:x"), (("parts", 7), "parts:7")]
)
def test_bits_are_the_first_eight_bytes_of_the_hash_of_the_words(words, text):
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    assert seeded_bits(*words) == int.from_bytes(digest, "big")
    assert uniform(*words) == seeded_bits(*words) / 2**64


def test_known_draws_stay():
    assert seeded_bits("draw", 0, "s0") == 12944366721316546851
