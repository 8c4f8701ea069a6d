"""Anchors looked at, and made more: checked against a pool, rows suggested to a person, checked rows taken in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from markupsafe import Markup, escape

from onesteptrain.data.anchors import ACCEPTED, describe_leaks, find_leaks, sort_leaks
from onesteptrain.data.formats.memory import to_dataset
from onesteptrain.data.formats.writing import to_row
from onesteptrain.data.images import thumbnail_html
from onesteptrain.data.likeness import Finding, compare, kind_by
from onesteptrain.data.pool import Pool, Sample, open_pool, text_of, write_subset
from onesteptrain.data.score_record import read_score_record
from onesteptrain.errors import AnchorError, ConfigError, SampleError
from onesteptrain.jobs.steps import readable
from onesteptrain.selection.likeness import likeness_findings
from onesteptrain.selection.odd_anchors import OddAnchors, find_odd_anchors
from onesteptrain.selection.recorded import scored_pool
from onesteptrain.selection.suggesting import Kinds, Suggestion, suggest_rows
from onesteptrain.selection.trust import can_trust
from onesteptrain.storage.atomic import refuse_existing, write_text
from onesteptrain.storage.display import html_table
from onesteptrain.storage.score_table import ScoreTable

Mark = Literal["good", "bad", "unsure", ""]
"""What a person says of a row; nothing if it was not looked at."""

CHECKED, WHY = "checked", "why"
"""Columns of a file of suggestions: the mark, to be filled in, and why the row is suggested."""

_NAMED = 5
_SIDE = 320
"""Pixels of a picture on the page of suggestions."""

_STYLE = "<style>td{vertical-align:top;padding:.5em;border-top:1px solid #ccc;white-space:pre-wrap}</style>"


class AnchorCheck(NamedTuple):
    """What was found of anchors."""

    anchors: int
    findings: list[Finding]
    odd: OddAnchors | None
    """Anchors that may be wrong; None without scores that could tell."""


def check_anchors(
    anchors: Sequence[Sample],
    pool: Iterable[Any] | None,
    *,
    table: ScoreTable | None = None,
    kinds: Sequence[str] = (),
) -> AnchorCheck:
    """Look at anchors: are they like the pool, of all its kinds, free of repeats and leaks, and right?

    Args:
        anchors: Trusted samples.
        pool: What is to be scored, or was.
        table: Scores of the pool by these anchors.
        kinds: Columns that say of which kind a row is; by default all that pool and anchors share.

    Raises:
        ConfigError: the scores are by other anchors.
    """
    findings = _repeats(anchors)
    if pool is not None:
        leaks, _ = sort_leaks(anchors, pool)
        findings += [Finding("repeated", describe_leaks(leaks))] if leaks else []
        findings += compare(anchors, pool, kinds or None)
    odd = None
    if table is not None:
        _refuse_others(table, anchors)
        findings = likeness_findings(table, findings)
        odd = find_odd_anchors(table) if can_trust(table) else None
    return AnchorCheck(len(anchors), findings, odd)


class Suggested(NamedTuple):
    """Rows that a person is to check."""

    rows: int
    kinds: Counter[str]
    page: Path
    """The same rows with their pictures, to look at."""


def suggest_file(
    table: ScoreTable, out: Path, *, count: int, kinds: Sequence[str] = (), overwrite: bool = False
) -> Suggested:
    """Write rows whose checking would help most, as messages, with an empty mark for each.

    Args:
        table: Scores of a pool, in their run directory.
        out: JSON, JSONL, Parquet or a dataset folder; a page beside it shows the rows.
        count: How many.
        kinds: Columns that say of which kind a row is.
        overwrite: Replace what is there.

    Raises:
        ConfigError: count is too large.
        PoolError: the pool is not there, has changed, or out is taken.
    """
    page = out.with_suffix(".html")
    for path in (out, page):
        refuse_existing(path, path.name, overwrite=overwrite)
    pool, anchors = scored_pool(table), list(readable(read_score_record(table.path.parent).open_anchors()))
    chosen, samples = _choose(table, pool, anchors, count, kinds)
    rows = [
        {CHECKED: "", WHY: suggestion.why, **_row(sample, out.parent), ACCEPTED: str(pool.path.absolute())}
        for suggestion, sample in zip(chosen, samples, strict=True)
    ]
    _write(rows, out, image_root=out.parent, overwrite=overwrite)
    write_text(page, _page(chosen, samples))
    return Suggested(len(rows), Counter(suggestion.kind for suggestion in chosen), page)


class Accepted(NamedTuple):
    """What became of rows that were suggested."""

    taken: int
    repeats: int
    """Good rows that say what an anchor says already; they are not taken."""

    marks: dict[Mark, int]
    anchors: int
    """In the new file."""

    pools: list[str]
    """Where the taken rows come from."""


def accept_file(anchors: Pool, suggested: Pool, out: Path, *, overwrite: bool = False) -> Accepted:
    """Write the anchors and the rows that were marked good as a new anchor file, the latter as messages.

    Args:
        anchors: The anchors so far.
        suggested: Rows of `suggest_file`, with their marks filled in.
        out: The new file; its relative image paths start from where those of the anchors do.
        overwrite: Replace what is there.

    Raises:
        AnchorError: a row cannot be read, a mark is none, or no row is good.
    """
    marked = [(sample, _mark(suggested, sample)) for sample in readable(suggested)]
    good = [sample for sample, mark in marked if mark == "good"]
    if not good:
        raise AnchorError(f"{suggested.path}: no row is marked good; write good, bad or unsure into its {CHECKED!r}")
    known = list(readable(anchors))
    repeats = {leak.pool_row for leak in find_leaks(known, good)}
    taken = [sample for sample in good if sample.row not in repeats]
    rows = [raw.value for raw in anchors.container.raw_rows()]
    rows += [_row(sample, anchors.image_root) for sample in taken]
    _write(rows, out, image_root=anchors.image_root, overwrite=overwrite)
    marks: dict[Mark, int] = {mark: sum(mark == given for _, given in marked) for mark in get_args(Mark)}
    pools = sorted({str(sample.fields[ACCEPTED]) for sample in taken if ACCEPTED in sample.fields})
    return Accepted(len(taken), len(repeats), marks, len(rows), pools)


def _repeats(anchors: Sequence[Sample]) -> list[Finding]:
    pairs = [leak for leak in find_leaks(anchors, anchors) if leak.anchor_row < leak.pool_row]
    if not pairs:
        return []
    named = "; ".join(f"{pair.pool_uid!r} repeats {pair.anchor_uid!r} ({pair.kind})" for pair in pairs[:_NAMED])
    more = f"; and {len(pairs) - _NAMED} more" if len(pairs) > _NAMED else ""
    text = f"{len({pair.pool_row for pair in pairs})} anchors repeat others: {named}{more}; take one of each out"
    return [Finding("repeated", text)]


def _refuse_others(table: ScoreTable, anchors: Sequence[Sample]) -> None:
    reference = table.reference
    if reference is None:
        return
    if set(reference.read(["uid"])["uid"].to_pylist()) != {anchor.uid for anchor in anchors}:
        raise ConfigError(f"{table.path.parent} was scored by other anchors than these; give its own, or leave run out")


def _choose(
    table: ScoreTable, pool: Pool, anchors: Sequence[Sample], count: int, columns: Sequence[str]
) -> tuple[list[Suggestion], list[Sample]]:
    """Rows, none of which repeats an anchor or another one, or cannot be written."""
    kinds = _kinds(table, pool, anchors, columns)
    without = {leak.pool_row for leak in find_leaks(anchors, pool)}
    while True:
        chosen = suggest_rows(table, kinds, count=count, without=without)
        wanted = {suggestion.row for suggestion in chosen}
        samples = [row for row in pool if row.row in wanted and isinstance(row, Sample)]
        unfit = {leak.pool_row for leak in find_leaks(samples, samples) if leak.anchor_row < leak.pool_row}
        unfit |= {sample.row for sample in samples if not _can_be_written(sample, pool)}
        if not unfit:
            return chosen, samples
        without |= unfit


def _kinds(table: ScoreTable, pool: Pool, anchors: Sequence[Sample], columns: Sequence[str]) -> Kinds:
    """Values of the columns, joined, of the rows of the score table and of the anchors."""
    kinds = {row.row: kind_by(row, columns) for row in pool}
    rows = [kinds[row] for row in table.read(["row"])["row"].to_pylist()]
    return Kinds(rows, [kind_by(anchor, columns) for anchor in anchors])


def _can_be_written(sample: Sample, pool: Pool) -> bool:
    try:
        to_row(sample.turns, pool.image_root)
    except SampleError:
        return False
    return True


def _row(sample: Sample, image_root: Path) -> dict[str, Any]:
    """A row of its own, with the sample's uid and columns; but the marks, and a weight that its answers have by now."""
    fields = {name: value for name, value in sample.fields.items() if name not in (CHECKED, WHY, "weight")}
    return {"id": sample.uid, **to_row(sample.turns, image_root), **fields}


