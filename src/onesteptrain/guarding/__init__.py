"""Guards: near-duplicates, contradictions and leaks in a pool, by text and image together."""

from onesteptrain.guarding.duplicates import Clusters, Duplicate
from onesteptrain.guarding.index import Place, Unused
from onesteptrain.guarding.leaks import NearLeak
from onesteptrain.guarding.options import GuardOptions
from onesteptrain.guarding.relating import Relation
from onesteptrain.guarding.searching import Findings, guard
from onesteptrain.guarding.table import read_duplicates, read_leaks, refuse_existing, write_findings

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
