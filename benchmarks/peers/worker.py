"""One contender in a process of its own: worker.py build CASE FOLDER | run ROUTE CASE FOLDER GROUPS ROWS.

`run` loads the case, then measures once for each line on standard input, and answers each with one line of JSON.
The contender `reference` computes the exact scores in float64 and keeps them in the folder.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import cases
import torch
from clock import Clock
from routes import ROUTES, Route
from torch import Tensor


class Asked(NamedTuple):
    """What to measure on."""

    case: str
    folder: Path
    groups: int
    rows: int
    """0 for all that the route can take."""

    @property
    def reference(self) -> Path:
        """Where the exact scores are kept."""
        return self.folder / f"reference-{self.groups}.pt"


def main(arguments: list[str]) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    answers = os.fdopen(os.dup(1), "w")  # what a peer prints is not an answer
    os.dup2(2, 1)
    if arguments[0] == "build":
        cases.build(arguments[1], Path(arguments[2]))
        return
    _, name, case, folder, groups, rows = arguments
    serve(name, Asked(case, Path(folder), int(groups), int(rows)), answers)


def serve(name: str, asked: Asked, answers: TextIO) -> None:
    """Answer each line with a measurement, or with an error and no more."""
    for _ in sys.stdin:
        try:
            answer = refer(asked) if name == "reference" else measure(ROUTES[name], asked)
        except Exception as error:  # noqa: BLE001 - whatever a peer raises is its result
            answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"[:160]}
        print(json.dumps(answer), file=answers, flush=True)


def refer(asked: Asked) -> dict[str, Any]:
    """Keep what every score is compared with: the plain loop in float64."""
    from routes.autograd import loop

    loaded = cases.load(asked.case, asked.folder, groups=asked.groups, attention="eager")
    loaded.proxy.model.double()
    torch.save(loop(loaded, Clock()), asked.reference)
    return {}


def measure(route: Route, asked: Asked) -> dict[str, Any]:
    """Seconds of set-up and of the rows, and agreement with the reference."""
    score = getattr(importlib.import_module(f"routes.{route.module}"), route.function)
    rows = asked.rows or route.rows
    loaded = cases.load(
        asked.case, asked.folder, groups=asked.groups, rows=rows, attention=route.attention, compiled=route.compiled
    )
    reference = cases.spread(torch.load(asked.reference), rows)
    clock = Clock()
    with contextlib.redirect_stdout(sys.stderr):
        scores = score(loaded, clock)
    return {"rows": len(loaded.rows), **clock.seconds(), **agreement(scores.detach().double(), reference)}


def agreement(scores: Tensor, reference: Tensor) -> dict[str, float]:
    """Pearson correlation over all rows and groups, and the relative error in the Euclidean norm."""
    if scores.shape != reference.shape:
        raise ValueError(f"scores of shape {tuple(scores.shape)} for a reference of {tuple(reference.shape)}")
    both = torch.stack([scores.flatten(), reference.flatten()])
    error = (scores - reference).norm() / reference.norm()
    return {"correlation": float(torch.corrcoef(both)[0, 1]), "relative_error": float(error)}


if __name__ == "__main__":
    main(sys.argv[1:])
