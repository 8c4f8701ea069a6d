"""The cascade against exact steps for all rows, and its stated agreement against what is seen."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from onesteptrain.cascading import Part, _draw, seeing
from onesteptrain.cascading import doubt as doubt_module
from onesteptrain.cascading.doubt import Doubt, Side, learn_doubt
from onesteptrain.cli import main
from onesteptrain.data.pool import Unreadable, open_pool
from onesteptrain.errors import AnchorError, ConfigError
from onesteptrain.jobs.steps import score_into
from onesteptrain.methods.one_step import OneStep, bending
from onesteptrain.proxy import LoadOptions, ScopeOptions, load_proxy
from onesteptrain.scoring.score import ScoringOptions, ScoringResult
from onesteptrain.storage.run_directory import Run
from onesteptrain.storage.score_table import ScoreTable
from onesteptrain.synthetic import checkpoint
from onesteptrain.synthetic.digits import World, WorldOptions, make_world
from onesteptrain.utility import curvature as curving
from onesteptrain.utility import measure_anchors
from onesteptrain.utility.encoded import anchor_groups
from tests.building import checkpoint as tiny
from tests.building import sample, write_pool
from tests.methods.setups import default_setting

FOLDER = Path(tempfile.mkdtemp(prefix="ost-cascade-"))
ROWS, ANCHORS, STEP = 160, 8, 2e-3
"""A step so long that the first order is visibly off."""


@functools.cache
def world() -> World:
    return make_world(WorldOptions(pool_rows=ROWS, heldout_rows=ANCHORS, benchmark_rows=8), FOLDER / "world")


def run(name: str, method: OneStep, seed: int = 0) -> ScoringResult:
    """Score the world's pool with its proxy; the held-out rows are the anchors."""
    options = ScoringOptions(shard_rows=64)
    proxy = str(checkpoint("proxy"))
    return score_into(
        FOLDER / name, open_pool(world().pool), method, anchors=world().heldout, proxy=proxy, options=options, seed=seed
    )


@functools.cache
def scored(name: str) -> ScoreTable:
    """One pool by exact steps and by cascades, each made once."""
    methods = {
        "exact": OneStep("exact", STEP),
        "cascade": OneStep("cascade", STEP, cascade_agreement=0.95),
        "lengths": OneStep("cascade", STEP, cascade_agreement=0.95, agreement=True),
        "sure": OneStep("cascade", STEP, cascade_agreement=1 - 1e-9),
        "straight": OneStep("cascade", STEP, cascade_curvature=0),
        "bent": OneStep("cascade", STEP, cascade_curvature=8),
    }
    if name.startswith("seed"):
        return run(name, methods["cascade"], int(name.split()[1])).table
    return run(name, methods[name]).table


