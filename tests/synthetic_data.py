"""Synthetic data that tests share and must not change."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from onesteptrain.synthetic import MixedOptions, SyntheticOptions, make_synthetic

ROWS = {"digits": 1200, "charts": 1400, "mixed": 1000}
"""Of digits and charts, a hundred bad rows of each kind."""


@functools.cache
def synthetic(kind: str) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="ost-test-")) / kind
    options = MixedOptions if kind == "mixed" else SyntheticOptions
    make_synthetic(kind, options(pool_rows=ROWS[kind], heldout_rows=120, benchmark_rows=120), folder)
    return folder
