"""Score and select vision-language training samples by one-step utility.

>>> import onesteptrain as ost
>>> pool = ost.open_pool("pool.json")                  # or a datasets.Dataset, or a pandas frame   # doctest: +SKIP
>>> scores = ost.score(pool, anchors="anchors.jsonl", proxy="OpenGVLab/InternVL3-1B-hf")            # doctest: +SKIP
>>> subset = ost.select(scores, keep="20%")                                                         # doctest: +SKIP
>>> subset.write("subset.json"); subset.to_dataset(); scores.to_pandas()                            # doctest: +SKIP

Names are imported when they are first used, so that opening, reading and selecting load no torch; docs/python.md has
a page on them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onesteptrain.data.pool import Pool, Sample, open_pool
    from onesteptrain.jobs.api import audit, draw_anchors, explain, load_proxy, score, select, warm_up
    from onesteptrain.methods.one_step import OneStep
    from onesteptrain.proxy import LoadOptions, Proxy, ScopeOptions
    from onesteptrain.reporting.diagnosis import ExplainOptions
    from onesteptrain.scoring.audit import AuditOptions
    from onesteptrain.scoring.options import ScoringOptions
    from onesteptrain.selection import Selection, SelectOptions
    from onesteptrain.storage.score_table import ScoreTable, read_scores
    from onesteptrain.training import FinetuneOptions, WarmupOptions

_HOMES = {
    "data.pool": ("Pool", "Sample", "open_pool"),
    "jobs.api": ("audit", "draw_anchors", "explain", "load_proxy", "score", "select", "warm_up"),
    "methods.one_step": ("OneStep",),
    "proxy": ("LoadOptions", "Proxy", "ScopeOptions"),
    "reporting.diagnosis": ("ExplainOptions",),
    "scoring.audit": ("AuditOptions",),
    "scoring.options": ("ScoringOptions",),
    "selection": ("SelectOptions", "Selection"),
    "storage.score_table": ("ScoreTable", "read_scores"),
    "training": ("FinetuneOptions", "WarmupOptions"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "AuditOptions",
    "ExplainOptions",
    "FinetuneOptions",
    "LoadOptions",
    "OneStep",
    "Pool",
    "Proxy",
    "Sample",
    "ScopeOptions",
    "ScoreTable",
    "ScoringOptions",
    "SelectOptions",
    "Selection",
    "WarmupOptions",
    "audit",
    "draw_anchors",
    "explain",
    "load_proxy",
    "open_pool",
    "read_scores",
    "score",
    "select",
    "warm_up",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
