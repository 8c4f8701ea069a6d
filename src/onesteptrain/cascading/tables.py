"""The table of a cascade: the cheap one with what the dear stages and the expectation say."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from onesteptrain.cascading.doubt import FEWEST, Values
from onesteptrain.cascading.seeing import GLIMPSE, Positions, Seen
from onesteptrain.storage.score_table import BASE_COLUMNS, ScoreTable

Parts = Sequence[tuple[Positions, ScoreTable]]
"""Rows that were scored dearly, and what came out."""


def cascade_table(seen: Seen, utility: Values, exact: Values) -> pa.Table:
    """The cheap table with the utilities of the cascade; rows without a cheap score keep their reason."""
    table = seen.table.read()
    scored = table["reason"].is_null().to_numpy(zero_copy_only=False)
    columns = {name: table[name] for name in table.column_names}
    for name in ("score", "utility"):
        columns[name] = pa.array(utility, mask=~scored)
    first_order = seen.columns[:, 0]
    columns |= {"first_order": pa.array(first_order, mask=~scored), "exact": _where_finite(exact)}
    return pa.table(columns).replace_schema_metadata(table.schema.metadata)


def landmark_table(seen: Seen, utility: Values, parts: Parts, landmarks: Positions) -> pa.Table:
    """The losses of the glimpse, first-order columns where rows were scored, and what is expected of them elsewhere.

    Utilities by group and harm are expected as the utility is, by a line from the glimpse; gain is what utility and
    harm leave. Other columns of the first order are null where a row was not scored, and a row that could not be scored
    has that reason. The sketches stay with the cheap stage.
    """
    table = seen.table.read([name for name in seen.table.names if name != GLIMPSE])
    reasons = _reasons(table["reason"].to_pylist(), parts, utility)
    scored = np.array([reason is None for reason in reasons])
    columns = {name: table[name] for name in table.column_names} | {"reason": pa.array(reasons, pa.string())}
    columns["score"] = columns["utility"] = pa.array(utility, mask=~scored)
    known = {name: _gather(name, parts, len(utility)) for name in _numeric(parts) if name not in columns}

    def told(name: str) -> Values:
        rows = landmarks[np.isfinite(known[name][landmarks])]
        if len(rows) < FEWEST:
            return known[name]
        return np.where(np.isfinite(known[name]), known[name], seen.expect(rows, known[name][rows]))

    if parts:
        columns["first_order"] = _where_finite(_gather("utility", parts, len(utility)))
        harm = np.where(np.isfinite(known["harm"]), known["harm"], np.minimum(told("harm"), np.minimum(utility, 0.0)))
        gain = np.where(np.isfinite(known["gain"]), known["gain"], utility - harm)
        known |= {name: told(name) for name in known if name.startswith("utility.")} | {"harm": harm, "gain": gain}
    columns |= {name: _where_finite(np.where(scored, values, np.nan)) for name, values in known.items()}
    return pa.table(columns).replace_schema_metadata(table.schema.metadata)


def _reasons(reasons: list[str | None], parts: Parts, utility: Values) -> list[str | None]:
    """Why each row has no score: no glimpse, no first order, or nothing to tell the one from the other by."""
    for rows, table in parts:
        for row, reason in zip(rows.tolist(), table.read(["reason"])["reason"].to_pylist(), strict=True):
            reasons[row] = reasons[row] or reason
    lacking = "too few rows could be scored to tell its utility from its glimpse"
    told = np.isfinite(utility).tolist()
    return [reason or (None if there else lacking) for reason, there in zip(reasons, told, strict=True)]


def _numeric(parts: Parts) -> list[str]:
    """The numbers that the dear stages give, beside the score."""
    fields = {one.name: one.type for _, table in parts for one in pq.read_schema(table.path)}
    return [
        name
        for name, kind in fields.items()
        if name not in BASE_COLUMNS and (pa.types.is_floating(kind) or pa.types.is_integer(kind))
    ]


def _gather(name: str, parts: Parts, rows: int) -> Values:
    """One column of the dear stages at the rows of the pool; NaN elsewhere."""
    values = np.full(rows, np.nan)
    for some, table in parts:
        if name in table.names:
            values[some] = table.numbers(name)
    return values


def _where_finite(values: NDArray[np.float64]) -> pa.Array:
    """Numbers, null where there is none."""
    return pa.array(values, mask=~np.isfinite(values))
