"""`ost guard`: what stands in a pool more than once, or in the anchors or a benchmark."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from onesteptrain.cli.options import FILES, HOW, Writer
from onesteptrain.cli.output import listed, tell
from onesteptrain.data.deduplication import (
    Duplicate,
    FinalAnswers,
    Findings,
    GuardOptions,
    NearLeak,
    Place,
    write_findings,
)
from onesteptrain.data.deduplication import guard as search
from onesteptrain.data.pool import Pool, Sample, Turn, Unreadable
from onesteptrain.errors import ScoreError
from onesteptrain.jobs.progress import progress_bar
from onesteptrain.jobs.steps import AnchorOptions, PoolOptions
from onesteptrain.storage.atomic import refuse_existing
from onesteptrain.storage.score_table import read_scores


@dataclass(frozen=True)
class Guard(Writer):
    """Find near-duplicates, contradictions and leaks in a pool, by text and image together.

    Example: `ost guard pool.json --anchors anchors.jsonl --out guard.parquet`
    """

    pool: Path
    """The pool file or folder."""

    _: KW_ONLY

    anchors: Path | None = None
    """Anchors that must not stand in the pool, not even nearly."""

    benchmark: Path | None = None
    """A benchmark that must not stand in the pool: its rows have a column `answer`."""

    out: Path | None = None
    """Parquet table to write, or a folder that gets a guard.parquet: a line for each row that something was found of.
    Without it, the findings are only printed."""

    run: Path | None = None
    """Run directory of `ost score`: of each cluster the best row is kept, in place of the first."""

    by: str = "score"
    """Column of the score table that says which is best, highest first."""

    options: Annotated[GuardOptions, HOW] = GuardOptions()

    reading: Annotated[PoolOptions, FILES] = PoolOptions()

    anchor_image_root: Path | None = None
    """Folder that the anchors' relative image paths start from."""

    benchmark_image_root: Path | None = None
    """Folder that the benchmark's relative image paths start from."""

    def __call__(self) -> None:
        """Search, write and name some of what there is."""
        from onesteptrain.evaluation.answers import extract_answer, same_answer

        pool = self.reading.open_checked(self.pool, tell)
        table = self._table()
        scores = _scores(self.run, self.by, pool) if self.run is not None else None
        against = self._against(pool)
        total = len(pool)
        with progress_bar("reading") as advance:
            findings = search(
                pool,
                finals=FinalAnswers(extract_answer, same_answer),
                against=against,
                options=self.options,
                scores=scores,
                progress=lambda done: advance(min(done, total), total),  # the other files come last and are small
            )
        if table is not None:
            write_findings(findings, pool, self.options, table, overwrite=self.overwrite)
        facts = {**_facts(findings), "out": table and str(table)}
        then = ["score", self.pool, "--anchors", self.anchors or "ANCHORS", "--proxy", "MODEL", "--out", "run"]
        self.say(describe_findings(findings, against, table), facts, then)

    def _table(self) -> Path | None:
        """The file to write; refused before the search, not after it."""
        if self.out is None:
            return None
        table = self.out if self.out.suffix == ".parquet" and not self.out.is_dir() else self.out / "guard.parquet"
        refuse_existing(table, "guard.parquet", overwrite=self.overwrite)
        return table

    def _against(self, pool: Pool) -> dict[str, Iterable[Sample | Unreadable]]:
        """The files to compare with; benchmark questions as rows that answer what is right."""
        against: dict[str, Iterable[Sample | Unreadable]] = {}
        others = self.reading.for_others()
        if self.anchors is not None:
            anchors = AnchorOptions(self.anchor_image_root)
            against["anchors"] = anchors.open(self.anchors, pool)
        if self.benchmark is not None:
            from onesteptrain.evaluation import read_benchmark

            questions = read_benchmark(self.benchmark, image_root=self.benchmark_image_root, **others)
            against["benchmark"] = [
                Sample(question.uid, row, (*question.turns, Turn("assistant", (question.answer,))))
                for row, question in enumerate(questions)
            ]
        return against


def describe_findings(findings: Findings, checked: Iterable[str], table: Path | None) -> str:
    """What was found, for people."""
    clusters = findings.clusters
    unused = sum(row.place.source == "pool" for row in findings.unused)
    lines = [
        f"{findings.rows} rows: {len(clusters.duplicates)} say again what {len(clusters.kept)} others say, "
        f"{unused} could not be compared"
    ]
    lines += [f"  {count:6d}  {kind}" for kind, count in findings.kinds.items()]
    lines += listed("largest clusters", _largest(findings))
    lines += listed("contradictions", [_pair(pair) for pair in findings.contradictions])
    alike = [_pair(pair) for pair in clusters.look_alikes]
    lines += listed("near question, other answer (kept; two questions or two answers?)", alike)
    for source in checked:
        leaks = [leak for leak in findings.leaks if leak.leak_of.source == source]
        rows = len({leak.place.row for leak in leaks})
        lines.append(f"leaks: {rows} rows of the pool stand in the {source}")
        lines += listed("pairs", [_leak(leak) for leak in leaks])
    lines += listed("could not be compared", [f"{_where(row.place)}: {row.reason}" for row in findings.unused])
    if table is not None:
        lines.append(f"table: {table}")
    return "\n".join(lines)


def _facts(findings: Findings) -> dict[str, Any]:
    clusters = findings.clusters
    sizes = Counter(row.cluster for row in clusters.duplicates)
    return {
        "rows": findings.rows,
        "duplicates": len(clusters.duplicates),
        "clusters": len(clusters.kept),
        "largest_cluster": max(sizes.values(), default=-1) + 1,
        "kinds": findings.kinds,
        "contradictions": [_plain(pair) for pair in findings.contradictions],
        "look_alikes": len(clusters.look_alikes),
        "leaks": [
            {"row": leak.place.row, "uid": leak.place.uid, "leak_of": leak.leak_of._asdict()} | leak.relation._asdict()
            for leak in findings.leaks
        ],
        "unused": [{**row.place._asdict(), "reason": row.reason} for row in findings.unused],
    }


def _plain(pair: Duplicate) -> dict[str, Any]:
    kept = {"kept_row": pair.duplicate_of.row, "kept_uid": pair.duplicate_of.uid}
    return {"row": pair.place.row, "uid": pair.place.uid, **kept, **pair.relation._asdict()}


def _largest(findings: Findings) -> list[str]:
    kept = findings.clusters.kept
    sizes = Counter(row.cluster for row in findings.clusters.duplicates if row.cluster is not None)
    return [f"{count + 1} rows like {_where(kept[cluster])}" for cluster, count in sizes.most_common()]


def _pair(pair: Duplicate) -> str:
    return f"{_where(pair.place)} and {_where(pair.duplicate_of)}: {pair.relation.kind}"


def _leak(leak: NearLeak) -> str:
    return f"{_where(leak.place)} is {_where(leak.leak_of)}: {leak.relation.kind}"


def _where(place: Place) -> str:
    name = "row" if place.source == "pool" else f"{place.source} row"
    return f"{name} {place.row} ({place.uid})"


def _scores(run: Path, by: str, pool: Pool) -> NDArray[np.float64]:
    """The column by row of the pool."""
    table = read_scores(run)
    if table.metadata.get("pool") != pool.fingerprint:
        raise ScoreError(f"{run} has scored another pool than {pool.path}, or that has changed; score it again")
    values = np.full(table.rows, np.nan)
    values[table.read(["row"])["row"].to_numpy()] = table.numbers(by)
    return values
