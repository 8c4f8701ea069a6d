"""The trust gate on mixtures whose parts are known, and what is drawn behind it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest, norm

from onesteptrain.data.pool import open_pool
from onesteptrain.errors import ConfigError, RunError, ScoreError
from onesteptrain.selection import SelectOptions, select_rows
from onesteptrain.selection.mixture import clean_share
from onesteptrain.selection.quotas import share_out, to_groups
from onesteptrain.selection.separation import Examples, equal_weights, separate
from onesteptrain.selection.trust import SIGNALS, density_ratio, measure_trust, p_values
from onesteptrain.storage.score_table import ScoreTable, write_table
from tests.pool_files import qa

ROWS, ANCHORS = 4000, 100


def signals(count: int, seed: int, shift: float = 0.0) -> np.ndarray:
    """Harm, loss and worst loss of some rows: log-normal, one of the three shifted in each row."""
    generator = np.random.default_rng(seed)
    logs = generator.normal(0, 1, (count, 3))
    logs[np.arange(count), generator.integers(0, 3, count)] += shift
    sizes = np.exp(logs)
    return np.stack([-sizes[:, 0], sizes[:, 1], sizes[:, 2]], axis=1)


def mixture(noise: float, seed: int = 0, shift: float = 5.0) -> tuple[np.ndarray, np.ndarray]:
    """Signals of a pool, and which of its rows are clean."""
    bad = round(noise * ROWS)
    rows = np.concatenate([signals(ROWS - bad, seed), signals(bad, seed + 1000, shift)])
    order = np.random.default_rng(seed).permutation(ROWS)
    return rows[order], (np.arange(ROWS) < ROWS - bad)[order]


def nonconformity(rows: np.ndarray, anchors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of rows and anchors, where all signals count alike."""
    separation = equal_weights(SIGNALS, anchors)
    return separation.nonconformity(rows), separation.nonconformity(anchors)


