"""Kinds of rows: each is judged by its own anchors, and one without anchors is not judged."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from onesteptrain.cli.choosing import describe_selection
from onesteptrain.data.pool import open_pool
from onesteptrain.errors import ConfigError
from onesteptrain.selection import SelectOptions, select_rows
from onesteptrain.selection.kinds import LENGTH, RowKinds, find_gaps, find_kinds
from onesteptrain.selection.mixture import count
from onesteptrain.selection.quotas import Groups
from onesteptrain.selection.separation import usual_levels
from onesteptrain.selection.trust import SIGNALS, measure_trust
from onesteptrain.storage.score_table import ScoreTable, write_table
from tests.building import write_pool
from tests.commands import done, refusal, world

ERRORS = ("wrong_step", "cut_off", "other_picture")


def kind_table(
    folder: Path,
    *,
    rows: tuple[int, ...],
    anchors: tuple[int, ...],
    noise: tuple[float, ...],
    lengths: tuple[int, ...],
    usual: tuple[float, ...],
) -> tuple[ScoreTable, RowKinds, np.ndarray]:
    """Scores of kinds that differ in what is usual of them, their kinds, and which rows are clean; errors stand out."""
    chance = np.random.default_rng(0)
    codes = {name: np.repeat(np.arange(len(rows)), part) for name, part in (("scores", rows), ("reference", anchors))}
    codes["corrupted"] = np.repeat(codes["reference"], len(ERRORS))
    bad = {
        "scores": chance.random(sum(rows)) < np.array(noise)[codes["scores"]],
        "reference": np.zeros(sum(anchors), bool),
        "corrupted": np.ones(len(codes["corrupted"]), bool),
    }
    folder.mkdir(exist_ok=True)
    for name, kinds in codes.items():
        size = len(kinds)
        logs = chance.normal(0, 1, (size, 3)) + np.array(usual)[kinds][:, None] + 4.0 * bad[name][:, None]
        columns = {"uid": [f"{name}{row}" for row in range(size)], "row": np.arange(size)}
        columns |= {"reason": pa.nulls(size, pa.string()), "score": -logs[:, 1]}
        columns |= dict(zip(SIGNALS, (np.exp(logs) * [-1.0, 1.0, 1.0]).T, strict=True))
        columns["answer_tokens"] = np.array(lengths)[kinds] + chance.integers(-1, 2, size)
        columns["tokens"] = columns["answer_tokens"] + 50
        if name == "corrupted":
            columns["kind"] = np.tile(ERRORS, size // len(ERRORS))
            columns["anchor"] = [f"reference{row // len(ERRORS)}" for row in range(size)]
        write_table(pa.table(columns), folder / f"{name}.parquet")
    names = tuple("abcdefg"[: len(rows)])
    told = RowKinds("source", names, codes["scores"], codes["reference"])
    return ScoreTable(folder / "scores.parquet"), told, ~bad["scores"]


def shares(passing: np.ndarray, clean: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Of each kind, the share of clean and of bad rows that pass."""
    return np.array(
        [[passing[(codes == kind) & (clean == good)].mean() for good in (True, False)] for kind in np.unique(codes)]
    )


def test_a_hard_kind_with_few_anchors_and_an_easy_one_are_both_judged_by_their_own(tmp_path):
    table, kinds, clean = kind_table(
        tmp_path, rows=(600, 600), anchors=(90, 30), noise=(0.5, 0.2), lengths=(60, 60), usual=(0.0, 2.5)
    )
    as_one = shares(measure_trust(table).passing(), clean, kinds.rows)
    apart = shares(measure_trust(table, kinds).passing(), clean, kinds.rows)
    assert as_one[1, 0] < 0.8  # the clean rows of the hard kind look wrong to the anchors of the easy one
    assert apart[:, 0].min() > 0.95  # errors stand four deviations out
    assert apart[:, 1].max() < 0.1
    told = {kind.name: kind.clean_share for kind in measure_trust(table, kinds).verdict.kinds}
    assert told == pytest.approx({"a": 0.5, "b": 0.8}, abs=0.06)  # 30 anchors know a level to a fifth of a deviation


def test_judging_kinds_apart_moves_little_where_they_do_not_differ(tmp_path):
    table, kinds, _ = kind_table(
        tmp_path, rows=(500, 500), anchors=(60, 60), noise=(0.3, 0.3), lengths=(60, 60), usual=(0.0, 0.0)
    )
    as_one, apart = measure_trust(table), measure_trust(table, kinds)
    assert (as_one.passing() == apart.passing()).mean() > 0.97


