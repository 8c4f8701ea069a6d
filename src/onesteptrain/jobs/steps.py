"""The steps of the main job, each from files to files: what a command and a line of `ost run` have in common.

A step checks its inputs, owns its output, and calls one function of the library.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onesteptrain.data.anchors import draw_anchors, refuse_leaks
from onesteptrain.data.pool import FormatName, Pool, Sample, Unreadable, open_pool, write_subset
from onesteptrain.errors import AnchorError, ConfigError, PoolError, RunError
from onesteptrain.methods import Method, Setting, essential_options, incidental_options
from onesteptrain.scoring.score import Expect, Progress, ScoringOptions, ScoringResult, nothing_ahead, score_pool
from onesteptrain.selection import Selection, SelectOptions, select_subset
from onesteptrain.storage.atomic import write_json
from onesteptrain.storage.fingerprints import fingerprint, names_file
from onesteptrain.storage.run_directory import Run, begin_run
from onesteptrain.storage.score_table import ScoreTable

if TYPE_CHECKING:  # these load torch, which drawing anchors and selecting do without
    from onesteptrain.methods.one_step import OneStep
    from onesteptrain.proxy import LoadOptions, ScopeOptions
    from onesteptrain.scoring.audit import Audit, AuditOptions
    from onesteptrain.training import WarmupOptions

Tell = Callable[[str], None]
"""Told in a line what a step has done."""


@dataclass(frozen=True)
class PoolOptions:
    """How the pool is read."""

    format: FormatName = "auto"
    """Layout of the rows; auto tells it from the first ones."""

    image_root: Path | None = None
    """Folder that relative image paths start from; by default the pool's own."""

    def open(self, path: Path) -> Pool:
        """Open a pool with these options."""
        return open_pool(path, format=self.format, image_root=self.image_root)


@dataclass(frozen=True)
class AnchorOptions:
    """How the anchors are read and checked."""

    anchor_image_root: Path | None = None
    """Folder that the anchors' relative image paths start from; by default the anchor file's own."""

    allow_leaks: bool = False
    """Score even though anchors stand in the pool: their utility is then too good to be true."""

    def open(self, path: Path) -> Pool:
        """Open an anchor file with these options."""
        return open_pool(path, image_root=self.anchor_image_root)


def draw_anchor_file(  # noqa: PLR0913  the parts of one request
    heldout: Pool, pool: Pool | None, out: Path, *, count: int, by: tuple[str, ...], seed: int, overwrite: bool
) -> int:
    """Draw anchors from held-out rows, refuse those that stand in the pool, and write them in their own format.

    Raises:
        AnchorError: too few rows, no such column, or an anchor stands in the pool.
    """
    rows = draw_anchors(heldout, count=count, by=by, seed=seed)
    if pool is not None:
        chosen = set(rows.tolist())
        refuse_leaks((row for row in heldout if row.row in chosen), pool)
    return write_subset(heldout, rows, out, overwrite=overwrite)


def provide_anchors(
    out: Path, pool: Pool, draw: tuple[Path, int, tuple[str, ...], int], checking: AnchorOptions, tell: Tell
) -> tuple[Path, AnchorOptions]:
    """Draw anchors into a file, unless it is there.

    Args:
        out: The anchor file.
        pool: The pool that they must not stand in.
        draw: Held-out file, number of anchors, columns to stratify by, and seed.
        checking: How anchors are checked.
        tell: Told how many were drawn.

    Returns:
        The file, and how to read it: drawn anchors keep the image paths of the rows that they were drawn from.
    """
    heldout, count, by, seed = draw
    root = checking.anchor_image_root or (heldout if heldout.is_dir() else heldout.parent)
    if not out.exists():
        rows = PoolOptions(image_root=root).open(heldout)
        drawn = draw_anchor_file(rows, pool, out, count=count, by=by, seed=seed, overwrite=False)
        tell(f"drew {drawn} anchors: {out}")
    return out, dataclasses.replace(checking, anchor_image_root=root)


