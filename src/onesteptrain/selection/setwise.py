"""Set-wise marginal utility: what a row still adds, given the rows that are chosen.

A row's utility u_z = <u, g_z> counts what a step along its gradient g_z brings, as if it were alone. A step on a set S
that lowers the loss of each of its rows by the same amount, with as little movement as it takes (ridge lambda), is

    step(S) = (lambda I + sum of g g^T over S)^-1 (sum of g over S),   so that   F(S) = <u, step(S)>

is what the set is worth: a sum of u_z / (lambda + |g_z|^2) for rows whose gradients are orthogonal, and less than that
for rows that pull the same way. With B = (lambda I + sum of g g^T)^-1, adding z to S adds

    (u^T B g_z) (1 - b^T B g_z) / (1 + g_z^T B g_z),   b: sum of g over S,

the part of its utility, and the part of its loss, that the chosen rows do not account for. lambda is the mean of |g|^2:
a row alone moves half-way. Only inner products enter, which a count sketch of the gradients keeps, and u itself is not
needed: u^T B g_z starts as u_z / lambda, and each choice updates it.

Rows whose gradients point the same way as a chosen one's (cosine 0.999) are duplicates and are passed over.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from onesteptrain.errors import ScoreError
from onesteptrain.scores import ScoreTable

COLUMN = "sketch"

SAME = 0.999
"""Cosine of gradients from which a row is a duplicate."""

_BLOCK = 20_000
"""Rows that are compared with each other; more are worked through block by block, each given what was chosen before."""

Values = NDArray[np.float64]
Positions = NDArray[np.int64]


def setwise_order(table: ScoreTable, passed: Positions, utility: Values, count: int, seed: int) -> Positions:
    """Rows in the order in which they are chosen, until a number is reached or none adds anything.

    Memory holds the sketches of the rows in 4 bytes a dimension, and those of one block in 8.

    Args:
        table: A table with a column `sketch`.
        passed: Rows to choose from.
        utility: Their utilities.
        count: Rows to choose.
        seed: Of the split into blocks, where there are more rows than one holds.

    Raises:
        ScoreError: there are no sketches.
    """
    sketches = read_sketches(table, passed)
    order = np.random.default_rng(seed).permutation(len(passed)) if len(passed) > _BLOCK else np.arange(len(passed))
    ridge = float(np.einsum("ij,ij->i", sketches, sketches, dtype=np.float64).mean())
    if not ridge > 0:
        raise ScoreError(f"all sketches of {table.path} are zero; score again with another --scope")
    state = fresh_state(sketches.shape[1], ridge)
    chosen: list[Positions] = []
    for start in range(0, len(order), _BLOCK):
        block = np.sort(order[start : start + _BLOCK])
        wanted = round(count * (start + len(block)) / len(order)) - sum(map(len, chosen))
        picks, state = greedy(sketches[block].astype(np.float64), utility[block], wanted, state)
        chosen.append(block[picks])
    return passed[np.concatenate(chosen)]


class State(NamedTuple):
    """What is chosen so far, in the space of the sketches."""

    inverse: NDArray[np.float64]
    """B, "dim dim"."""

    total: Values
    """b, the sum of the chosen rows' gradients."""

    explained: Values
    """The part of u that the chosen rows account for: u^T B g = (u - explained)^T g / ridge."""

    ridge: float


def fresh_state(dimensions: int, ridge: float) -> State:
    """Nothing is chosen."""
    return State(np.eye(dimensions) / ridge, np.zeros(dimensions), np.zeros(dimensions), ridge)


def greedy(sketches: NDArray[np.float64], utility: Values, count: int, state: State) -> tuple[Positions, State]:
    """Choose rows one by one, each time the one that adds most, while it adds anything.

    Args:
        sketches: Gradients of the rows, "row dim".
        utility: Utilities of the rows.
        count: Most rows to choose.
        state: What is chosen already.

    Returns:
        Positions in the order of choice, and the state afterwards.
    """
    inverse, total, explained = state.inverse.copy(), state.total.copy(), state.explained.copy()
    left_utility = (utility - sketches @ explained) / state.ridge
    fitted = sketches @ (inverse @ total)
    reach = np.einsum("ij,ij->i", sketches @ inverse, sketches)
    lengths = np.maximum(np.linalg.norm(sketches, axis=1), np.finfo(float).tiny)
    open_rows = np.ones(len(sketches), np.bool_)
    picks: list[int] = []
    while len(picks) < count:
        added = np.where(open_rows, left_utility * (1 - fitted) / (1 + reach), -np.inf)
        best = int(added.argmax())
        if not added[best] > 0:
            break
        picks.append(best)
        mine = sketches[best]
        moved, size = inverse @ mine, 1 + reach[best]
        shared = sketches @ moved
        explained += state.ridge * moved * left_utility[best] / size
        left_utility = left_utility - shared * left_utility[best] / size
        fitted = fitted + shared * (1 - fitted[best]) / size
        reach = reach - shared**2 / size
        inverse -= np.outer(moved, moved) / size
        total += mine
        open_rows &= sketches @ mine < SAME * lengths * lengths[best]
        open_rows[best] = False
    return np.array(picks, np.int64), State(inverse, total, explained, state.ridge)


def set_utility(sketches: NDArray[np.float64], utility: Values, ridge: float) -> float:
    """F of a set, from its definition in the space of its rows."""
    kernel = sketches @ sketches.T + ridge * np.eye(len(sketches))
    return float(utility @ np.linalg.solve(kernel, np.ones(len(sketches))))


def read_sketches(table: ScoreTable, passed: Positions) -> NDArray[np.float32]:
    """The sketches of some rows, "row dim".

    Raises:
        ScoreError: the table has none, or a row has none.
    """
    if COLUMN not in table.names:
        raise ScoreError(f"{table.path} has no column {COLUMN!r}; score with --sketch 512 to choose set-wise")
    column = table.read([COLUMN])[COLUMN].take(pa.array(passed)).combine_chunks()
    if column.null_count:
        raise ScoreError(f"{column.null_count} rows of {table.path} have no sketch; score again with --sketch 512")
    flat: NDArray[np.float32] = column.flatten().cast(pa.float32()).to_numpy(zero_copy_only=False)
    return flat.reshape(len(column), -1)
