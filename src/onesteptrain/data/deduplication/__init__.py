"""Guards: near-duplicates, contradictions and leaks in a pool, by text and image together."""

from onesteptrain.data.deduplication.duplicates import Clusters, Duplicate
from onesteptrain.data.deduplication.index import Place, Unused
from onesteptrain.data.deduplication.leaks import NearLeak
from onesteptrain.data.deduplication.options import GuardOptions
from onesteptrain.data.deduplication.relating import Relation
from onesteptrain.data.deduplication.searching import Findings, guard
from onesteptrain.data.deduplication.table import read_duplicates, read_leaks, refuse_existing, write_findings

__all__ = [
    "Clusters",
    "Duplicate",
    "Findings",
    "GuardOptions",
    "NearLeak",
    "Place",
    "Relation",
    "Unused",
    "guard",
    "read_duplicates",
    "read_leaks",
    "refuse_existing",
    "write_findings",
]
