"""Whether training was worth it, by measured accuracies: trained targets against the untuned one, question by question.

What the proxy says of it beforehand is in `selection.learning`. Here it is measured: the interval of the paired
difference lies above zero, below it, or holds it. A bootstrap of few questions that changed is too narrow, so that the
p-value, exact for single runs, must agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from onesteptrain.evaluation.paired import Difference, as_difference


def training_verdict(difference: Difference) -> Literal["worth it", "not worth it", "cannot tell"]:
    """What the accuracy of a trained target, less that of the untuned one, says of the training."""
    if difference.p_value > 1 - difference.confidence or difference.low <= 0 <= difference.high:
        return "cannot tell"
    return "worth it" if difference.value > 0 else "not worth it"


def worth_sentences(against_untuned: Mapping[str, Difference]) -> list[str]:
    """What there is to say in words: nothing of trainings that were worth it.

    Args:
        against_untuned: Trained targets by what each was trained on, less the untuned one.

    Returns:
        At most one sentence for those that were not worth it, and one for those that were not seen to be.
    """
    told: dict[str, list[str]] = {"not worth it": [], "cannot tell": []}
    for name, difference in against_untuned.items():
        if (verdict := training_verdict(difference)) in told:
            told[verdict].append(f"{name}, {difference.value:+.1f} ({difference.low:+.1f} to {difference.high:+.1f})")
    questions = {one.wins + one.losses + one.ties for one in against_untuned.values()}
    measure = f"points of accuracy, paired over {max(questions, default=0)} questions"
    heads = {
        "not worth it": f"training was not worth it, by {measure}: the target is worse than untuned on",
        "cannot tell": f"training was not seen to be worth it, by {measure}: less untuned it may be chance on",
    }
    return [f"{heads[verdict]} {'; '.join(names)}" for verdict, names in told.items() if names]


def worth_of_arms(differences: Iterable[Mapping[str, Any]], protocol: str) -> list[str]:
    """The same of a comparison under one protocol, as far as it has the differences of its arms to the untuned one."""
    return worth_sentences(
        {
            f"{one['method']} {one['budget']}": as_difference(one)
            for one in differences
            if (one["against"], one["protocol"]) == ("untuned", protocol) and one["method"] != "oracle"
        }
    )