def _write(rows: list[Any], out: Path, *, image_root: Path, overwrite: bool) -> None:
    """Write rows as a pool; typed columns hold pictures as such."""
    source = rows if out.suffix in (".json", ".jsonl") else to_dataset(rows, image_root)
    made = open_pool(source, image_root=image_root)
    write_subset(made, range(len(rows)), out, overwrite=overwrite)


def _mark(suggested: Pool, sample: Sample) -> Mark:
    given = sample.fields.get(CHECKED)
    text = str(given or "").strip().casefold()
    for mark in get_args(Mark):
        if text == mark:
            return mark  # type: ignore[no-any-return]
    raise AnchorError(
        f"{suggested.path}: row {sample.row} ({sample.uid}) has {CHECKED} {given!r}; write good, bad or unsure"
    )


def _page(chosen: Sequence[Suggestion], samples: Sequence[Sample]) -> str:
    rows = [
        [
            suggestion.row,
            sample.uid,
            Markup(" ").join(thumbnail_html(image, _SIDE) for image in sample.images),
            escape(text_of(sample, "user")),
            escape(text_of(sample, "assistant")),
            escape(suggestion.why),
        ]
        for suggestion, sample in zip(chosen, samples, strict=True)
    ]
    heads = ("row", "uid", "pictures", "question", "answer", "why")
    table = html_table("Is the answer right? Mark each row in the file beside this page", heads, rows)
    return f'<!doctype html><meta charset="utf-8"><title>Suggested rows</title>{_STYLE}{table}\n'
