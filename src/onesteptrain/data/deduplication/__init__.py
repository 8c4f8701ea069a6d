"""Near-duplicates, contradictions and leaks in a pool, by text and image together."""

from onesteptrain.data.deduplication.findings import Clusters, Duplicate, Findings, NearLeak, guard
from onesteptrain.data.deduplication.index import Place, Unused
from onesteptrain.data.deduplication.pairs import GuardOptions
from onesteptrain.data.deduplication.relations import FinalAnswers
from onesteptrain.data.deduplication.table import read_duplicates, read_leaks, write_findings

__all__ = [
    "Clusters",
    "Duplicate",
    "FinalAnswers",
    "Findings",
    "GuardOptions",
    "NearLeak",
    "Place",
    "Unused",
    "guard",
    "read_duplicates",
    "read_leaks",
    "write_findings",
]
