"""Put what scores say into the loss that a target is trained with: harmful tokens out of it, doubtful rows down.

Both are loss weights of answers, as flags of messages are (`Turn`); rows come out with them, and encoding and training
do the rest. Which one is worth it is measured in experiments/masking.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onesteptrain.data.formats.loss_weights import without_space
from onesteptrain.data.pool import Sample, Turn, Unreadable
from onesteptrain.errors import ConfigError, PoolError, SampleError, ScoreError
from onesteptrain.reporting.diagnosis.measured import check_tables, read_tokens
from onesteptrain.reporting.diagnosis.spans import badness, token_scale
from onesteptrain.reporting.diagnosis.texts import Place, Quoter, recorded_quoter
from onesteptrain.selection import SelectOptions
from onesteptrain.selection.trust import measure_trust
from onesteptrain.storage.score_table import ScoreTable, read_scores

Rows = Iterable[Sample | Unreadable]
Harmful = Literal["drop", "mask", "weigh", "drop-and-mask"]
"""What becomes of rows that the trust gate would drop, and of harmful tokens."""


class Masked(NamedTuple):
    """Rows whose harmful tokens are out of the loss."""

    rows: list[Sample | Unreadable]
    masked: int
    """Answer tokens that were taken out."""

    tokens: int
    """Answer tokens of all rows."""


def options_of(harmful: Harmful) -> tuple[str, ...]:
    """The options of `ost train` that do it, which take the run directory of the scores."""
    return {"drop": (), "mask": ("mask-harmful",), "weigh": ("weigh",), "drop-and-mask": ("mask-harmful",)}[harmful]


def refuse_untold(harmful: Harmful, *, stores_tokens: bool, key: str) -> None:
    """Refuse to mask tokens that scores will not tell of.

    Raises:
        ConfigError: they are not stored.
    """
    if "mask-harmful" in options_of(harmful) and not stores_tokens:
        raise ConfigError(f"harmful {harmful} needs the harm of every token; give {key}: true")


def selecting(select: SelectOptions, harmful: Harmful) -> SelectOptions:
    """How rows are selected: where harmful ones stay, drawn from all that have a score.

    Raises:
        ConfigError: the selection goes by something else than the trust gate.
    """
    if harmful == "drop":
        return select
    if not (select.trusting and select.gate == "auto"):
        raise ConfigError(
            f"harmful {harmful} takes the place of the trust gate, and select has another rule (by, gate or prefer: "
            "top); leave that out, or give harmful: drop"
        )
    if harmful == "drop-and-mask":
        return select
    return dataclasses.replace(select, gate="none", prefer="draw" if select.prefer == "auto" else select.prefer)


def learned_as(rows: Rows, harmful: Harmful, scores: Path) -> tuple[Rows, str]:
    """Selected rows as a target learns them; see `reweight`.

    Args:
        rows: What was selected.
        harmful: What becomes of what does harm.
        scores: Run directory of the scores, with token columns where tokens are masked.
    """
    return reweight(rows, **{option.replace("-", "_"): scores for option in options_of(harmful)})


def reweight(rows: Rows, *, mask_harmful: Path | None = None, weigh: Path | None = None) -> tuple[Rows, str]:
    """Rows as `ost train` learns them.

    Args:
        rows: Rows of a pool that was scored.
        mask_harmful: Run directory of scores with token columns: harmful tokens are out of the loss.
        weigh: Run directory of scores: each row counts by its probability to be clean.

    Returns:
        The rows, and what was done to them in a line; empty if nothing was.
    """
    said = []
    if mask_harmful is not None:
        table = read_scores(mask_harmful)
        done = without_harm(rows, table, recorded_quoter(table))
        rows = done.rows
        said.append(f"{done.masked} of {done.tokens} answer tokens are out of the loss")
    if weigh is not None:
        rows = weighed(rows, read_scores(weigh))
        said.append("each row counts by its probability to be clean")
    return rows, "; ".join(said)


def without_harm(rows: Rows, table: ScoreTable, quote: Quoter) -> Masked:
    """Take the answer tokens out of the loss that stand out against the anchors.

    Those are the tokens that are worse (`diagnosis.spans`) than any token of nine in ten anchors. A row without one
    stays as it is; one without a score gets that as a reason.

    Args:
        rows: Rows of the pool that was scored, such as a subset of it.
        table: Its scores, with token columns, for the anchors too.
        quote: Finds the answer tokens in a text, as the proxy that scored reads it.

    Raises:
        PoolError: a row is not among those that were scored.
        ScoreError: the scores have no token columns, or too few anchors.
    """
    reference = check_tables(table)
    scale = token_scale(read_tokens(reference, np.flatnonzero(np.isfinite(reference.numbers("score")))))
    listed, places = _found(rows, table)
    known = np.array(sorted(places.values()), np.int64)
    bad = dict(zip(known.tolist(), badness(read_tokens(table, known), scale), strict=True))
    out: list[Sample | Unreadable] = []
    masked = 0
    for row in listed:
        if isinstance(row, Unreadable) or row.uid not in places:
            out.append(_unscored(row))
            continue
        harmful = bad[places[row.uid]] > scale.row_limit
        masked += int(harmful.sum())
        out.append(without_tokens(row, harmful, quote) if harmful.any() else row)
    return Masked(out, masked, sum(map(len, bad.values())))


def weighed(rows: Rows, table: ScoreTable) -> list[Sample | Unreadable]:
    """Let each row count by its probability to be clean, as the trust gate has it.

    A row without a score, or with a probability of 0, gets a reason.

    Raises:
        PoolError: a row is not among those that were scored.
        ScoreError: the scores do not allow the gate, or it is blind.
    """
    trust = measure_trust(table)
    if trust.verdict.blind:
        raise ScoreError(f"{table.path}: {trust.verdict.sentences()[0]}; or train without weights")
    listed, places = _found(rows, table)
    clean = trust.expected_clean()
    return [
        _unscored(row)
        if isinstance(row, Unreadable) or row.uid not in places
        else _weighed(row, float(clean[places[row.uid]]))
        for row in listed
    ]


def without_tokens(sample: Sample, harmful: NDArray[np.bool_], quote: Quoter) -> Sample:
    """A sample with some of its answer tokens out of the loss.

    Args:
        sample: The sample.
        harmful: Which of its answer tokens, those in the loss, in order.
        quote: Gives their places.

    Raises:
        PoolError: the sample has other tokens.
    """
    try:
        places = quote(sample)
    except SampleError as error:
        raise PoolError(f"row {sample.uid!r}: {error}") from error
    if len(places) != len(harmful):
        raise PoolError(
            f"row {sample.uid!r} has {len(places)} answer tokens, and {len(harmful)} when it was scored; give rows of "
            "the pool as it was then, or score it again"
        )
    ranges = [place for place, out in zip(places, harmful.tolist(), strict=True) if out]
    turns, before = [], 0
    for turn in sample.turns:
        if turn.role == "assistant":
            end = before + len(turn.text)
            turns.append(_without(turn, [place for place in ranges if before <= place.start <= end], before))
            before = end + 1
        else:
            turns.append(turn)
    return dataclasses.replace(sample, turns=tuple(turns))


def _without(turn: Turn, places: Sequence[Place], before: int) -> Turn:
    """A turn without some places; one that stands for no character is the end-of-turn mark."""
    ends = len(turn.text)
    ranges = [
        (ends, ends + 1) if start == end else without_space(turn.text, start - before, end - before)
        for start, end in places
    ]
    return dataclasses.replace(turn, unlearned=(*turn.unlearned, *ranges))


def _weighed(sample: Sample, weight: float) -> Sample | Unreadable:
    if not weight > 0:
        return Unreadable(sample.uid, sample.row, "its probability to be clean is 0, so nothing is learned of it")
    turns = tuple(dataclasses.replace(turn, weight=turn.weight * weight) for turn in sample.turns)
    return dataclasses.replace(sample, turns=turns)


def _found(rows: Rows, table: ScoreTable) -> tuple[list[Sample | Unreadable], dict[str, int]]:
    """The rows, and where those that have a score stand in the table, by uid.

    Raises:
        PoolError: one is not there, or could be one of several with the same id.
    """
    listed = list(rows)
    scored = np.isfinite(table.numbers("score"))
    there = {uid: place for place, uid in enumerate(table.read(["uid"])["uid"].to_pylist())}
    whole = len(listed) == len(there)
    for row in listed:
        if row.uid not in there:
            raise PoolError(f"row {row.uid!r} is not among the {len(there)} of {table.path}; give rows of that pool")
        if not whole and f"{row.uid}#2" in there:  # in a subset, a repeated id may have another number
            raise PoolError(f"several rows of {table.path} have the id {row.uid!r}; give each row an id of its own")
    return listed, {row.uid: there[row.uid] for row in listed if scored[there[row.uid]]}


def _unscored(row: Sample | Unreadable) -> Unreadable:
    if isinstance(row, Unreadable):
        return row
    return Unreadable(row.uid, row.row, "it has no score, so that nobody knows what of it does harm; see its reason")
