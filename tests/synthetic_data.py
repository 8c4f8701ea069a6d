"""Synthetic data that tests share and must not change."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from onesteptrain.synthetic import SyntheticOptions, make_synthetic

ROWS = {"digits": 1200, "charts": 1400}
"""A hundred bad rows of each kind."""


@functools.cache
def synthetic(kind: str) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="ost-test-")) / kind
    make_synthetic(kind, SyntheticOptions(pool_rows=ROWS[kind], heldout_rows=120, benchmark_rows=120), folder)
    return folder
