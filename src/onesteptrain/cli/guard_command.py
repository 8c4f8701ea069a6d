"""`ost guard`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from cyclopts import Parameter
from numpy.typing import NDArray

from onesteptrain.cli.output import Progress, progress_bar, say
from onesteptrain.data.deduplication import (
    Duplicate,
    FinalAnswers,
    Findings,
    GuardOptions,
    NearLeak,
    Place,
    Unused,
    refuse_existing,
    write_findings,
)
from onesteptrain.data.deduplication import guard as search
from onesteptrain.data.pool import Pool, Sample, Turn, Unreadable, open_pool
from onesteptrain.errors import ScoreError
from onesteptrain.jobs.steps import PoolOptions
from onesteptrain.storage.score_table import ScoreTable

Flat = Parameter(name="*")

_NAMED = 5
"""Rows and clusters that the text names; it counts the others, and the table holds them all."""


def guard(  # noqa: PLR0913  one parameter an option
    pool: Path,
    *,
    anchors: Path | None = None,
    benchmark: Path | None = None,
    out: Path | None = None,
    options: Annotated[GuardOptions, Flat] = GuardOptions(),
    reading: Annotated[PoolOptions, Flat] = PoolOptions(),
    anchor_image_root: Path | None = None,
    benchmark_image_root: Path | None = None,
    run: Path | None = None,
    by: str = "score",
    overwrite: bool = False,
    json: bool = False,
) -> None:
    """Find near-duplicates, contradictions and leaks in a pool, by text and image together.

    Args:
        pool: The pool file or folder.
        anchors: Anchors that must not stand in the pool, not even nearly.
        benchmark: A benchmark that must not stand in the pool: its rows have a column `answer`.
        out: Parquet table to write, or a folder that gets a guard.parquet: a line for each row that something was
            found of. Without it, the findings are only printed.
        options: What counts as near.
        reading: How the pool is read.
        anchor_image_root: Folder that the anchors' relative image paths start from.
        benchmark_image_root: Folder that the benchmark's relative image paths start from.
        run: Run directory of `ost score`: of each cluster the best row is kept, in place of the first.
        by: Column of the score table that says which is best, highest first.
        overwrite: Replace an existing table.
        json: Print the result as JSON.
    """
    from onesteptrain.evaluation.answers import extract_answer, same_answer

    opened = reading.open(pool)
    table = _table(out, overwrite)
    scores = _scores(run, by, opened) if run is not None else None
    against = _against((anchors, anchor_image_root), (benchmark, benchmark_image_root))
    total = len(opened)
    with progress_bar("reading") as advance:
        told = partial(_tell, advance, total)
        findings = search(
            opened,
            finals=FinalAnswers(extract_answer, same_answer),
            against=against,
            options=options,
            scores=scores,
            progress=told,
        )
    if table is not None:
        write_findings(findings, opened, options, table, overwrite=overwrite)
    say(describe(findings, against, table), {**_facts(findings), "out": table and str(table)}, as_json=json)


def describe(findings: Findings, checked: Iterable[str], table: Path | None) -> str:
    """What was found, for people."""
    clusters = findings.clusters
    lines = [
        f"{findings.rows} rows: {len(clusters.duplicates)} say again what {len(clusters.kept)} others say, "
        f"{len(_unused(findings))} could not be compared"
    ]
    lines += [f"  {count:6d}  {kind}" for kind, count in findings.kinds.items()]
    lines += _listed("largest clusters", _largest(findings))
    lines += _listed("contradictions", [_pair(one) for one in findings.contradictions])
    lines += _listed("near question, other answer (kept; two questions or two answers?)", _alike(findings))
    for source in checked:
        leaks = [leak for leak in findings.leaks if leak.leak_of.source == source]
        rows = len({leak.place.row for leak in leaks})
        lines.append(f"leaks: {rows} rows of the pool stand in the {source}")
        lines += _listed("pairs", [_leak(one) for one in leaks])
    lines += _listed("could not be compared", [f"{_where(one.place)}: {one.reason}" for one in findings.unused])
    if table is not None:
        lines.append(f"table: {table}")
    return "\n".join(lines)


def _facts(findings: Findings) -> dict[str, Any]:
    clusters = findings.clusters
    sizes = Counter(one.cluster for one in clusters.duplicates)
    return {
        "rows": findings.rows,
        "duplicates": len(clusters.duplicates),
        "clusters": len(clusters.kept),
        "largest_cluster": max(sizes.values(), default=-1) + 1,
        "kinds": findings.kinds,
        "contradictions": [_plain(one) for one in findings.contradictions],
        "look_alikes": len(clusters.look_alikes),
        "leaks": [
            {"row": leak.place.row, "uid": leak.place.uid, "leak_of": leak.leak_of._asdict()} | leak.relation._asdict()
            for leak in findings.leaks
        ],
        "unused": [{**one.place._asdict(), "reason": one.reason} for one in findings.unused],
    }


def _plain(one: Duplicate) -> dict[str, Any]:
    kept = {"kept_row": one.duplicate_of.row, "kept_uid": one.duplicate_of.uid}
    return {"row": one.place.row, "uid": one.place.uid, **kept, **one.relation._asdict()}


def _listed(title: str, items: Sequence[str]) -> list[str]:
    if not items:
        return []
    more = [f"  ... and {len(items) - _NAMED} more"] if len(items) > _NAMED else []
    return [f"{title}: {len(items)}", *(f"  {item}" for item in items[:_NAMED]), *more]


def _largest(findings: Findings) -> list[str]:
    kept = findings.clusters.kept
    sizes = Counter(one.cluster for one in findings.clusters.duplicates if one.cluster is not None)
    return [f"{count + 1} rows like {_where(kept[cluster])}" for cluster, count in sizes.most_common()]


def _alike(findings: Findings) -> list[str]:
    return [_pair(one) for one in findings.clusters.look_alikes]


def _pair(one: Duplicate) -> str:
    return f"{_where(one.place)} and {_where(one.duplicate_of)}: {one.relation.kind}"


def _leak(leak: NearLeak) -> str:
    return f"{_where(leak.place)} is {_where(leak.leak_of)}: {leak.relation.kind}"


def _where(place: Place) -> str:
    name = "row" if place.source == "pool" else f"{place.source} row"
    return f"{name} {place.row} ({place.uid})"


def _unused(findings: Findings) -> list[Unused]:
    return [one for one in findings.unused if one.place.source == "pool"]


def _tell(advance: Progress, total: int, done: int) -> None:
    advance(min(done, total), total)  # the other files come last and are small


def _table(out: Path | None, overwrite: bool) -> Path | None:
    """The file to write; refused before the search, not after it."""
    if out is None:
        return None
    table = out if out.suffix == ".parquet" and not out.is_dir() else out / "guard.parquet"
    refuse_existing(table, overwrite=overwrite)
    return table


def _scores(run: Path, by: str, pool: Pool) -> NDArray[np.float64]:
    """The column by row of the pool."""
    table = ScoreTable(run / "scores.parquet")
    if table.metadata.get("pool") != pool.fingerprint:
        raise ScoreError(f"{run} has scored another pool than {pool.path}, or that has changed; score it again")
    values = np.full(table.rows, np.nan)
    values[table.read(["row"])["row"].to_numpy()] = table.numbers(by)
    return values


def _against(
    anchors: tuple[Path | None, Path | None], benchmark: tuple[Path | None, Path | None]
) -> dict[str, Iterable[Sample | Unreadable]]:
    """The files to compare with, each given with its image root."""
    against: dict[str, Iterable[Sample | Unreadable]] = {}
    if anchors[0] is not None:
        against["anchors"] = open_pool(anchors[0], image_root=anchors[1])
    if benchmark[0] is not None:
        against["benchmark"] = _benchmark(benchmark[0], benchmark[1])
    return against


def _benchmark(path: Path, image_root: Path | None) -> list[Sample]:
    """Questions as rows that answer what is right."""
    from onesteptrain.evaluation import read_benchmark

    return [
        Sample(one.uid, row, (*one.turns, Turn("assistant", (one.answer,))))
        for row, one in enumerate(read_benchmark(path, image_root=image_root))
    ]
