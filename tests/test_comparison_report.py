"""The table and the figures of a comparison, from records whose summary is known."""

from __future__ import annotations

import itertools
import math
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from scipy import stats

from onesteptrain.reporting.comparison import comparison_table, mean_interval, pareto, summarize_arms, write_comparison


def record(method, share, accuracy, seed=0, *, protocol="B", scoring=10.0, training=5.0, **more):
    seconds = {"scoring_seconds": scoring, "training_seconds": training}
    facts = {"method": method, "share": share, "protocol": protocol, "seed": seed, "accuracy": accuracy, "rows": 100}
    return facts | seconds | {"budget": f"{share:.0%}"} | more


def test_the_interval_of_a_mean_is_students():
    values = [70.0, 72.5, 71.0, 69.0, 74.0]
    expected = stats.t.interval(0.95, 4, np.mean(values), stats.sem(values))
    assert mean_interval(values) == pytest.approx(expected, rel=1e-12)  # the same formula in float64
    assert all(math.isnan(end) for end in mean_interval([70.0]))


def test_the_interval_holds_the_true_mean_as_often_as_it_says():
    generator = np.random.default_rng(0)
    hits = sum(
        low <= 0 <= high for low, high in (mean_interval(generator.normal(size=5).tolist()) for _ in range(2000))
    )
    assert hits / 2000 == pytest.approx(0.95, abs=0.015)  # three standard errors of 2,000 draws


def test_arms_are_put_together_over_seeds():
    records = [record("ost", 0.2, accuracy, seed) for seed, accuracy in enumerate((70.0, 80.0))]
    records += [record("ost", 0.2, 60.0, protocol="A", training=1.0), record("full", 1.0, 50.0, scoring=0.0)]
    first, second, third = summarize_arms(records)
    assert (first.name, first.protocol, first.accuracy, first.seeds, first.total_seconds) == ("ost 20%", "B", 75, 2, 15)
    assert (second.protocol, second.accuracy, second.total_seconds) == ("A", 60, 11)
    assert (third.name, third.total_seconds) == ("full", 5)


def test_the_front_is_what_no_other_arm_beats():
    generator = np.random.default_rng(1)
    records = [
        record(f"m{place}", 0.2, float(accuracy), scoring=float(cost))
        for place, (accuracy, cost) in enumerate(generator.integers(0, 12, (30, 2)))
    ]
    arms = summarize_arms(records)

    def beaten(arm):
        return any(
            other.total_seconds <= arm.total_seconds
            and other.accuracy >= arm.accuracy
            and (other.total_seconds, other.accuracy) != (arm.total_seconds, arm.accuracy)
            for other in arms
        )

    expected = {(arm.total_seconds, arm.accuracy) for arm in arms if not beaten(arm)}
    front = [(arm.total_seconds, arm.accuracy) for arm in pareto(arms)]
    assert set(front) == expected
    assert all(a[0] < b[0] and a[1] < b[1] for a, b in itertools.pairwise(front))


def test_the_table_has_a_line_an_arm_and_its_paired_difference():
    records = [record("full", 1.0, 50.0, scoring=0.0), record("ost", 0.2, 70.0, clean_share=0.925)]
    difference = {"protocol": "B", "method": "ost", "budget": "20%", "against": "full", "value": 20.0}
    lines = comparison_table(records, [difference | {"low": 15.0, "high": 25.04}]).splitlines()
    assert lines[0] == "Protocol B (steps fixed), accuracy in per cent"
    assert lines[4] == "| full | 100 |  | 50.0 |  |  | 0.0 | 5.0 | 5.0 |"
    assert lines[5] == "| ost 20% | 100 | 92% | 70.0 |  | +20.0 (+15.0 to +25.0) | 10.0 | 5.0 | 15.0 |"
    assert {line.count("|") for line in lines[2:]} == {10}


def test_both_figures_are_drawn_with_a_panel_a_protocol(tmp_path):
    records = [
        record(method, share, 60.0 + seed + 5 * share, seed, protocol=protocol)
        for method, share in (
            ("untuned", 0.0),
            ("full", 1.0),
            ("oracle", 0.5),
            ("ost", 0.2),
            ("ost", 0.5),
            ("random", 0.2),
        )
        for protocol in "AB"
        for seed in range(2)
    ]
    written = write_comparison(records, [], tmp_path)
    assert [path.name for path in written] == ["table.md", "accuracy-by-cost.svg", "accuracy-by-share.svg"]
    for path in written[1:]:
        shown = " ".join(text.strip() for text in ET.parse(path).getroot().itertext() if text.strip())
        assert "Protocol A" in shown
        assert "Protocol B" in shown
        assert "ost" in shown
        assert "nan" not in path.read_text().lower().replace("nance", "")


def test_levels_alone_make_a_table_and_no_figure(tmp_path):
    assert [path.name for path in write_comparison([record("untuned", 0.0, 50.0)], [], tmp_path)] == ["table.md"]