def top(values: np.ndarray) -> set[int]:
    return set(np.argsort(-values, kind="stable")[: len(values) // 5].tolist())


def facts(name: str) -> dict[str, float]:
    scored(name)
    return Run(FOLDER / name).provenance["cascade"]


def test_dear_rows_have_the_exact_utility_and_the_others_the_cheap_one_beside_it():
    exact, cascade = scored("exact").numbers("score"), scored("cascade")
    known = np.isfinite(cascade.numbers("exact"))
    assert facts("cascade")["drawn"] <= known.sum() < ROWS
    # the step is the same; only the place in the list differs
    np.testing.assert_array_equal(cascade.numbers("score")[known], exact[known])
    np.testing.assert_array_equal(cascade.numbers("utility"), cascade.numbers("score"))
    cheap = ScoreTable(FOLDER / "cascade" / "cheap" / "scores.parquet")
    np.testing.assert_array_equal(cascade.numbers("first_order"), cheap.numbers("utility"))
    np.testing.assert_array_equal(cascade.numbers("harm"), cheap.numbers("harm"))
    assert cascade.reference is not None


def test_what_is_expected_of_the_others_is_nearer_to_exact_than_first_order():
    exact, cascade = scored("exact").numbers("score"), scored("cascade")
    others = ~np.isfinite(cascade.numbers("exact"))
    missed = [np.abs(cascade.numbers(name) - exact)[others].mean() for name in ("score", "first_order")]
    assert missed[0] < missed[1]


def test_the_top_share_agrees_as_much_as_is_said():
    exact = top(scored("exact").numbers("score"))
    seen = {}
    for name in ("cascade", "lengths", "bent", *(f"seed {seed}" for seed in (1, 2, 3))):
        assert facts(name)["expected_agreement"] >= 0.95
        seen[name] = len(exact & top(scored(name).numbers("score"))) / len(exact)
        assert seen[name] >= 0.95 - 5 / len(exact)  # an expectation is no bound: draws differ by 1.8 of 32 places
    assert np.mean([seen[name] for name in ("cascade", "seed 1", "seed 2", "seed 3")]) >= 0.95 - 2 / len(exact)
    assert top(scored("sure").numbers("score")) == exact


def test_more_agreement_costs_more_exact_steps():
    assert facts("cascade")["doubtful"] < facts("sure")["doubtful"]


def test_the_second_order_of_rows_in_doubt_saves_exact_steps():
    assert facts("straight")["between"] == 0
    assert 0 < facts("bent")["between"] < ROWS
    assert facts("bent")["doubtful"] < facts("straight")["doubtful"]
    exact, bent = scored("exact").numbers("score"), scored("bent")
    between = ScoreTable(FOLDER / "bent" / "between" / "scores.parquet")
    looked = np.flatnonzero(np.isin(_uids(bent), _uids(between)))
    left = exact - bent.numbers("first_order")
    # along eight directions; a second order of the wrong sign or of another row would not go with it at all
    assert np.corrcoef(left[looked], between.numbers("second_order"))[0, 1] > 0.6


def _uids(table: ScoreTable) -> list[str]:
    return table.read(["uid"])["uid"].to_pylist()


def test_the_curvature_is_that_of_the_second_derivative(monkeypatch):
    proxy = load_proxy(str(tiny("internvl")), options=LoadOptions(dtype="float64", attention="eager"))
    anchors = anchor_groups(proxy.encoder, [sample(row) for row in range(5)], None)
    (group,) = measure_anchors(proxy, anchors, preconditioner={}, batch_size=2, keep=True)
    before = {name: value.detach().clone() for name, value in proxy.parameters.items()}
    monkeypatch.setattr(curving, "_SHIFT", 1e-6)  # in float64 so short a shift leaves no third order to see
    curvature = curving.measure_curvature(proxy, group, directions=3)
    assert all(torch.equal(value, before[name]) for name, value in proxy.parameters.items())
    np.testing.assert_allclose(curvature.basis @ curvature.basis.T, np.eye(3), atol=1e-12)
    weights = list(proxy.parameters.values())
    losses = [proxy.token_losses(batch).means().sum() / 5 for batch in group.batches]  # at weights that stay put
    slopes = torch.autograd.grad(sum(losses), weights, create_graph=True, allow_unused=True)
    for step in (curvature.basis[0], curvature.basis[2], curvature.basis.sum(0)):
        parts = torch.split(step, [value.numel() for value in weights])
        along = sum((s * p.view_as(s)).sum() for s, p in zip(slopes, parts, strict=True) if s is not None)
        bend = torch.autograd.grad(along, weights, retain_graph=True, allow_unused=True)
        oracle = sum(float((b * p.view_as(b)).sum()) for b, p in zip(bend, parts, strict=True) if b is not None)
        scale = float(curvature.bends.abs().max())
        assert curvature.along(curvature.basis @ step) == pytest.approx(
            oracle, abs=1e-3 * scale
        )  # of the shift, a few times over


def test_an_unscored_row_does_not_blind_the_doubt():
    generator = np.random.default_rng(0)
    first = generator.normal(size=200)
    exact, drawn = first + 0.1 * generator.normal(size=200), np.arange(40)
    whole = learn_doubt(first[:, None], first, drawn, exact[drawn])
    holed = np.where(np.arange(200) == 199, np.nan, first)
    doubt = learn_doubt(holed[:, None], holed, drawn, exact[drawn])
    assert np.isnan(doubt.expected[199])
    # the median that small values are told from has moved by one row of 200
    np.testing.assert_allclose(doubt.expected[:199], whole.expected[:199], atol=1e-3)


def test_what_is_done_is_not_done_again():
    before = scored("cascade").read()
    final = scored("cascade").path
    stages = {path: path.stat().st_mtime_ns for path in (FOLDER / "cascade").glob("*/*.parquet")}
    method = OneStep("cascade", STEP, cascade_agreement=0.95)
    assert run("cascade", method).scored_now == 0
    final.unlink()  # as after a kill before the end
    final.with_name("reference.parquet").unlink()
    again = run("cascade", method)
    assert again.scored_now == 0
    assert again.table.read().equals(before)
    assert again.table.reference is not None
    assert {path: path.stat().st_mtime_ns for path in stages} == stages


def test_the_stated_agreement_holds_on_average():
    """On pools whose errors are known: heavy-tailed, larger for larger utilities, off by a factor."""
    generator = np.random.default_rng(0)
    seen, told = [], []
    for _ in range(30):
        first = generator.normal(size=3000)
        size = 0.05 + 0.1 * np.abs(first)
        exact = 0.8 * first + size * generator.standard_t(4, 3000)
        features = np.stack([first, np.maximum(first, 0), np.minimum(first, 0)], axis=1)
        drawn = generator.choice(3000, 100, replace=False)
        doubt = learn_doubt(features, first, drawn, exact[drawn])
        cut = doubt.cut(np.full(3000, np.nan), np.arange(3000), 600)
        seen.append(1 - len(top(exact) & top(doubt.expected)) / 600)
        told.append(doubt.crossing(cut).sum() / 2 / 600)
    # 100 rows tell the size of errors to a tenth, and their tails less well
    assert np.mean(told) == pytest.approx(np.mean(seen), rel=0.25)


@pytest.mark.parametrize("tails", [0.5, 3.0])
@pytest.mark.parametrize("top", [10, 1000, 1990])
def test_the_cut_has_as_many_rows_above_it_as_are_wanted_whatever_single_rows_are_like(tails, top):
    rows = np.random.default_rng(0).normal(size=2000)
    sizes = np.full(2000, 0.1)
    sizes[7] = 1e6
    sides = [Side(np.full(2000, 0.5), sizes, np.full(2000, tails)) for _ in range(2)]
    doubt = Doubt(rows, *sides)
    cut = doubt.cut(np.full(2000, np.nan), np.arange(2000), top)
    assert doubt._above(cut).sum() == pytest.approx(top, abs=1e-3)  # the root is found to 1e-9 of the spread


def test_rows_that_are_told_badly_do_not_bend_the_line_of_the_others():
    """By construction the line is known; what it misses is a thousand times larger where the loss is large."""
    once, now = [], []
    for seed in range(20):
        generator = np.random.default_rng(seed)
        loss = generator.uniform(0, 1, 2000)
        first = generator.normal(size=2000)
        line = 0.8 * first + 0.3 * loss
        exact = line + generator.normal(size=2000) * 10.0 ** (3 * loss - 3)
        features = np.column_stack([first, loss])
        drawn = np.arange(120)
        now.append(np.abs(learn_doubt(features, first, drawn, exact[drawn]).expected - line)[loss < 0.3].mean())
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(doubt_module, "_FITS", 1)
            once.append(np.abs(learn_doubt(features, first, drawn, exact[drawn]).expected - line)[loss < 0.3].mean())
    assert np.median(now) < 0.5 * np.median(once)  # 0.3 or so


def test_harm_that_the_first_order_does_not_see_is_no_reason_to_doubt_rows_below_the_cut():
    """Errors are a heavy-tailed loss, and seldom a gain: rows below the cut are as safe as they are seen to be."""
    generator = np.random.default_rng(0)
    seen = told = 0.0
    for _ in range(30):
        first = generator.normal(size=3000)
        exact = first - 0.1 * np.abs(generator.standard_t(2, 3000)) + 0.02 * generator.normal(size=3000)
        drawn = generator.choice(3000, 300, replace=False)
        doubt = learn_doubt(first[:, None], first, drawn, exact[drawn])
        cut = doubt.cut(np.full(3000, np.nan), np.arange(3000), 600)
        far = doubt.expected < cut - 0.3
        told += doubt.crossing(cut)[far].sum()
        seen += (exact[far] >= np.sort(exact)[-600]).sum()
    assert seen < told < 20  # 0 of 7; with the same tails above and below it would be 0 of 186


def test_rows_that_are_called_safe_are_so_where_errors_grow_faster_than_by_a_power_of_the_loss():
    generator = np.random.default_rng(0)
    seen = told = 0.0
    for _ in range(30):
        first, spread = generator.normal(size=(2, 3000))
        exact = first + 0.02 * np.exp(spread + 0.5 * np.minimum(spread**2, 9)) * generator.normal(size=3000)
        features = np.stack([first, np.exp(spread)], axis=1)
        drawn = generator.choice(3000, 200, replace=False)
        doubt = learn_doubt(features, first, drawn, exact[drawn])
        cut = doubt.cut(np.full(3000, np.nan), np.arange(3000), 600)
        chances, true = doubt.crossing(cut), np.sort(exact)[-600]
        safe = chances < 0.05
        told += chances[safe].sum()
        seen += ((doubt.expected > cut) != (exact >= true))[safe].sum()
    assert 50 < seen < 1.2 * told  # some 130 of 130; by straight lines alone it would be 340 of 200


def test_rows_are_drawn_from_the_whole_pool_and_from_where_the_cut_may_be(tmp_path):
    utility = np.random.default_rng(0).permutation(5000).astype(float)
    columns = {"uid": [str(row) for row in range(5000)], **dict.fromkeys(seeing.FIRST_ORDER, utility)}
    path = tmp_path / "scores.parquet"
    pq.write_table(pa.table(columns), path)
    table = ScoreTable(path)
    draws = {
        glimpsed: _draw(seeing.Seen(table, utility[:, None], glimpsed), share=0.04, top=500, seed=3)
        for glimpsed in (False, True)
    }
    for drawn in draws.values():
        assert len(drawn) == len(set(drawn.tolist())) == 200
    near = {glimpsed: int((utility[drawn] >= 4000).sum()) for glimpsed, drawn in draws.items()}
    # of 60 drawn anywhere a fifth, 12, is near, and the 140 others are: five standard deviations of 3.1 around that;
    # of 200 drawn anywhere it would be 40, with one of 5.7
    assert near[False] == pytest.approx(152, abs=15)
    assert near[True] == pytest.approx(40, abs=28)


def test_a_small_pool_is_scored_dearly_as_a_whole(tmp_path):
    pool = open_pool(write_pool(tmp_path / "pool", 12))
    anchors = write_pool(tmp_path / "anchors", 3, start=500)
    options = {"anchors": anchors, "proxy": str(tiny("qwen3_vl"))}
    table = score_into(tmp_path / "run", pool, OneStep("cascade"), **options).table
    exact = score_into(tmp_path / "exact", pool, OneStep("exact"), **options).table
    np.testing.assert_array_equal(table.numbers("score"), exact.numbers("score"))


def test_a_row_that_cannot_be_scored_keeps_its_reason(tmp_path):
    path = write_pool(tmp_path / "pool", 40)
    (tmp_path / "pool" / "images" / "7.png").write_bytes(b"no picture")
    anchors = write_pool(tmp_path / "anchors", 3, start=500)
    proxy = str(tiny("qwen3_vl"))
    table = score_into(tmp_path / "run", open_pool(path), OneStep("cascade"), anchors=anchors, proxy=proxy).table
    reasons = table.read(["reason"])["reason"].to_pylist()
    assert [row for row, reason in enumerate(reasons) if reason is not None] == [7]
    assert np.isnan(table.numbers("score")[7])


@pytest.mark.parametrize("start", [0, 1, 3, 4])
def test_a_part_of_a_pool_is_numbered_anew(tmp_path, start):
    pool = open_pool(write_pool(tmp_path / "pool", 9))
    part = Part(pool, (1, 2, 5, 8))
    found = list(part.rows(start))
    assert [(one.uid, one.row) for one in found] == [("s1", 0), ("s2", 1), ("s5", 2), ("s8", 3)][start:]
    assert not [one for one in found if isinstance(one, Unreadable)]
    assert part.count() == 4


def test_a_part_reads_no_further_than_its_last_row(tmp_path, monkeypatch):
    pool = open_pool(write_pool(tmp_path / "pool", 10))
    read: list[int] = []
    monkeypatch.setattr(type(pool), "_read", lambda self, uid, row, raw: read.append(row) or Unreadable(uid, row, ""))
    assert [one.row for one in Part(pool, (1, 2, 5)).rows(1)] == [1, 2]
    assert read == [2, 3, 4, 5]


@pytest.mark.parametrize(
    ("method", "loading", "said"),
    [
        (OneStep("cascade"), LoadOptions(dtype="bfloat16"), "estimator exact moves the weights"),
        (OneStep("landmarks", group_by="typo"), LoadOptions(), "has no column 'typo'"),
        (OneStep("landmarks", optimizer="adam"), LoadOptions(), "needs the second moments of a warm-up"),
    ],
)
def test_what_the_dear_stage_refuses_is_refused_before_the_pool_is_read(method, loading, said, tmp_path):
    pool, anchors = open_pool(write_pool(tmp_path / "pool", 8)), write_pool(tmp_path / "anchors", 3, start=500)
    given = {"anchors": anchors, "proxy": str(tiny("qwen3_vl")), "loading": (ScopeOptions(), loading)}
    with pytest.raises((AnchorError, ConfigError), match=said):
        score_into(tmp_path / "run", pool, method, **given)
    assert not (tmp_path / "run" / "cheap").exists()


def test_curvature_takes_fewer_directions_where_there_is_no_memory_for_all(monkeypatch):
    asked: list[int] = []
    measure = bending.measure_curvature

    def limited(*args, directions: int):
        asked.append(directions)
        if directions > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return measure(*args, directions=directions)

    setting = default_setting()
    wanted = [record.score for record in bending.Bending(3, STEP).prepare(setting)([sample(1), sample(2)])]
    monkeypatch.setattr(bending, "measure_curvature", limited)
    found = [record.score for record in bending.Bending(12, STEP).prepare(setting)([sample(1), sample(2)])]
    assert asked == [12, 6, 3]
    assert found == wanted


def test_what_cannot_be_asked_for_is_refused(tmp_path, capsys):
    with pytest.raises(ConfigError, match="cascade_share is 20"):
        OneStep("cascade", cascade_share=20)
    with pytest.raises(ConfigError, match="compares the rows of a whole pool"):
        OneStep("cascade").prepare(default_setting())
    assert main(["score", str(tmp_path / "none.jsonl"), "--out", str(tmp_path / "o"), "--estimator", "casacde"]) == 2
    assert "cascade" in capsys.readouterr().err
