"""The functions of `import onesteptrain as ost`: from what people have to what they want, a step each.

    pool = ost.open_pool("pool.json")
    scores = ost.score(pool, anchors="anchors.jsonl", proxy="OpenGVLab/InternVL3-1B-hf")
    subset = ost.select(scores, keep="20%")
    subset.write("subset.json")

A pool or anchors may be given as a path, a `datasets.Dataset`, a pandas frame, a list of dicts, or a `Pool`; a proxy as
a checkpoint folder or hub name, the folder of a warm-up, or a loaded `Proxy`. The commands do the same steps.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onesteptrain.data.anchors import draw_anchors as draw_rows
from onesteptrain.data.anchors import refuse_leaks
from onesteptrain.data.pool import Pool, Sample, open_pool
from onesteptrain.data.score_record import IN_MEMORY, read_score_record
from onesteptrain.errors import ConfigError
from onesteptrain.jobs.progress import progress_bar
from onesteptrain.jobs.steps import AnchorOptions, read_anchors
from onesteptrain.methods import Method, method_class
from onesteptrain.selection import Selection, SelectOptions, select_rows
from onesteptrain.storage.score_table import ScoreTable, read_scores

if TYPE_CHECKING:  # these load torch, which opening, drawing and selecting do without
    from onesteptrain.jobs.scoring import ProxyOptions
    from onesteptrain.methods.one_step import OneStep
    from onesteptrain.proxy import LoadOptions, Proxy, ScopeOptions
    from onesteptrain.reporting.diagnosis import ExplainOptions, Explanation
    from onesteptrain.scoring.audit import Audit, AuditOptions
    from onesteptrain.scoring.options import ScoringOptions
    from onesteptrain.training import WarmupOptions
    from onesteptrain.training.warmup import WarmupResult


def draw_anchors(
    heldout: object, *, pool: object = None, count: int = 100, by: Sequence[str] = (), seed: int = 0
) -> Pool:
    """Draw trusted samples to score by, in proportion over the strata that some columns make.

    Args:
        heldout: Rows that you trust and that no model was trained on.
        pool: The pool to be scored; anchors that stand in it are refused.
        count: How many anchors.
        by: Columns to stratify by, such as topic and level.
        seed: Another seed, another draw.

    Returns:
        The anchors, in memory; `write_subset` of `onesteptrain.data.pool` writes them.

    Raises:
        AnchorError: too few rows, no such column, or an anchor stands in the pool.
    """
    source = _opened(heldout)
    anchors = source.subset(draw_rows(source, count=count, by=by, seed=seed).tolist())
    if pool is not None:
        refuse_leaks(anchors, _opened(pool))
    return anchors


def load_proxy(
    checkpoint: str | Path, *, scope: ScopeOptions | None = None, loading: LoadOptions | None = None
) -> Proxy:
    """Load a small vision-language model that stands in for the target.

    Args:
        checkpoint: Folder or hub name of an image-text-to-text model, or the folder of a warm-up.
        scope: Which parameters take the simulated step; by default all.
        loading: Device, type, limits.

    Raises:
        ModelError: there is no such checkpoint, or it is no vision-language model.
    """
    return _proxy_options(checkpoint, scope, loading).load()


def warm_up(
    pool: object,
    *,
    proxy: str | Path | Proxy,
    out: str | Path,
    anchors: object = None,
    options: WarmupOptions | None = None,
    overwrite: bool = False,
) -> WarmupResult:
    """Fine-tune a proxy on a few per cent of a pool; give the folder to `score` as its proxy.

    Args:
        pool: What is to be scored.
        proxy: The model before its warm-up; one that is loaded is trained in place.
        out: New folder: the model, Adam's second moments and what was done.
        anchors: Trusted samples that are not in the pool: what the training does to their loss is kept, for whether it
            is worth it.
        options: The share, and how it is trained.
        overwrite: Replace the folder of an earlier warm-up.

    Raises:
        AnchorError: an anchor stands in the pool, or cannot be read.
        PoolError: no row was drawn, or none of them can be used.
        RunError: the folder is taken.
        ScoreError: the training diverged.
    """
    from onesteptrain.training import WarmupOptions
    from onesteptrain.training import warm_up as train_proxy

    given, opened = _anchors(anchors), _opened(pool)
    trusted, rest = ([], opened) if given is None else read_anchors(given, opened, AnchorOptions())
    loaded = load_proxy(proxy) if isinstance(proxy, str | Path) else proxy
    with progress_bar("warm-up", "steps") as progress:
        return train_proxy(
            loaded,
            rest or opened,
            options or WarmupOptions(),
            Path(out),
            anchors=trusted,
            overwrite=overwrite,
            progress=progress,
        )


def score(  # noqa: PLR0913  what one may want to say of a score
    pool: object,
    *,
    anchors: object = None,
    proxy: str | Path | Proxy | None = None,
    method: str = "one_step",
    options: Method | Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    scope: ScopeOptions | None = None,
    loading: LoadOptions | None = None,
    scoring: ScoringOptions | None = None,
    seed: int = 0,
    overwrite: bool = False,
    reuse: str | Path | None = None,
) -> ScoreTable:
    """Score every sample of a pool: by default by what one training step on it does to the anchors.

    Args:
        pool: The samples. One that cannot be read or scored gets a reason in place of a score.
        anchors: Trusted samples that are not in the pool: 100 are enough; see `draw_anchors`.
        proxy: A small vision-language model, best after a `warm_up`.
        method: An installed method; `ost methods` lists them.
        options: Options of the method, such as `OneStep(store_tokens=True)` or `{"store_tokens": True}`.
        out: Run directory; the same call continues an interrupted one, and scores what has changed in the pool. By
            default, a temporary one that goes with the process.
        scope: Which parameters of the proxy take the step.
        loading: How the proxy is loaded.
        scoring: How the pool is worked through.
        seed: Fixes all that is random.
        overwrite: Delete an earlier run in the directory first.
        reuse: Another run directory with the same settings, whose scores are taken over for rows that it has.

    Returns:
        A table with `score` (higher is better), `reason`, and the method's columns for each row.

    Raises:
        AnchorError: an anchor stands in the pool, or cannot be used.
        ConfigError: there is no such method or option, or the method needs more.
        RunError: the directory is in use for something else.
    """
    from onesteptrain.jobs.scoring import ScoreRequest, score_into
    from onesteptrain.scoring.options import ScoringOptions

    scoring = scoring or ScoringOptions()
    scoring.refuse_ranks("ost.score, which gives a table,")
    opened = _opened(pool)
    given = {} if options is None else options
    made: Method = method_class(method)(**given) if isinstance(given, Mapping) else given
    request = ScoreRequest(
        opened,
        made,
        method,
        anchors=_anchors(anchors),
        anchor_reading=AnchorOptions(anchors.image_root if isinstance(anchors, Pool) else None),
        proxy=_proxy_options(proxy, scope, loading) if isinstance(proxy, str | Path) else proxy,
        scoring=scoring,
        seed=seed,
    )
    with progress_bar("scoring") as progress:
        earlier = None if reuse is None else Path(reuse)
        scored = score_into(_run_directory(out), request, overwrite=overwrite, reuse=earlier, progress=progress)
    return ScoreTable(scored.table.path, opened)


def select(
    scores: ScoreTable | str | Path, keep: str = "20%", *, options: SelectOptions | None = None, pool: object = None
) -> Selection:
    """Choose the rows to train on: by default, drop what looks unlike the anchors and draw from the rest.

    Args:
        scores: What `score` gave, or a run directory of `ost score` or `ost run`.
        keep: How much at most: a share of the pool such as "20%", a number of rows such as "5000", of tokens such as
            "2M tokens", or of training steps such as "300 steps of 32"; or the lowest value to keep such as ">=0.5".
        options: What is dropped, and what is preferred.
        pool: The pool, where it is no file that the run can find again.

    Raises:
        ConfigError: the budget cannot be used.
        ScoreError: there is no such column, or no row to keep.
    """
    return select_rows(_scores(scores), keep=keep, options=options, pool=None if pool is None else _opened(pool))


def audit(  # noqa: PLR0913  what one may want to say of an audit
    pool: object,
    *,
    anchors: object,
    proxy: str | Path | Proxy,
    method: OneStep | None = None,
    options: AuditOptions | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> Audit:
    """Take the exact step on a few rows, and compare it with the first-order score that `score` gives.

    Args:
        pool: What is scored.
        anchors: Trusted samples that are not in the pool.
        proxy: The proxy that scores; load it with `load_proxy` to say more of it.
        method: The options of the score.
        options: How many rows, and which step sizes.
        out: JSON file for the result.
        seed: Of the draw of the rows.
        overwrite: Replace an existing file.

    Raises:
        ConfigError: the estimator is exact already.
        ScoreError: fewer than 8 of the drawn rows can be scored.
    """
    from onesteptrain.jobs.scoring import ScoreRequest, audit_into
    from onesteptrain.methods.one_step import OneStep
    from onesteptrain.scoring.audit import AuditOptions

    request = ScoreRequest(
        _opened(pool),
        method or OneStep(),
        anchors=_anchors(anchors),
        proxy=_proxy_options(proxy) if isinstance(proxy, str | Path) else proxy,
        seed=seed,
    )
    file = Path(out) if out is not None else _run_directory(None) / "audit.json"
    with progress_bar("exact steps", "steps") as progress:
        return audit_into(file, request, options or AuditOptions(), overwrite=overwrite, progress=progress)


def explain(
    scores: ScoreTable | str | Path,
    *,
    options: ExplainOptions | None = None,
    pool: object = None,
    proxy: str | Path | None = None,
) -> Explanation:
    """Say of the harmful rows where in the answer the harm sits and what is likely wrong.

    Args:
        scores: Scores with the utility of each token: `score(..., options=OneStep(store_tokens=True, ablate=True))`.
        options: What is looked at beside.
        pool: The pool, where it is no file that the run can find again.
        proxy: Likewise; its tokenizer is needed.

    Raises:
        ConfigError: the proxy came from memory and none is given.
        ScoreError: columns or anchors are missing.
        PoolError: the pool is not the one that was scored.
    """
    from onesteptrain.reporting.diagnosis import explain as explain_table
    from onesteptrain.reporting.diagnosis.texts import load_quoter

    table = _scores(scores)
    if proxy is None and read_score_record(table.path.parent).asked.get("proxy") == IN_MEMORY:
        raise ConfigError("the proxy came from memory; give proxy, the checkpoint whose tokenizer the scores rest on")
    return explain_table(
        table,
        options=options,
        pool=None if pool is None else _opened(pool),
        quote=None if proxy is None else load_quoter(str(proxy)),
    )


def _opened(source: Any) -> Pool:
    return source if isinstance(source, Pool) else open_pool(source)


def _anchors(source: Any) -> Path | Pool | Sequence[Sample] | None:
    """Anchors as a request holds them: a file stays one, so that the record can name it."""
    if source is None or isinstance(source, Pool):
        return source
    if isinstance(source, str | Path):
        return Path(source)
    samples = isinstance(source, list | tuple) and all(isinstance(row, Sample) for row in source)
    return source if samples else open_pool(source)


def _scores(scores: ScoreTable | str | Path) -> ScoreTable:
    return scores if isinstance(scores, ScoreTable) else read_scores(scores)


def _proxy_options(
    checkpoint: str | Path, scope: ScopeOptions | None = None, loading: LoadOptions | None = None
) -> ProxyOptions:
    from onesteptrain.jobs.scoring import ProxyOptions
    from onesteptrain.proxy import LoadOptions, ScopeOptions

    return ProxyOptions(str(checkpoint), scope or ScopeOptions(), loading or LoadOptions())


def _run_directory(out: str | Path | None) -> Path:
    """The directory that was asked for, or one that goes with the process."""
    if out is not None:
        return Path(out)
    folder = tempfile.mkdtemp(prefix="ost-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)
