"""Samples as a method reads them: those that can be encoded, and the reasons of the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from onesteptrain.data.pool import Sample
from onesteptrain.errors import AnchorError, SampleError
from onesteptrain.proxy import Encoded, Encoder
from onesteptrain.storage.score_table import Record


def records_of(
    encoder: Encoder, samples: Sequence[Sample], measure: Callable[[Sequence[Encoded]], Sequence[Record]]
) -> list[Record]:
    """Measure the samples that can be encoded, in one call; each other one gets its reason."""
    return records_with(encoder, samples, lambda encoded, _: measure(encoded))


def records_with(
    encoder: Encoder,
    samples: Sequence[Sample],
    measure: Callable[[Sequence[Encoded], Sequence[Sample]], Sequence[Record]],
) -> list[Record]:
    """The same, where the samples themselves are measured too: both are given, in the same order."""
    encoded = [encode(encoder, sample) for sample in samples]
    usable = [(each, sample) for each, sample in zip(encoded, samples, strict=True) if isinstance(each, Encoded)]
    measured = iter(measure([each for each, _ in usable], [sample for _, sample in usable]))
    return [next(measured) if isinstance(each, Encoded) else Record(reason=each) for each in encoded]


def encode(encoder: Encoder, sample: Sample) -> Encoded | str:
    """The encoded sample, or the reason why there is none."""
    try:
        return encoder.encode(sample)
    except SampleError as error:
        return str(error)


def anchor_groups(encoder: Encoder, anchors: Sequence[Sample], group_by: str | None) -> dict[str, list[Encoded]]:
    """Encoded anchors by the value of a column, in alphabetical order; one nameless group where none is asked for.

    Raises:
        AnchorError: an anchor has no such column, or cannot be encoded.
    """
    groups: dict[str, list[Encoded]] = {}
    for anchor in anchors:
        if group_by is not None and anchor.fields.get(group_by) is None:
            raise AnchorError(
                f"anchor {anchor.uid!r} has no column {group_by!r}; it has {', '.join(anchor.fields) or 'none'}"
            )
        encoded = encode(encoder, anchor)
        if isinstance(encoded, str):
            raise AnchorError(f"anchor {anchor.uid!r} cannot be used: {encoded}; mend it, or draw other anchors")
        groups.setdefault("" if group_by is None else str(anchor.fields[group_by]), []).append(encoded)
    return dict(sorted(groups.items()))
