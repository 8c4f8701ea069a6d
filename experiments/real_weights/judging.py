"""Score charts with planted noise by a proxy: how well each signal, and the gate, tell bad rows from clean ones."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq

import onesteptrain as ost
from onesteptrain.data.pool import write_subset
from onesteptrain.selection.guidance import measure_guidance
from onesteptrain.selection.trust import measure_trust
from onesteptrain.storage.atomic import write_json
from onesteptrain.synthetic import SyntheticData, SyntheticOptions, make_synthetic

sys.path.insert(0, str(Path(__file__).parents[1] / "worlds_common"))
from separating import auroc

DATA = SyntheticOptions(pool_rows=600, heldout_rows=200, benchmark_rows=100, noise_share=0.4, seed=5)
ANCHORS = 60

SIGNALS = {"utility": 1, "harm": 1, "loss": -1, "worst_loss": -1}
"""What is looked at, and which sign makes more of it better."""

WARMUP = ost.WarmupOptions(
    share=0.25,
    finetune=ost.FinetuneOptions(epochs=3, batch_size=8, learning_rate=1e-4, autocast="bfloat16"),
)
"""Of the foreign proxy: it has never seen a clean row of these data, only a quarter of the noisy pool."""


class Data(NamedTuple):
    """The pool, what was planted in it, and its anchors."""

    pool: Path
    kinds: np.ndarray
    """What is wrong with each row; "clean" where nothing is."""

    anchors: Path


class Result(NamedTuple):
    """What one proxy says in one scope."""

    proxy: str
    scope: str
    auroc: dict[str, dict[str, float]]
    """By signal and by kind of noise, against all clean rows; "all" is every kind."""

    passing: dict[str, float]
    """Share of the rows of each kind that pass the gate."""

    clean_of_passing: float
    clean_share: float
    """As the gate estimates it."""

    clean_loss: float
    """Median mean loss of the clean rows, in nats a token."""

    rows_per_second: float

    guidance: list[str]
    """What anchors and their corrupted copies say of the utility and of harm."""


def provide_data(folder: Path) -> Data:
    """Make the data, once, and draw the anchors."""
    parts = SyntheticData.at(folder) if folder.exists() else make_synthetic("charts", DATA, folder)
    anchors = folder / "anchors.jsonl"
    if not anchors.exists():
        drawn = ost.draw_anchors(parts.heldout, pool=parts.pool, count=ANCHORS, by=("skill", "level"))
        write_subset(drawn, range(len(drawn)), anchors)
    return Data(parts.pool, np.array(pq.read_table(parts.truth)["kind"].to_pylist()), anchors)


def warm_up(data: Data, source: Path, out: Path) -> None:
    """Warm a proxy up on the noisy pool alone."""
    done = ost.warm_up(data.pool, proxy=source, out=out, options=WARMUP)
    losses = [round(float(np.mean(part)), 3) for part in np.array_split(done.losses, 5)]
    print(f"warm-up on {done.used} rows, {done.steps} steps, loss by fifths {losses}", flush=True)


def judge(data: Data, proxy: Path, scope: str, out: Path, epsilon: float | None) -> Result:
    """Score the pool, or go on with it, and compare with what was planted."""
    name = out.name.removesuffix(f"-{scope}")
    table = ost.score(
        data.pool,
        anchors=data.anchors,
        proxy=proxy,
        options=ost.OneStep(fd_epsilon=epsilon),
        scope=ost.ScopeOptions(scope),
        loading=ost.LoadOptions(device="cpu"),
        out=out,
    )
    seconds = json.loads((out / "provenance.json").read_text(encoding="utf-8"))["seconds"]
    clean = data.kinds == "clean"
    kinds = sorted({*data.kinds} - {"clean"})
    trust = measure_trust(table)
    passing = trust.passing()
    return Result(
        proxy=name,
        scope=scope,
        auroc={signal: _by_kind(sign * table.numbers(signal), data.kinds, kinds) for signal, sign in SIGNALS.items()},
        passing={kind: float(passing[data.kinds == kind].mean()) for kind in ("clean", *kinds)},
        clean_of_passing=float(clean[passing].mean()) if passing.any() else float("nan"),
        clean_share=trust.clean_share,
        clean_loss=float(np.median(table.numbers("loss")[clean])),
        rows_per_second=len(table) / seconds,
        guidance=[_guidance(table, column) for column in ("utility", "harm")],
    )


def audit(data: Data, proxy: Path, scope: str, out: Path, epsilon: float | None) -> None:
    """Take the exact step on ten rows, and print how it ranks them beside the first-order score."""
    if not out.exists():
        loading = ost.LoadOptions(device="cpu")
        ost.audit(
            data.pool,
            anchors=data.anchors,
            proxy=ost.load_proxy(proxy, scope=ost.ScopeOptions(scope), loading=loading),
            method=ost.OneStep(fd_epsilon=epsilon),
            options=ost.AuditOptions(rows=10, step_sizes=(1e-4, 1e-3)),
            out=out,
        )
    found = json.loads(out.read_text(encoding="utf-8"))
    print(f"\nexact against fd, {out.stem}, {found['rows']} rows\n\n| step size | rank correlation | relative error |")
    print("| --- | --- | --- |")
    for size in found["sizes"]:
        spearman = size["spearman"]["value"]
        print(f"| {size['step_size']:g} | {spearman:.3f} | {size['relative_error']:.1%} |", flush=True)


def print_result(result: Result) -> None:
    """One proxy in one scope: a line a signal, a column a kind of noise."""
    kinds = list(result.auroc["loss"])
    print(f"\n{result.proxy}, scope {result.scope}: AUROC for bad rows\n")
    print("| signal | " + " | ".join(kinds) + " |\n| --- |" + " --- |" * len(kinds))
    for signal, values in result.auroc.items():
        print(f"| {signal} | " + " | ".join(f"{values[kind]:.3f}" for kind in kinds) + " |")
    passing = [f"{result.passing[kind]:.1%}" if kind != "all" else "" for kind in kinds]
    print("| passes the gate | " + " | ".join(passing) + " |")
    print(
        f"\nclean rows that pass {result.passing['clean']:.1%}, clean of what passes {result.clean_of_passing:.1%}, "
        f"estimated clean {result.clean_share:.1%}, median loss of clean rows {result.clean_loss:.4f}, "
        f"{result.rows_per_second:.2f} rows a second\n\nby corrupted anchors: {'; '.join(result.guidance)}",
        flush=True,
    )


def print_summary(results: list[Result]) -> None:
    """A line a proxy and scope, all kinds of noise together."""
    heads = ["proxy, scope", "loss of clean rows", *SIGNALS, "clean rows that pass", "clean of what passes"]
    heads += ["estimated clean", "rows a second"]
    print("\n| " + " | ".join(heads) + " |\n|" + " --- |" * len(heads))
    for one in results:
        found = " | ".join(f"{one.auroc[signal]['all']:.3f}" for signal in SIGNALS)
        gate = " | ".join(f"{share:.1%}" for share in (one.passing["clean"], one.clean_of_passing, one.clean_share))
        print(f"| {one.proxy}, {one.scope} | {one.clean_loss:.4f} | {found} | {gate} | {one.rows_per_second:.2f} |")


def keep(results: list[Result], out: Path) -> None:
    """All figures in one file."""
    write_json(out, [result._asdict() for result in results])


def _guidance(table: ost.ScoreTable, column: str) -> str:
    told = measure_guidance(table, column)
    return (
        f"{column} unknown"
        if told is None
        else "{} {}, {:.2f} ({:.2f} to {:.2f})".format(column, told.verdict, *told.area)
    )


def _by_kind(values: np.ndarray, kinds: np.ndarray, names: list[str]) -> dict[str, float]:
    good = values[kinds == "clean"]
    return {"all": auroc(good, values[kinds != "clean"])} | {name: auroc(good, values[kinds == name]) for name in names}
