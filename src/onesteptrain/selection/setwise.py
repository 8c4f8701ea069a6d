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

F is not submodular, so what a row adds can grow again, and a lazy greedy that trusts old values would err: each choice
looks at all rows of a block. More rows than a block holds are dealt out to blocks at random, and each block chooses its
part of the budget, given what the blocks before have chosen.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from onesteptrain.errors import ScoreError
from onesteptrain.selection.quotas import Wanted
from onesteptrain.selection.vectors import SKETCH, read_vectors, resembling, unit_vectors
from onesteptrain.storage.score_table import ScoreTable

SAME = 0.999
"""Cosine of gradients from which a row is a duplicate."""

_BLOCK = 20_000

Values = NDArray[np.float64]
Positions = NDArray[np.int64]


def setwise_order(table: ScoreTable, passed: Positions, utility: Values, wanted: Wanted, seed: int) -> Positions:
    """Rows in the order in which they are chosen, until each group has its number or none adds anything.

    Where there are several blocks, any beginning of the order holds each in proportion. Memory holds the sketches of
    one block and of the chosen rows, in 8 bytes a dimension; a file on disk holds the others.

    Args:
        table: A table with a column `sketch`.
        passed: Rows to choose from.
        utility: Their utilities.
        wanted: How many rows to choose, of each group.
        seed: Of the split into blocks, where there are more rows than one holds.

    Raises:
        ScoreError: there are no sketches, or no row adds anything.
    """
    sketches = read_vectors(table, SKETCH, passed, zeros=True)
    order = np.random.default_rng(seed).permutation(len(passed)) if len(passed) > _BLOCK else np.arange(len(passed))
    blocks = [np.sort(order[start : start + _BLOCK]) for start in range(0, len(order), _BLOCK)]
    ridge = sum(float(np.square(sketches[passed[block]], dtype=np.float64).sum()) for block in blocks) / len(passed)
    if not ridge > 0:
        raise ScoreError(f"all sketches of {table.path} are zero; score again with another --scope")
    state = fresh_state(sketches.shape[1], ridge)
    picks: list[Positions] = []
    turns: list[Values] = []
    for block, more in _dealt(blocks, wanted, picks):
        chosen, state = greedy(sketches[passed[block]].astype(np.float64), utility[block], more, state)
        picks.append(block[chosen])
        turns.append((np.arange(len(chosen)) + 0.5) / len(block))
    if not any(map(len, picks)):
        raise ScoreError(f"no row of {table.path} that passes the gate adds any utility; prefer draw, or another gate")
    return passed[np.concatenate(picks)[np.argsort(np.concatenate(turns), kind="stable")]]


def _dealt(blocks: list[Positions], wanted: Wanted, picks: list[Positions]) -> Iterator[tuple[Positions, Wanted]]:
    """Each block with what it is to choose: its part, and what the blocks before were too poor to choose."""
    sizes = np.bincount(wanted.codes, minlength=len(wanted.counts))
    seen = np.zeros_like(sizes)
    for block in blocks:
        seen += np.bincount(wanted.codes[block], minlength=len(sizes))
        taken = sum((np.bincount(wanted.codes[done], minlength=len(sizes)) for done in picks), np.zeros_like(sizes))
        due = np.rint(wanted.counts * seen / np.maximum(sizes, 1)).astype(np.int64)
        yield block, Wanted(wanted.codes[block], due - taken)


class State(NamedTuple):
    """What is chosen so far, in the space of the sketches."""

    inverse: NDArray[np.float64]
    """B, "dim dim"."""

    total: Values
    """b, the sum of the chosen rows' gradients."""

    explained: Values
    """The part of u that the chosen rows account for: u^T B g = (u - explained)^T g / ridge."""

    ridge: float
    chosen: NDArray[np.float64]
    """Gradients of the chosen rows, of length one."""


def fresh_state(dimensions: int, ridge: float) -> State:
    """Nothing is chosen."""
    return State(
        np.eye(dimensions) / ridge, np.zeros(dimensions), np.zeros(dimensions), ridge, np.empty((0, dimensions))
    )


def greedy(sketches: NDArray[np.float64], utility: Values, wanted: Wanted, state: State) -> tuple[Positions, State]:
    """Choose rows one by one, each time the one that adds most, while it adds anything.

    Returns:
        Positions in the order of choice, and the state afterwards.
    """
    inverse, total, explained = state.inverse.copy(), state.total.copy(), state.explained.copy()
    left_utility = (utility - sketches @ explained) / state.ridge
    fitted = sketches @ (inverse @ total)
    reach = np.einsum("ij,ij->i", sketches @ inverse, sketches)
    units, missing = unit_vectors(sketches), wanted.counts.copy()
    open_rows = ~resembling(units, state.chosen, SAME) & (missing > 0)[wanted.codes]
    picks: list[int] = []
    while open_rows.any():
        added = np.where(open_rows, left_utility * (1 - fitted) / (1 + reach), -np.inf)
        best = int(added.argmax())
        if not added[best] > 0:
            break
        picks.append(best)
        moved, size = inverse @ sketches[best], 1 + reach[best]
        shared = sketches @ moved
        explained += state.ridge * moved * left_utility[best] / size
        left_utility = left_utility - shared * left_utility[best] / size
        fitted = fitted + shared * (1 - fitted[best]) / size
        reach = reach - shared**2 / size
        inverse -= np.outer(moved, moved) / size
        total += sketches[best]
        open_rows &= units @ units[best] < SAME
        open_rows[best] = False
        missing[wanted.codes[best]] -= 1
        open_rows &= (missing > 0)[wanted.codes]
    chosen = np.concatenate([state.chosen, units[picks]])
    return np.array(picks, np.int64), State(inverse, total, explained, state.ridge, chosen)
