"""Whether training was worth it, by accuracies against the untuned target."""

from __future__ import annotations

import numpy as np
import pytest

from onesteptrain.evaluation import paired_difference, training_verdict, worth_sentences
from onesteptrain.reporting.comparison import comparison_table
from tests.test_comparison_report import record


def against(wins: int, losses: int, ties: int = 100):
    """A target that gets some questions right that the untuned one does not, and others the other way round."""
    ours = np.repeat([True, False, True], [wins, losses, ties])
    theirs = np.repeat([False, True, True], [wins, losses, ties])
    return paired_difference([ours], [theirs])


@pytest.mark.parametrize(
    ("wins", "losses", "verdict"),
    [
        (30, 2, "worth it"),
        (2, 30, "not worth it"),
        (0, 0, "cannot tell"),
        (0, 4, "cannot tell"),
        (11, 10, "cannot tell"),
    ],
)
def test_the_verdict_is_where_the_interval_lies(wins, losses, verdict):
    assert training_verdict(against(wins, losses)) == verdict


def test_trainings_of_one_verdict_share_a_sentence_and_worthy_ones_have_none():
    worse, even = against(2, 30), against(17, 15)
    said = worth_sentences({"20%": worse, "30%": even, "40%": worse, "50%": against(30, 2)})
    bad = "; ".join(f"{share}, -21.2 ({worse.low:+.1f} to {worse.high:+.1f})" for share in ("20%", "40%"))
    by = "by points of accuracy, paired over 132 questions:"
    assert said == [
        f"training was not worth it, {by} the target is worse than untuned on {bad}",
        f"training was not seen to be worth it, {by} less untuned it may be chance on 30%, "
        f"{even.value:+.1f} ({even.low:+.1f} to {even.high:+.1f})",
    ]
    assert worse.value == pytest.approx(100 * (2 - 30) / 132)
    assert worth_sentences({}) == worth_sentences({"50%": against(30, 2)}) == []


def test_a_comparison_says_it_of_its_arms_but_not_of_the_oracle():
    arms = [record("untuned", 0.0, 90.0), record("ost", 0.2, 70.0), record("oracle", 0.2, 70.0)]
    named = {"protocol": "B", "budget": "20%", "against": "untuned", **against(2, 30)._asdict()}
    differences = [{**named, "method": method} for method in ("ost", "oracle")]
    said = comparison_table(arms, differences).rsplit("\n\n", 1)[1]
    assert said.startswith("Training was not worth it")
    assert "ost 20%, -21.2" in said
    assert "oracle" not in said