def test_kinds_of_answers_show_in_gaps_of_the_anchors_lengths(tmp_path):
    table, kinds, clean = kind_table(
        tmp_path, rows=(500, 500), anchors=(50, 50), noise=(0.3, 0.3), lengths=(5, 80), usual=(2.0, 0.0)
    )
    found = find_kinds(table)
    assert found.by == LENGTH
    assert found.names == ("up to 22 tokens", "above 22 tokens")  # between 6 and 79, by ratio
    np.testing.assert_array_equal(found.rows, kinds.rows)
    np.testing.assert_array_equal(found.anchors, kinds.anchors)
    passing = measure_trust(table).passing()
    np.testing.assert_array_equal(passing, measure_trust(table, kinds).passing())
    assert shares(passing, clean, kinds.rows)[:, 0].min() > 0.95


@pytest.mark.parametrize(
    ("lengths", "gaps"),
    [
        ([10] * 20, []),
        ([*range(10, 40)], []),  # no neighbours differ by a factor of two
        ([4] * 5 + [8] * 5, [32**0.5]),
        ([4] * 4 + [8] * 20, []),  # four may be chance
        ([1] * 5 + [10] * 5 + [100] * 4, [10**0.5]),
        ([1] * 5 + [10] * 5 + [100] * 5, [10**0.5, 1000**0.5]),
        ([0] * 5 + [2] * 5, [2**0.5]),  # an empty answer counts as one token
    ],
)
def test_a_gap_is_a_factor_of_two_with_enough_anchors_on_both_sides(lengths, gaps):
    np.testing.assert_allclose(find_gaps(np.array(lengths, float)), gaps)


def test_levels_of_kinds_are_shrunk_as_james_and_stein_have_it():
    """Against the formula, for kinds of known medians."""
    chance = np.random.default_rng(0)
    codes = np.repeat([0, 1, 2], [200, 50, 8])
    values = chance.normal(0, 1, (len(codes), 1)) + np.array([0.0, 1.0, 2.0])[codes][:, None]
    medians = np.array([np.median(values[codes == kind]) for kind in range(3)])
    within = sum(((values[codes == kind] - medians[kind]) ** 2).sum() for kind in range(3)) / (len(codes) - 3)
    errors = np.pi / 2 * within / np.array([200, 50, 8])
    overall = np.median(values)
    between = ((medians - overall) ** 2 - errors).mean()
    expected = overall + between / (between + errors) * (medians - overall)
    np.testing.assert_allclose(usual_levels(values, codes, 4)[:, 0], [*expected, overall], rtol=1e-12)


def test_kinds_that_differ_by_chance_alone_have_one_level():
    chance = np.random.default_rng(1)
    apart = []
    for _ in range(50):
        values, codes = chance.normal(0, 1, (120, 1)), np.repeat(np.arange(6), 20)
        apart.append(np.ptp(usual_levels(values, codes, 6)) / np.ptp([np.median(values[codes == k]) for k in range(6)]))
    assert np.mean(apart) < 0.5  # most of what chance makes is taken back


def test_the_clean_share_of_a_kind_is_its_own_and_few_rows_borrow_from_the_pool():
    chance = np.random.default_rng(0)
    sizes, bad = (2000, 2000, 3), (0.2, 0.6, 1.0)
    codes = np.repeat([0, 1, 2], sizes)
    rows = chance.normal(0, 1, len(codes)) + 5 * (chance.random(len(codes)) < np.array(bad)[codes])
    anchors, corrupted = chance.normal(0, 1, 2000), chance.normal(5, 1, 2000)
    counted = count(rows, anchors, corrupted, np.repeat(["cut_off"], 2000), codes, 3)
    found = counted.clean_shares()
    np.testing.assert_allclose(found[:2], [0.8, 0.4], atol=0.03)  # three standard errors of 2,000 rows
    pooled = (rows[codes < 2] < 2.5).mean()
    assert found[2] == pytest.approx(20 * pooled / 23, abs=0.02)  # three bad rows among twenty of the pool


def test_a_kind_without_anchors_is_not_judged_keeps_its_share_and_is_named(tmp_path):
    table, kinds, _ = kind_table(
        tmp_path, rows=(600, 200), anchors=(80, 0), noise=(0.5, 0.9), lengths=(60, 60), usual=(0.0, 3.0)
    )
    trust = measure_trust(table, kinds)
    mine = kinds.rows == 1
    assert trust.passing()[mine].all()
    assert np.isnan(trust.probability[mine]).all()
    np.testing.assert_allclose(trust.expected_clean()[mine], trust.probability[~mine].mean())
    sentences = trust.verdict.sentences()
    assert any("not judged: 200 rows" in sentence and "source: b" in sentence for sentence in sentences)
    assert json.loads(json.dumps(trust.verdict.facts(), allow_nan=False))["kinds"][1]["judged"] is False