def corrupted_like(shifts: dict[str, float], seed: int, copies: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Signals of corrupted anchors, so many of each kind, and their kinds."""
    parts = [signals(copies, seed + place, shift) for place, shift in enumerate(shifts.values())]
    return np.concatenate(parts), np.repeat(list(shifts), copies)


SEEN = {"wrong_step": 5.0, "cut_off": 5.0, "other_picture": 5.0}
UNSEEN = {"wrong_step": 0.0, "cut_off": 0.0, "other_picture": 0.0}


def table_of(folder: Path, rows: np.ndarray, anchors: np.ndarray | None, corrupted=None, **more) -> ScoreTable:
    folder.mkdir(exist_ok=True)
    for name, values in (("scores", rows), ("reference", anchors), ("corrupted", corrupted and corrupted[0])):
        if values is None:
            continue
        columns = {"uid": [f"u{row}" for row in range(len(values))], "row": np.arange(len(values))}
        columns |= {"score": -values[:, 1], "reason": pa.nulls(len(values), pa.string())}
        columns |= dict(zip(SIGNALS, values.T, strict=True)) | (more if name == "scores" else {})
        if name == "corrupted":
            columns |= {"kind": corrupted[1], "anchor": [f"u{row % len(anchors)}" for row in range(len(values))]}
        write_table(pa.table(columns), folder / f"{name}.parquet")
    return ScoreTable(folder / "scores.parquet")


def test_p_values_of_rows_that_are_like_the_anchors_are_uniform():
    seen = []
    for seed in range(40):  # one draw of the anchors is one draw of all p-values
        rows, anchors = nonconformity(signals(50, seed), signals(ANCHORS, 500 + seed))
        seen.append(p_values(rows, anchors)[:5])
    assert kstest(np.concatenate(seen), "uniform").pvalue > 0.01


def test_a_p_value_is_the_share_of_the_anchors_with_at_least_its_nonconformity():
    anchors = np.array([1.0, 2.0, 2.0, 5.0])
    np.testing.assert_allclose(p_values(np.array([0.0, 2.0, 3.0, 9.0]), anchors), [1, 4 / 5, 2 / 5, 1 / 5])


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.3, 0.5, 0.7])
def test_the_clean_share_is_found_without_knowing_it(noise):
    found = []
    for seed in range(8):
        rows, _ = mixture(noise, seed)
        found.append(clean_share(p_values(*nonconformity(rows, signals(ANCHORS, 100 + seed)))))
    # 100 anchors know a median to half a tenth, and eight of them to 0.03; the cap at 1 pulls a clean pool down
    assert np.mean(found) == pytest.approx(1 - noise, abs=0.06)


def test_the_density_ratio_is_that_of_the_densities():
    generator = np.random.default_rng(0)
    anchors, pool = generator.normal(0, 1, 4000), generator.normal(1, 1, 20_000)
    places = np.array([-1.0, 0.0, 1.0, 2.0])
    ratio = density_ratio(np.concatenate([places, pool]), anchors)[:4]
    # a kernel of width 0.19 widens both densities from 1 to 1.018, and at -1 it sees some 450 rows of the pool
    np.testing.assert_allclose(ratio, norm.pdf(places, 0, 1) / norm.pdf(places, 1, 1), rtol=0.15)


def test_the_ratio_keeps_the_mass_where_rows_look_cleaner_than_any_anchor():
    generator = np.random.default_rng(0)
    pool = np.concatenate([generator.normal(-3, 0.5, 3000), generator.normal(0, 1, 3000), generator.normal(4, 1, 3000)])
    ratio = density_ratio(pool, generator.normal(0, 1, 2000))
    order = np.argsort(pool)
    assert (np.diff(ratio[order]) <= 1e-12).all()
    # pooling what rises must not make anchors out of nothing: over the rows the ratio means one, up to sampling
    assert ratio.mean() == pytest.approx(1, abs=0.05)


def test_the_chance_is_calibrated(tmp_path):
    hits: list[tuple[float, bool]] = []
    for seed in range(10):
        rows, clean = mixture(0.5, seed, shift=4.0)
        trust = measure_trust(table_of(tmp_path / str(seed), rows, signals(ANCHORS, 100 + seed)))
        hits += list(zip(trust.probability, clean, strict=True))
    told, true = np.array([one for one, _ in hits]), np.array([two for _, two in hits])
    for low in np.arange(0, 1, 0.2):
        inside = (told >= low) & (told < low + 0.2)
        # ten draws of 100 anchors know the clean share to 0.02, and the kernel smooths what is steep
        assert true[inside].mean() == pytest.approx(told[inside].mean(), abs=0.1)


def test_a_clean_pool_passes_whole(tmp_path):
    passed = [
        measure_trust(table_of(tmp_path / str(seed), *(signals(n, seed + n) for n in (ROWS, ANCHORS)))).passing().mean()
        for seed in range(5)
    ]
    assert np.mean(passed) > 0.97


def test_the_gate_drops_what_stands_out_in_any_one_signal(tmp_path):
    rows, clean = mixture(0.5)
    passing = measure_trust(table_of(tmp_path, rows, signals(ANCHORS, 7))).passing()
    assert passing[clean].mean() > 0.8  # 100 anchors place the cut within a tenth
    assert passing[~clean].mean() < 0.05


@given(st.floats(1e-6, 1e6))
def test_units_do_not_matter(scale):
    rows, anchors = signals(50, 1), signals(ANCHORS, 2)
    one, two = nonconformity(rows, anchors), nonconformity(rows * scale, anchors * scale)
    np.testing.assert_allclose(one[0], two[0], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(one[1], two[1], rtol=1e-9, atol=1e-9)


def test_nonconformity_is_the_weighted_sum_of_logarithms_in_standard_deviations_of_the_anchors():
    """Against the formula written out row by row."""
    rows, anchors = signals(50, 1), signals(ANCHORS, 2)
    wrong, kinds = corrupted_like(SEEN, 3)
    one_kind = np.zeros(ANCHORS, np.int64)
    separation = separate(Examples(SIGNALS, anchors, one_kind, wrong, np.zeros(len(wrong), np.int64), kinds))
    known = np.abs(np.concatenate([anchors, wrong]))
    floor = 0.01 * np.median(known, axis=0)
    middle, scale = np.median(np.log(np.abs(anchors) + floor), axis=0), np.log(known + floor).std(axis=0)

    def summed(row):
        parts = zip(separation.weights, row, floor, middle, scale, strict=True)
        return sum(weight * (math.log(abs(value) + least) - m) / s for weight, value, least, m, s in parts)

    unit = np.std([summed(anchor) for anchor in anchors])
    expected = [summed(row) / unit for row in rows]
    np.testing.assert_allclose(separation.nonconformity(rows), expected, rtol=1e-9, atol=1e-9)  # float64 sums


def test_rows_are_measured_alike_a_few_at_a_time(tmp_path, monkeypatch):
    table = table_of(tmp_path, signals(50, 1), signals(ANCHORS, 2))
    whole = measure_trust(table).nonconformity
    monkeypatch.setattr("onesteptrain.selection.trust._AT_ONCE", 7)  # which does not divide 50
    np.testing.assert_array_equal(measure_trust(table).nonconformity, whole)


def test_a_row_without_any_harm_does_not_stand_out_by_it():
    rows = signals(3, 1)
    rows[0, 0] = 0.0
    found, _ = nonconformity(rows, signals(ANCHORS, 2))
    assert np.isfinite(found).all()


def test_few_anchors_are_refused_where_trust_is_asked_for_and_passed_over_where_it_is_not(tmp_path):
    table = table_of(tmp_path, signals(100, 1), signals(19, 2))
    with pytest.raises(ScoreError, match="rests on 19 anchors and needs 20"):
        select_rows(table, keep="10%", options=SelectOptions(gate="trust"))
    assert select_rows(table, keep="10%").gate == "none"


def test_a_table_without_reference_is_ranked_and_cannot_be_trusted(tmp_path):
    table = table_of(tmp_path, signals(100, 1), None)
    assert select_rows(table, keep="10%").prefer == "top"
    with pytest.raises(ScoreError, match="score again with method one_step"):
        select_rows(table, keep="10%", options=SelectOptions(gate="trust"))


def test_by_default_the_gate_drops_and_chance_chooses(tmp_path):
    rows, clean = mixture(0.5)
    selection = select_rows(table_of(tmp_path, rows, signals(ANCHORS, 7)), keep="20%")
    assert (selection.gate, selection.prefer, len(selection.rows)) == ("trust", "draw", 0.2 * ROWS)
    assert clean[selection.rows].mean() > 0.95
    assert selection.clean_share == pytest.approx(0.5, abs=0.15)
    # a draw keeps the distribution of what passed: losses of kept and passed rows are alike
    passing = measure_trust(table_of(tmp_path, rows, signals(ANCHORS, 7))).passing()
    assert kstest(rows[selection.rows, 1], rows[passing, 1]).pvalue > 0.001


def test_a_draw_depends_on_uids_and_seed_alone(tmp_path):
    rows = signals(500, 1)
    table = table_of(tmp_path / "one", rows, None)
    kept = select_rows(table, keep="20%", options=SelectOptions(prefer="draw")).rows
    order = np.random.default_rng(0).permutation(500)
    shuffled = table.read().take(pa.array(order))
    (tmp_path / "two").mkdir()
    write_table(shuffled, tmp_path / "two" / "scores.parquet")
    again = select_rows(
        ScoreTable(tmp_path / "two" / "scores.parquet"), keep="20%", options=SelectOptions(prefer="draw")
    )
    assert again.rows.tolist() == kept.tolist()
    other = select_rows(table, keep="20%", options=SelectOptions(prefer="draw", draw_seed=1)).rows
    assert len(set(other.tolist()) & set(kept.tolist())) < 50  # 20 expected of 100


def test_fewer_pass_than_are_asked_for_unless_the_rest_is_filled(tmp_path):
    rows, _ = mixture(0.7)
    table = table_of(tmp_path, rows, signals(ANCHORS, 7))
    trust = measure_trust(table)
    bare = select_rows(table, keep="90%")
    filled = select_rows(table, keep="90%", options=SelectOptions(fill=True))
    assert len(bare.rows) == trust.passing().sum() < len(filled.rows) == 0.9 * ROWS
    told = trust.verdict.passing_clean.value
    assert bare.kept.clean_share == pytest.approx(told)
    others = trust.probability[np.setdiff1d(filled.rows, bare.rows)]  # of the rest, each by its own
    assert filled.kept.clean_share == pytest.approx((told * len(bare.rows) + others.sum()) / len(filled.rows))
    left = np.setdiff1d(np.arange(ROWS), filled.rows)
    assert trust.nonconformity[left].min() >= trust.nonconformity[filled.rows].max()


def test_a_gate_of_a_share_keeps_the_best_by_harm(tmp_path):
    rows = signals(200, 1)
    selection = select_rows(table_of(tmp_path, rows, None), keep="100%", options=SelectOptions(gate="30%"))
    assert selection.rows.tolist() == sorted(np.argsort(-rows[:, 0])[:60].tolist())
    assert selection.dropped == 140


def test_naming_a_column_means_to_rank_by_it(tmp_path):
    rows = signals(200, 1)
    table = table_of(tmp_path, rows, signals(ANCHORS, 7))
    selection = select_rows(table, keep="10%", options=SelectOptions(by="harm"))
    assert (selection.gate, selection.prefer) == ("none", "top")
    assert selection.rows.tolist() == sorted(np.argsort(-rows[:, 0])[:20].tolist())


@given(
    st.lists(st.sampled_from("abcd"), min_size=1, max_size=60),
    st.integers(1, 70),
    st.sampled_from(["pool", "equal", "eligible"]),
    st.randoms(use_true_random=False),
)
def test_quotas_are_exact(names, count, shares, random):
    groups = to_groups(names)
    passed = np.flatnonzero([random.random() < 0.7 for _ in names])
    given_out = dict(zip(groups.names, share_out(groups, passed, count, shares=shares).tolist(), strict=True))
    there = {name: [names[row] for row in passed].count(name) for name in set(names)}
    assert sum(given_out.values()) == min(count, len(passed))
    assert all(number <= there[name] for name, number in given_out.items())
    full = [name for name, number in given_out.items() if number == there[name]]
    weight = {"pool": lambda name: names.count(name), "equal": lambda name: 1, "eligible": there.get}[shares]
    free = [name for name in given_out if name not in full]  # never a group of which no row passed
    for one in free:  # groups with rows left stand to each other as their weights, up to a row each time round
        for two in free:
            gap = given_out[one] / weight(one) - given_out[two] / weight(two)
            assert abs(gap) <= len(given_out) * (1 / weight(one) + 1 / weight(two))


def test_a_quota_gives_each_group_its_share_of_the_pool(tmp_path):
    skills = ["a"] * 120 + ["b"] * 60 + ["c"] * 20
    rows = signals(200, 1)
    lines = [json.dumps(qa("?", id=f"u{row}") | {"skill": skill}) for row, skill in enumerate(skills)]
    (tmp_path / "pool.jsonl").write_text("\n".join(lines) + "\n")
    pool = open_pool(tmp_path / "pool.jsonl")
    table = table_of(tmp_path, rows, None)
    selection = select_rows(table, keep="20%", options=SelectOptions(quota="skill"), pool=pool)
    assert selection.groups == {"a": 24, "b": 12, "c": 4}
    inside = [row for row in range(200) if skills[row] == "b"]
    best = sorted(inside, key=lambda row: rows[row, 1])[:12]
    assert sorted(set(selection.rows.tolist()) & set(inside)) == sorted(best)
    with pytest.raises(RunError, match="no run directory"):
        select_rows(table, keep="20%", options=SelectOptions(quota="skill"))
    with pytest.raises(ScoreError, match="has the column 'colour'"):
        select_rows(table, keep="20%", options=SelectOptions(quota="colour"), pool=pool)


@pytest.mark.parametrize(
    ("keep", "rows"), [("60 tokens", 6), ("0.065k tokens", 6), ("3 steps of 4", 12), ("99 steps of 4", 40)]
)
def test_budgets_in_tokens_and_steps(tmp_path, keep, rows):
    table = table_of(tmp_path, signals(40, 1), None, tokens=np.full(40, 10))
    selection = select_rows(table, keep=keep)
    assert len(selection.rows) == rows
    assert selection.rows.tolist() == select_rows(table, keep=str(rows)).rows.tolist()


def test_a_token_budget_ends_at_the_first_row_that_does_not_fit(tmp_path):
    rows = signals(4, 1)
    rows[:, 1] = [1, 2, 3, 4]  # the score falls
    table = table_of(tmp_path, rows, None, tokens=[10, 5, 30, 1])
    assert select_rows(table, keep="20 tokens").rows.tolist() == [0, 1]
    with pytest.raises(ScoreError, match="has more than 9 tokens"):
        select_rows(table, keep="9 tokens")


@pytest.mark.parametrize("keep", ["tokens", "0 tokens", "3 steps", "0 steps of 4", "many"])
def test_a_budget_that_cannot_be_read_is_refused(tmp_path, keep):
    with pytest.raises(ConfigError, match="keep is"):
        select_rows(table_of(tmp_path, signals(4, 1), None, tokens=[1] * 4), keep=keep)


@pytest.mark.parametrize("gate", ["maybe", "0%", "101%", "%"])
def test_a_gate_that_cannot_be_read_is_refused(gate):
    with pytest.raises(ConfigError, match="give auto, trust, none or a share"):
        SelectOptions(gate=gate)
