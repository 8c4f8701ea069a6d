"""Rows of other files, such as anchors or a benchmark, that stand in the pool, word for word or nearly."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from onesteptrain.data.deduplication.index import POOL, Place
from onesteptrain.data.deduplication.relating import Relation, Relations


class NearLeak(NamedTuple):
    """A row of the pool that says what a row of another file says."""

    place: Place
    """In the pool."""

    leak_of: Place
    """In the other file."""

    relation: Relation


def find_near_leaks(relations: Relations) -> list[NearLeak]:
    """All pairs of a pool row and a row of another file with near questions about near images, whatever they answer.

    This goes beyond `onesteptrain.data.anchors.find_leaks`, which knows the same question about the same pixels.
    """
    places = relations.index.places
    leaks = [
        NearLeak(places[inside], places[outside], relations.between(inside, outside))
        for inside, outside in _crossing(relations)
    ]
    return sorted(leaks, key=lambda leak: (leak.leak_of.source, leak.place.row, leak.leak_of.row))


def _crossing(relations: Relations) -> Iterator[tuple[int, int]]:
    places, by_unit = relations.index.places, relations.index.entries_of_units()
    for first, second in [*((unit, unit) for unit in by_unit), *relations.pairs]:
        ends = [(first, second)] if first == second else [(first, second), (second, first)]
        for one, other in ends:
            inside = [entry for entry in by_unit[one] if places[entry].source == POOL]
            outside = [entry for entry in by_unit[other] if places[entry].source != POOL]
            yield from ((entry, leaked) for entry in inside for leaked in outside)