def test_nothing_is_said_of_kinds_where_there_is_one(tmp_path):
    table, _, _ = kind_table(tmp_path, rows=(600,), anchors=(80,), noise=(0.5,), lengths=(60,), usual=(0.0,))
    verdict = measure_trust(table).verdict
    assert (verdict.kinds_by, verdict.kinds) == ("", ())
    assert select_rows(table, keep="20%").kinds is None


def test_kinds_by_a_column_come_from_pool_and_anchors(tmp_path):
    """A run of the command, with anchors of one group alone and then of both."""
    pool = write_pool(tmp_path, 24)
    group = {row.uid: row.fields["group"] for row in open_pool(pool)}
    anchors = write_pool(tmp_path / "anchors", 60, name="anchors.jsonl", start=100)
    alone = anchors.with_name("alone.jsonl")
    alone.write_text("".join(line for line in anchors.open() if json.loads(line)["group"] == group["s0"]))
    for file, judged in ((alone, {group["s0"]}), (anchors, set(group.values()))):
        run = tmp_path / "runs" / file.stem
        done("score", pool, "--anchors", file, "--proxy", world().proxy, "--out", run)
        asked = (
            "--gate",
            "trust",
            "--kind",
            "group",
            "--fill",
            "--out",
            tmp_path / f"{file.stem}-kept.jsonl",
            "--json",
        )
        facts = json.loads(done("select", run, "--keep", "100%", *asked).out)
        told = facts["verdict"]["kinds"]
        assert {kind["name"]: kind["rows"] for kind in told} == dict(Counter(group.values()))
        assert {kind["name"] for kind in told if kind["judged"]} == judged
        assert facts["kinds"] == {name: {"before": 0.5, "after": 0.5} for name in group.values()}
    assert "has the column 'colour'" in refusal("advise", run, "--kind", "colour")


def test_kinds_are_refused_where_nothing_is_judged_by_them(tmp_path):
    table, _, _ = kind_table(tmp_path, rows=(50,), anchors=(30,), noise=(0.5,), lengths=(60,), usual=(0.0,))
    with pytest.raises(ConfigError, match=r"kind source is given, but .* is not judged by its anchors"):
        select_rows(table, keep="50%", options=SelectOptions(kind=("source",), prefer="top"))


def test_a_draw_keeps_the_share_of_a_kind_that_is_not_judged(tmp_path, monkeypatch):
    table, kinds, _ = kind_table(
        tmp_path, rows=(600, 200), anchors=(80, 0), noise=(0.5, 0.9), lengths=(60, 60), usual=(0.0, 3.0)
    )
    monkeypatch.setattr("onesteptrain.selection.gating.row_kinds", lambda *_: kinds)
    selection = select_rows(table, keep="20%")
    assert selection.kinds["b"].before == 0.25
    assert selection.kinds["b"].after == pytest.approx(0.25, abs=1 / len(selection))  # a row is not split
    assert select_rows(table, keep="100%").kinds["b"].after > 0.35  # nothing of it is dropped
    filled = select_rows(table, keep="100%", options=SelectOptions(fill=True))
    trust, judged = measure_trust(table, kinds), kinds.rows == 0  # what is said to be clean counts none of the others
    passing = trust.passing() & judged
    clean = trust.verdict.passing_clean.value * passing.sum() + trust.probability[judged & ~passing].sum()
    assert filled.kept.clean_share == pytest.approx(clean / judged.sum())
    assert "shares of pool and of what is kept: a 75% to 75%, b 25% to 25%" in describe_selection(selection, Path("x"))


def test_a_quota_can_follow_what_is_expected_to_be_clean(tmp_path, monkeypatch):
    table, kinds, clean = kind_table(
        tmp_path, rows=(500, 500), anchors=(60, 60), noise=(0.6, 0.0), lengths=(60, 60), usual=(0.0, 0.0)
    )
    groups = Groups([*kinds.names], kinds.rows)
    monkeypatch.setattr("onesteptrain.selection.choosing.read_groups", lambda *_: groups)
    options = SelectOptions(quota="source", quota_shares="clean")
    kept = select_rows(table, keep="20%", options=options).groups
    assert kept["a"] == pytest.approx(200 * clean[:500].sum() / clean.sum(), abs=15)  # 60 anchors place the cut
