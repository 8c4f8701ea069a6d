"""Targets of `ost run`: one trained on each subset, measured beside the untuned one: was it worth it?"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from onesteptrain.data.pool import Pool
from onesteptrain.evaluation import (
    Difference,
    EvaluateOptions,
    evaluate,
    paired_difference,
    paired_marks,
    read_benchmark,
    read_results,
    training_verdict,
    worth_sentences,
    write_evaluation,
)
from onesteptrain.jobs.recipe import Recipe
from onesteptrain.jobs.reweighting import Harmful, learned_as
from onesteptrain.jobs.steps import Tell
from onesteptrain.training import FinetuneOptions, TrainOptions, train

Facts = dict[str, Any]


class Targets(NamedTuple):
    """What was trained and measured, as plain values."""

    trained: dict[str, Facts]
    """Checkpoint of each budget; where there is a benchmark, its answers, accuracy and difference to untuned."""

    untuned: Facts
    """Answers and accuracy of the target as it was; nothing without a benchmark."""

    worth: list[str]
    """Of which budgets training was not worth it, in words."""

    def facts(self) -> Facts:
        """For JSON."""
        return {"targets": self.trained, **({"untuned": self.untuned, "worth": self.worth} if self.untuned else {})}

    def records(self) -> list[Facts]:
        """For the report: one a target that was measured."""
        measured = {("untuned", "0%"): self.untuned} | {("trained on", keep): one for keep, one in self.trained.items()}
        return [
            {
                "method": method,
                "budget": budget,
                "accuracy": 100 * one["accuracy"]["value"],
                "rows": one.get("rows", 0),
                "against_untuned": one.get("against_untuned"),
            }
            for (method, budget), one in measured.items()
            if "accuracy" in one
        ]


class Learned(NamedTuple):
    """How targets learn."""

    tuning: FinetuneOptions
    harmful: Harmful
    scores: Path
    """Run directory of the scores that tell what is harmful."""


@dataclass(frozen=True)
class TargetBench:
    """Where targets are trained and measured; what is there is not done again."""

    recipe: Recipe
    target: str
    pool: Pool
    learned: Learned
    benchmark: Path | None
    evaluate: EvaluateOptions
    out: Path
    tell: Tell

    def targets(self, subsets: Mapping[str, Path], before: Mapping[str, Facts]) -> Targets:
        """Train on subsets, by their budgets, and measure; with what earlier calls have made of others."""
        trained = {keep: self._trained(keep, subset) for keep, subset in subsets.items()}
        trained = {**before, **trained}
        if self.benchmark is None:
            return Targets(trained, {}, [])
        untuned = self._measured(self.target, "untuned", "untuned target")
        against = {keep: self._difference(one, untuned) for keep, one in trained.items()}
        for keep, difference in against.items():
            told = {**difference._asdict(), "verdict": training_verdict(difference)}
            trained[keep] = {**trained[keep], "against_untuned": told}
        return Targets(trained, untuned, worth_sentences(against))

    def _trained(self, keep: str, subset: Path) -> Facts:
        """Train the target on one subset, and measure it if there is a benchmark."""
        name = subset.stem.removeprefix("subset-")
        out = self.out / f"target-{name}"
        samples = dataclasses.replace(self.recipe.pool_reading, image_root=self.pool.image_root).open(subset)
        if not out.exists():
            tuning, harmful, scores = self.learned
            rows, said = learned_as(samples, harmful, scores)
            result = train(self.target, rows, TrainOptions(finetune=tuning, load=self.recipe.loading), out)
            more = f", {said}" if said else ""
            self.tell(f"trained the target on {result.rows} rows in {result.steps} steps{more}: {out}")
        facts: Facts = {"checkpoint": str(out), "rows": len(samples)}
        if self.benchmark is None:
            return facts
        return {**facts, **self._measured(out, name, f"target trained on {keep}")}

    def _measured(self, model: Path | str, name: str, called: str) -> Facts:
        answers = self.out / f"answers-{name}"
        if not answers.exists():
            questions = read_benchmark(self.benchmark or Path(), **self.recipe.pool_reading.for_others())
            write_evaluation(evaluate(model, questions, self.evaluate, load=self.recipe.loading), answers)
        accuracy = json.loads((answers / "summary.json").read_text(encoding="utf-8"))["accuracy"]
        self.tell(f"{called}: accuracy {accuracy['value']:.1%}")
        return {"answers": str(answers), "accuracy": accuracy}

    def _difference(self, trained: Facts, untuned: Facts) -> Difference:
        marks = paired_marks(*(read_results(Path(one["answers"])) for one in (trained, untuned)))
        return paired_difference([marks[0]], [marks[1]], seed=self.recipe.seed)
