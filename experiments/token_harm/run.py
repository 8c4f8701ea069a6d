"""How well does `ost explain` find planted errors, and tell rows that need no picture?

run.py [--seeds 11 12] [--work FOLDER] prints the tables of the README, for worlds of these seeds together. Definitions
were chosen on seeds 11 and 12; 13 was looked at once, afterwards.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from scored import Scored, scored_world

from onesteptrain.reporting.diagnosis.measured import read_means
from onesteptrain.reporting.diagnosis.spans import first_span
from onesteptrain.selection.trust import p_values
from onesteptrain.synthetic.digits import DigitProblem

NOISE_KINDS = DigitProblem.noise_kinds

Values = np.ndarray
Pick = Callable[[Values, Values], int]
"""From the losses and utilities of a row's tokens to the first token of its span."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[11, 12])
    parser.add_argument("--work", type=Path, default=Path("token-harm"))
    options = parser.parse_args()
    worlds = [scored_world(options.work, seed) for seed in options.seeds]
    print_spans(worlds)
    print_harmful(worlds)
    print_blind([scored_world(options.work, seed + 100, rows=1500, noise=0.3, plain=0.2) for seed in options.seeds])
    print_blind(worlds)


def print_spans(worlds: Sequence[Scored]) -> None:
    """Share of spans that start at the planted error, of all bad rows and of those that are called harmful."""
    names = ["chance", *definitions(worlds[0])]
    print("\n| the span starts at | " + " | ".join(NOISE_KINDS) + " | all | harmful rows |")
    print("| --- |" + " --- |" * (len(NOISE_KINDS) + 2))
    for name in names:
        hits = np.concatenate([_hits(one, name) for one in worlds])
        kinds = np.concatenate([one.kinds[_bad(one)] for one in worlds])
        harmful = np.concatenate([one.explanation.harmful[_bad(one)] for one in worlds])
        shares = [hits[kinds == kind].mean() for kind in NOISE_KINDS] + [hits.mean(), hits[harmful].mean()]
        print(f"| {name} | " + " | ".join(f"{share:.2f}" for share in shares) + " |")


def definitions(world: Scored) -> dict[str, Pick]:
    """Where a span could start."""
    usual_tokens = world.usual.measured.tokens
    losses, utilities = np.concatenate(usual_tokens.loss), np.concatenate(usual_tokens.utility)
    scale = world.usual.scale
    limit = {"loss": np.quantile(losses, 0.995), "harm": np.quantile(-utilities, 0.995)}
    usual = _surprise(losses, losses) + _surprise(-utilities, -utilities)

    def together(loss: Values, utility: Values) -> Values:
        return _surprise(loss, losses) + _surprise(-utility, -utilities)

    return {
        "the most negative utility": lambda loss, utility: int(utility.argmin()),
        "the largest sum of harm beyond 99.5 %": lambda loss, utility: _largest_sum(-utility - limit["harm"]),
        "the first harm beyond 99.5 %": lambda loss, utility: _first(-utility, limit["harm"]),
        "the highest loss": lambda loss, utility: int(loss.argmax()),
        "the largest sum of loss beyond 99.5 %": lambda loss, utility: _largest_sum(loss - limit["loss"]),
        "the first loss beyond 99.5 %": lambda loss, utility: _first(loss, limit["loss"]),
        "the first joint p-value beyond 99.5 %": lambda loss, utility: _first(
            together(loss, utility), np.quantile(usual, 0.995)
        ),
        "**chosen**: the first badness beyond 90 % of the anchors": lambda loss, utility: (
            first_span(loss / scale.loss + np.maximum(-utility, 0) / scale.harm, scale.row_limit).start
        ),
    }


def print_harmful(worlds: Sequence[Scored]) -> None:
    """What is called harmful, by the trust gate and by negative utility alone."""
    print("\n| rule | clean | " + " | ".join(NOISE_KINDS) + " |\n| --- |" + " --- |" * (len(NOISE_KINDS) + 1))
    kinds = np.concatenate([one.kinds for one in worlds])
    rules = {"utility < 0": [], "trust gate": []}
    for one in worlds:
        rules["utility < 0"].append(read_means(one.table).utility < 0)
        rules["trust gate"].append(one.explanation.harmful)
    for name, found in rules.items():
        shares = [np.concatenate(found)[kinds == kind].mean() for kind in ("clean", *NOISE_KINDS)]
        print(f"| {name} | " + " | ".join(f"{share:.3f}" for share in shares) + " |")


def print_blind(worlds: Sequence[Scored]) -> None:
    """Share that is called blind of the rows for which it is said."""
    print("\n| rows | judged | called blind |\n| --- | --- | --- |")
    kinds = np.concatenate([one.kinds for one in worlds])
    blind = np.concatenate([one.explanation.blind for one in worlds])
    for kind in ("plain", "clean", *NOISE_KINDS):
        judged = (kinds == kind) & np.isfinite(blind)
        if judged.any():
            print(f"| {kind} | {judged.sum()} of {(kinds == kind).sum()} | {blind[judged].mean():.3f} |")


def _hits(world: Scored, name: str) -> Values:
    """Whether the span of each bad row starts at the planted error; by chance, the share of tokens that do."""
    found, starts = [], definitions(world).get(name)
    for row in np.flatnonzero(_bad(world)):
        at = [_meets(place, world.errors[row]) for place in world.places[row]]
        found.append(np.mean(at) if starts is None else at[starts(world.tokens.loss[row], world.tokens.utility[row])])
    return np.array(found, np.float64)


def _bad(world: Scored) -> Values:
    return np.isin(world.kinds, NOISE_KINDS)


def _meets(place: tuple[int, int], error: tuple[int, int]) -> bool:
    """A token overlaps the error or starts where it does: an answer that was cut off is wrong at its end."""
    return place[0] == error[0] or (place[0] < error[1] and place[1] > error[0])


def _first(values: Values, limit: float) -> int:
    return int((values > limit).argmax()) if (values > limit).any() else int(values.argmax())


def _largest_sum(values: Values) -> int:
    """Start of the segment with the largest sum."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    gains = sums[None, 1:] - sums[:-1, None]
    return int(np.where(np.triu(np.ones_like(gains)) > 0, gains, -np.inf).max(1).argmax())


def _surprise(values: Values, usual: Values) -> Values:
    return -np.log(p_values(values, usual))


if __name__ == "__main__":
    main()
