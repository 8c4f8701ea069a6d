"""Whether a ranking column is a guide, against counts over all pairs and tables whose answer is known."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from scipy.special import ndtr

from onesteptrain.cli import main
from onesteptrain.cli.choosing import describe_advice, describe_selection
from onesteptrain.data.corruption import STYLE
from onesteptrain.selection import SelectOptions, advise, select_rows
from onesteptrain.selection.guidance import copy_area, measure_guidance
from onesteptrain.selection.trust import SIGNALS
from onesteptrain.storage.score_table import ScoreTable, write_table

KINDS = ("wrong_step", "cut_off", "other_picture")


def scored(folder: Path, *, shift: float, anchors: int = 60, rows: int = 200, **columns) -> ScoreTable:
    """Scores whose utility lies by so much higher for anchors than for their corrupted copies, three of each."""
    chance = np.random.default_rng(0)
    sets = {"scores": chance.normal(0, 1, rows), "reference": chance.normal(shift, 1, anchors)}
    sets["corrupted"] = chance.normal(0, 1, 3 * anchors)
    folder.mkdir(exist_ok=True)
    for name, utility in sets.items():
        count = len(utility)
        table = {"uid": [f"{name}{row}" for row in range(count)], "row": np.arange(count), "score": utility}
        table |= {"reason": pa.nulls(count, pa.string()), "utility": utility}
        table |= {signal: make(count) for signal, make in columns.items()}
        if name == "corrupted":
            table |= {
                "kind": np.repeat(KINDS, anchors),
                "anchor": [f"reference{row % anchors}" for row in range(count)],
            }
        write_table(pa.table(table), folder / f"{name}.parquet")
    return ScoreTable(folder / "scores.parquet")


def trusting(folder: Path, shift: float) -> ScoreTable:
    """The same with all that the trust gate needs."""
    chance = np.random.default_rng(1)
    return scored(folder, shift=shift, **{name: lambda count: -np.exp(chance.normal(0, 1, count)) for name in SIGNALS})


def test_the_area_counts_all_pairs_of_each_kind_with_ties_for_half():
    chance = np.random.default_rng(0)
    anchors, copies = chance.integers(0, 4, 12).astype(float), chance.integers(0, 4, 20).astype(float)
    source, kinds = chance.integers(0, 12, 20), np.array([*"aaaaaaabbbbccccccccc"])
    by_kind = []
    for kind in "abc":
        pairs = itertools.product(anchors, copies[kinds == kind])
        by_kind.append(np.mean([1.0 if right > wrong else 0.5 * (right == wrong) for right, wrong in pairs]))
    area = copy_area(anchors, copies, source, kinds)
    assert area.value == pytest.approx(np.mean(by_kind), rel=1e-12)  # sums of halves are exact
    assert area.low <= area.value <= area.high


def test_the_area_of_normal_values_is_the_closed_form():
    chance = np.random.default_rng(0)
    anchors, copies = chance.normal(1, 1, 1000), chance.normal(0, 1, 1000)
    area = copy_area(anchors, copies, np.arange(1000), np.repeat("a", 1000))
    assert area.value == pytest.approx(ndtr(1 / 2**0.5), abs=0.03)  # three standard errors of so many pairs


def test_a_monotone_map_of_a_column_changes_nothing():
    chance = np.random.default_rng(0)
    anchors, copies, kinds = chance.normal(1, 1, 50), chance.normal(0, 1, 100), np.repeat(["a", "b"], 50)
    source = np.arange(100) % 50
    area = copy_area(anchors, copies, source, kinds)
    assert copy_area(np.exp(anchors), np.exp(copies), source, kinds) == area
    turned = copy_area(-anchors, -copies, source, kinds)
    assert turned == pytest.approx((1 - area.value, 1 - area.high, 1 - area.low))


def test_copies_that_depend_on_their_anchor_do_not_make_it_surer():
    chance = np.random.default_rng(0)
    own, noise = chance.normal(0, 1, 40), chance.normal(0, 0.01, 400)
    source = np.arange(400) % 40
    alike = copy_area(own, own[source] + noise, source, np.repeat("a", 400))
    apart = copy_area(own, chance.normal(0, 1, 400), source, np.repeat("a", 400))
    # an anchor that is drawn twice brings its own copies: both sides move alike, and the area hardly does
    assert alike.high - alike.low < (apart.high - apart.low) / 2


def test_the_interval_holds_the_area_as_often_as_it_says():
    holds = []
    for seed in range(100):
        chance = np.random.default_rng(seed)
        kinds, source = np.repeat(np.arange(8), 20), np.arange(160) % 40
        hard = chance.normal(0.8, 0.3, 8)  # kinds are a draw of those that there may be
        own = chance.normal(0, 0.7, 40)
        anchors, copies = own + chance.normal(0, 0.7, 40), own[source] - hard[kinds] + chance.normal(0, 0.7, 160)
        area = copy_area(anchors, copies, source, kinds)
        sides = ndtr(np.random.default_rng(0).normal(0.8, 0.3, 100_000) / (2 * 2 * 0.7**2) ** 0.5)
        holds.append(area.low <= sides.mean() <= area.high)
    assert np.mean(holds) >= 0.88  # 95 % less three standard errors of 100 draws


@pytest.mark.parametrize(("shift", "verdict"), [(1.0, "guide"), (0.0, "no guide"), (-1.0, "inverted")])
def test_a_column_is_a_guide_by_the_side_of_chance_that_it_lies_on(tmp_path, shift, verdict):
    guidance = measure_guidance(scored(tmp_path, shift=shift), "score")
    assert (guidance.verdict, guidance.column, guidance.anchors) == (verdict, "utility", 60)
    assert [verdict in said for said in guidance.sentences()] == ([] if verdict == "guide" else [True])


def test_a_change_of_style_is_no_error_and_rows_without_a_value_are_left_out(tmp_path):
    table = scored(tmp_path, shift=1.0)
    before = measure_guidance(table, "utility")
    copies = table.corrupted.read()
    more = copies.slice(0, 60).to_pydict() | {"kind": [STYLE] * 60, "utility": [99.0] * 60}
    lost = copies.slice(0, 60).to_pydict() | {"utility": [None] * 60}
    gone = copies.slice(0, 60).to_pydict() | {"anchor": ["unscored"] * 60, "utility": [99.0] * 60}
    parts = [pa.table(part, schema=copies.schema) for part in (more, lost, gone)]
    write_table(pa.concat_tables([copies, *parts]), tmp_path / "corrupted.parquet")
    assert measure_guidance(table, "utility") == before


def test_nothing_is_said_of_what_anchors_were_not_measured_by(tmp_path):
    table = scored(tmp_path, shift=0.0)
    assert measure_guidance(table, "loss") is None
    assert measure_guidance(table, "utility.charts").column == "utility"
    (tmp_path / "corrupted.parquet").unlink()
    assert measure_guidance(table, "utility") is None


@pytest.mark.parametrize(
    ("keep", "options"),
    [
        ("20%", SelectOptions(prefer="top")),
        ("20%", SelectOptions(by="utility")),
        (">=0", SelectOptions()),
        ("20%", SelectOptions(gate="50%", prefer="draw")),
    ],
)
def test_a_selection_says_so_where_what_it_rests_on_is_no_guide(tmp_path, keep, options):
    for shift, said in ((-1.0, 1), (1.0, 0)):
        selection = select_rows(scored(tmp_path / str(shift), shift=shift), keep=keep, options=options)
        assert describe_selection(selection, tmp_path).count("utility is inverted here") == said
        assert [one["verdict"] for one in selection.summary()["guidance"]] == ["inverted" if said else "guide"]


def test_maxmin_is_told_by_the_utility_of_all_anchors(tmp_path):
    table = scored(tmp_path, shift=-1.0)
    columns = table.read()
    for group in ("utility.a", "utility.b"):
        columns = columns.append_column(group, columns["utility"])
    write_table(columns, table.path)
    selection = select_rows(table, keep="20%", options=SelectOptions(prefer="maxmin"))
    assert [one.verdict for one in selection.guidance] == ["inverted"]


def test_where_few_anchors_allow_no_trust_a_bad_guide_is_not_ranked_by(tmp_path):
    good, bad = (scored(tmp_path / name, shift=shift, anchors=15) for name, shift in (("good", 3.0), ("bad", -3.0)))
    ranked, drawn = (select_rows(table, keep="20%") for table in (good, bad))
    assert (ranked.gate, ranked.prefer, drawn.gate, drawn.prefer) == ("none", "top", "blind", "draw")
    assert "utility is inverted here" in describe_selection(drawn, tmp_path)
    assert advise(bad).recommended == 1.0
    assert "so that no row is named" in advise(bad).why
    assert advise(good).recommended == advise(good).knee < 1
    told = {line.share: line.kept for line in advise(bad).shares}[0.2]
    assert told == drawn.expected
    asked = select_rows(bad, keep="20%", options=SelectOptions(prefer="top"))
    assert asked.prefer == "top"  # who asks for a ranking has it, and is told


def test_behind_the_trust_gate_nothing_rests_on_the_utility(tmp_path):
    table = trusting(tmp_path, shift=-1.0)
    assert select_rows(table, keep="20%").guidance == ()
    assert "utility is inverted here" in describe_advice(advise(table))


def test_commands_say_it_for_people_and_for_machines(tmp_path, capsys):
    scored(tmp_path, shift=0.0)
    assert main(["advise", str(tmp_path)]) == 0
    assert "utility is no guide here" in capsys.readouterr().out
    assert main(["advise", str(tmp_path), "--json"]) == 0
    guidance = json.loads(capsys.readouterr().out)["guidance"]
    assert guidance["verdict"] == "no guide"
    assert guidance["area"]["low"] < 0.5 < guidance["area"]["high"]
