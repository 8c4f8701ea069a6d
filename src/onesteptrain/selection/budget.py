"""How much to keep: a share or a number of rows, or every row from some value up (rejection)."""

from __future__ import annotations

import math

from onesteptrain.errors import ConfigError

_FLOOR = ">="


def parse_budget(keep: str, rows: int) -> int:
    """Number of rows that a budget means for a pool.

    Args:
        keep: A share such as "20%", or a number of rows such as "5000".
        rows: Rows of the pool, scored or not: a share is a share of all of them.

    Raises:
        ConfigError: it is neither, or out of range.
    """
    text = keep.strip()
    try:
        value = float(text[:-1]) if text.endswith("%") else float(int(text))
    except ValueError as error:
        raise ConfigError(
            f"keep is {keep!r}; give a share such as 20%, a number such as 5000, or a lowest value such as >=0.5"
        ) from error
    if text.endswith("%"):
        if not 0 < value <= 100:
            raise ConfigError(f"keep is {keep!r}; a share lies above 0% and at most 100%")
        return max(1, round(value / 100 * rows))
    if not 1 <= value <= rows:
        raise ConfigError(f"keep is {keep!r}; the pool has {rows} rows")
    return int(value)


def parse_floor(keep: str) -> float | None:
    """The lowest value that a rejection budget such as ">=0.5" keeps; None if the budget is of another kind.

    Raises:
        ConfigError: no finite number stands after >=.
    """
    text = keep.strip()
    if not text.startswith(_FLOOR):
        return None
    try:
        floor = float(text.removeprefix(_FLOOR))
    except ValueError:
        floor = math.nan
    if not math.isfinite(floor):
        raise ConfigError(f"keep is {keep!r}; after >= give the lowest value of the column to keep, such as >=0.5")
    return floor