def provide_proxy(
    out: Path,
    checkpoint: str,
    pool: Pool,
    options: WarmupOptions,
    loading: tuple[ScopeOptions, LoadOptions],
    tell: Tell,
) -> tuple[str, float]:
    """Warm up a proxy into a folder, unless it is there.

    Returns:
        The folder, and the seconds that its warm-up took.
    """
    from onesteptrain.proxy import load_proxy
    from onesteptrain.training import warm_up
    from onesteptrain.training.warmup import FACTS

    if not out.exists():
        result = warm_up(load_proxy(checkpoint, *loading), pool, options, out)
        tell(f"warmed up the proxy on {result.used} rows in {result.steps} steps: {out}")
    return str(out), float(json.loads((out / FACTS).read_text(encoding="utf-8"))["seconds"])


def score_into(  # noqa: PLR0913  the parts of one request
    run_path: Path,
    pool: Pool,
    method: Method,
    *,
    anchors: Path | None,
    proxy: str | None,
    seed: int = 0,
    options: ScoringOptions | None = None,
    anchor_options: AnchorOptions | None = None,
    loading: tuple[ScopeOptions, LoadOptions] | None = None,
    name: str = "one_step",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ScoringResult:
    """Score a pool into a run directory, continuing one that was interrupted.

    Raises:
        AnchorError: an anchor stands in the pool, or cannot be used.
        RunError: the directory is in use for something else.
    """
    options = options or ScoringOptions()
    checked = read_anchors(anchors, pool, anchor_options or AnchorOptions()) if anchors is not None else []
    request = {
        "pool": pool.path,
        "format": pool.format,
        "image_root": pool.image_root,
        "anchors": anchors,
        "proxy": Path(proxy) if proxy is not None and Path(proxy).exists() else proxy,
        "method": name,
        **dataclasses.asdict(method),  # type: ignore[call-overload]
        **dataclasses.asdict(anchor_options or AnchorOptions()),
        **dataclasses.asdict(options),
        **{key: value for part in loading or () for key, value in dataclasses.asdict(part).items()},
        "seed": seed,
    }
    inputs = {"pool": pool.fingerprint}
    inputs |= {"anchors": fingerprint(anchors)} if anchors is not None else {}
    inputs |= {"proxy": fingerprint(proxy)} if proxy is not None else {}
    inputs |= {key: fingerprint(value) for key, value in essential_options(method).items() if names_file(value)}

    @functools.cache
    def setting() -> Setting:  # the proxy is loaded once
        return make_setting(proxy, loading, checked, seed, run)

    def ahead(asked: int | None) -> AbstractContextManager[Expect]:
        loaded = setting().proxy
        if loaded is None:
            return nothing_ahead(asked)
        from onesteptrain.proxy import encoded_ahead, readers

        return encoded_ahead(loaded.encoder, readers(asked, loaded.device))

    incidental = incidental_options(method) | {"chunk_rows", "readers", "max_failed_share"}
    with begin_run(run_path, {"score": plain(request)}, inputs, overwrite=overwrite, incidental=incidental) as run:
        result = score_pool(pool, lambda: method.prepare(setting()), run, options, progress, ahead)
        run.record(rows=result.rows, failed=result.failed)
    return result


def read_anchors(path: Path, pool: Pool | None, options: AnchorOptions) -> list[Sample]:
    """Read an anchor file and refuse it if one of its samples stands in the pool.

    Raises:
        AnchorError: there are no anchors, one cannot be read, or one stands in the pool.
    """
    anchors = list(readable(options.open(path)))
    if not anchors:
        raise AnchorError(f"{path} holds no anchors; give a file with at least one readable sample")
    if pool is not None and not options.allow_leaks:
        refuse_leaks(anchors, pool)
    return anchors


def readable(rows: Iterable[Sample | Unreadable]) -> Iterable[Sample]:
    """The samples of an anchor file, each of which must be readable.

    Raises:
        AnchorError: one is not.
    """
    for row in rows:
        if isinstance(row, Unreadable):
            raise AnchorError(f"an anchor cannot be read: {row.reason}")
        yield row


def make_setting(
    proxy: str | None,
    loading: tuple[ScopeOptions, LoadOptions] | None,
    anchors: list[Sample],
    seed: int,
    run: Run | None = None,
) -> Setting:
    """What a method works with; the proxy may be a checkpoint, or the folder of a warm-up."""
    if proxy is None:
        return Setting(anchors=anchors, seed=seed)
    from onesteptrain.proxy import LoadOptions, ScopeOptions, load_proxy

    scope, load = loading or (ScopeOptions(), LoadOptions())
    checkpoint, moments = locate_proxy(proxy)
    loaded = load_proxy(checkpoint, scope, load)
    if run is not None:
        run.record(device=str(loaded.device), dtype=str(loaded.dtype), scoped_parameters=len(loaded.parameters))
    return Setting(loaded, anchors, moments, seed, locate_checkpoints(proxy))


def locate_proxy(proxy: str) -> tuple[str, Path | None]:
    """The checkpoint, and the second moments if the proxy is the folder of a warm-up."""
    moments = Path(proxy) / "second_moments.safetensors"
    return (str(Path(proxy) / "model"), moments) if moments.is_file() else (proxy, None)


def locate_checkpoints(proxy: str) -> list[Path]:
    """The checkpoints in the folder of a warm-up, in the order of their steps; none if it kept none."""
    kept = [path for path in (Path(proxy) / "checkpoints").glob("*") if path.name.isdigit()]
    return sorted(kept, key=lambda path: int(path.name))


def select_into(
    run_path: Path,
    out: Path,
    *,
    keep: str,
    options: SelectOptions | None = None,
    overwrite: bool = False,
) -> Selection:
    """Write some rows of the pool that a run has scored.

    Raises:
        RunError: this is no run directory.
        ConfigError: the budget cannot be used.
        ScoreError: scoring is not finished, there is no such column, or no row to keep.
        PoolError: the pool has changed since.
    """
    asked = Run(run_path).config.get("score")
    if asked is None:
        raise ConfigError(f"{run_path} holds no scores; give the --out of `ost score`")
    table = ScoreTable(run_path / "scores.parquet")
    if not Path(asked["pool"]).exists():
        raise PoolError(f"the pool {asked['pool']} that {run_path} has scored does not exist; put it back")
    image_root = asked.get("image_root")
    pool = open_pool(Path(asked["pool"]), format=asked["format"], image_root=image_root and Path(image_root))
    return select_subset(table, pool, out, keep=keep, options=options, overwrite=overwrite)


def audit_into(  # noqa: PLR0913  the parts of one request
    out: Path,
    pool: Pool,
    method: OneStep,
    setting: Setting,
    options: AuditOptions,
    *,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Audit:
    """Audit a first-order estimator on a pool and keep the result as JSON.

    Raises:
        ConfigError: the output is a folder.
        RunError: the output exists.
    """
    from onesteptrain.scoring.audit import audit

    if out.is_dir():
        raise ConfigError(f"output {out} is a folder; give a file name such as audit.json")
    if out.exists() and not overwrite:
        raise RunError(f"output {out} exists; give another path, or add --overwrite")
    result = audit(pool, method, setting, options, progress)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, audit_facts(result, method, options))
    return result


def audit_facts(result: Audit, method: OneStep, options: AuditOptions) -> dict[str, Any]:
    """An audit as plain values."""
    sizes = [
        {**row._asdict(), "spearman": row.spearman._asdict(), "top_overlap": row.top_overlap._asdict()}
        for row in result.sizes
    ]
    facts = {**result._asdict(), "sizes": sizes, "top_share": options.top_share, "confidence": options.confidence}
    return {name: plain(value) for name, value in {**facts, "method": dataclasses.asdict(method)}.items()}


def plain(value: Any) -> Any:
    """Paths as absolute text, tuples as lists, NaN as null and nothing that is not set, for YAML and JSON."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return os.path.abspath(value) if isinstance(value, Path) else value
