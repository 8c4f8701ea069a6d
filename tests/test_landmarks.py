"""Landmarks: what one pass shows of a gradient against autograd, and the stages against the first order of all rows."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from onesteptrain.cascading.ridge import fit_ridge
from onesteptrain.cascading.seeing import see
from onesteptrain.cli import main
from onesteptrain.data.pool import open_pool
from onesteptrain.errors import ConfigError
from onesteptrain.jobs.steps import score_into, select_into
from onesteptrain.methods import Setting
from onesteptrain.methods.one_step import OneStep
from onesteptrain.methods.one_step.glimpse import Glimpses
from onesteptrain.proxy import Encoded, LoadOptions, Proxy, ScopeOptions, load_proxy
from onesteptrain.scoring.score import Progress, ScoringOptions, ScoringResult
from onesteptrain.selection import SelectOptions
from onesteptrain.storage.run_directory import Run
from onesteptrain.storage.score_table import ScoreTable, write_table
from onesteptrain.synthetic import checkpoint
from onesteptrain.synthetic.digits import World, WorldOptions, make_world
from onesteptrain.utility.glimpsing import SIDE, Glimpser, _sides
from tests.building import checkpoint as tiny
from tests.building import sample, write_pool

FOLDER = Path(tempfile.mkdtemp(prefix="ost-landmarks-"))
ROWS, BUDGET = 400, 0.4
ARCHITECTURES = ("internvl", "qwen2_5_vl", "qwen3_vl", "smolvlm", "idefics3", "llava")


@functools.cache
def proxy(architecture: str) -> Proxy:
    return load_proxy(str(tiny(architecture)))


def encoded(architecture: str) -> list[Encoded]:
    rows = [sample(0), sample(1, words=9), sample(2, images=0), sample(3, images=2)]
    return [proxy(architecture).encoder.encode(one) for one in rows]


def with_an_identity(model: Proxy, layers: int, one: Encoded) -> Tensor:
    """Gradient of a square matrix, the identity, that the states go through below so many layers."""
    above = model.model.get_decoder().layers[-layers] if layers else model.model.get_output_embeddings()
    weight = next(model.model.parameters())
    width = model.model.get_output_embeddings().weight.shape[1]
    identity = torch.eye(width, dtype=weight.dtype, requires_grad=True)
    hook = above.register_forward_pre_hook(lambda _, args: (args[0] @ identity.T, *args[1:]))
    try:
        with torch.enable_grad():
            loss = model.token_losses(model.batch([one])).means().sum()
            (gradient,) = torch.autograd.grad(loss, [identity])
    finally:
        hook.remove()
    return gradient


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("layers", [0, 1, 2])
def test_a_glimpse_is_a_sketch_of_the_gradient_that_autograd_finds(architecture, layers):
    model, samples = proxy(architecture), encoded(architecture)
    anchors = [model.encoder.encode(sample(row)) for row in range(20, 25)]
    before = {name: value.detach().clone() for name, value in model.model.named_parameters()}
    look = Glimpser(model, layers, 5, 4).towards(anchors)
    yardstick = sum(with_an_identity(model, layers, one) for one in anchors)
    outer, inner = _sides(len(yardstick), 5, yardstick.dtype, yardstick.device)
    for found, one in zip(look(samples), samples, strict=True):
        gradient = with_an_identity(model, layers, one)
        along = (gradient * yardstick).sum() / yardstick.norm()
        wanted = torch.cat([along[None], (outer.T @ gradient @ inner).flatten()])
        # float32 round-off of padded and plain sums
        torch.testing.assert_close(found.shown, wanted, rtol=1e-3, atol=2e-5 * float(gradient.norm()))
        losses = model.token_losses(model.batch([one])).loss.detach().double()
        torch.testing.assert_close(found.loss, losses, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in model.model.named_parameters())
    assert all(value.grad is None for value in model.parameters.values())


def test_a_sketch_keeps_inner_products_on_average():
    """By definition: the mean over draws of P and Q is the inner product, and its variance falls with their columns."""
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, 24, 24, generator=generator, dtype=torch.float64)
    other += one
    seen = []
    for seed in range(400):
        outer, inner = _sides(24, seed, torch.float64, torch.device("cpu"))
        seen.append(float(((outer.T @ one @ inner) * (outer.T @ other @ inner)).sum()))
    size = float(one.norm() * other.norm())
    assert np.mean(seen) == pytest.approx(float((one * other).sum()), abs=4 * np.std(seen) / 400**0.5)
    assert np.std(seen) < 3 * size / SIDE


def test_anchors_that_do_not_fit_together_are_looked_at_in_parts(monkeypatch):
    model = load_proxy(str(tiny("qwen3_vl")))
    anchors = [model.encoder.encode(sample(row)) for row in range(20, 26)]
    wanted = Glimpser(model, 1, 0, 8).towards(anchors).anchors
    forward = model.model.forward

    def limited(*args, **kwargs):
        if len(kwargs["input_ids"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(*args, **kwargs)

    monkeypatch.setattr(model.model, "forward", limited)
    found = Glimpser(model, 1, 0, 8).towards(anchors).anchors
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)
    assert model.room.tokens == model.tokens_at_once  # forward passes may hold more than those that go back


def test_the_first_stage_looks_along_the_anchors():
    model, rows = proxy("qwen3_vl"), [sample(row) for row in range(3)]
    anchors = [sample(row) for row in range(20, 25)]
    scorer = Glimpses(1, batch_size=4).prepare(Setting(model, anchors, seed=3))
    look = Glimpser(model, 1, 3, 4).towards([model.encoder.encode(one) for one in anchors])
    for record, wanted in zip(scorer(rows), look([model.encoder.encode(one) for one in rows]), strict=True):
        np.testing.assert_allclose(record.columns["glimpse"], wanted.shown.numpy(), rtol=1e-5)
        assert abs(record.columns["glimpse"][0]) > 0.1 * float(wanted.shown.norm())  # these rows are like the anchors


def test_more_layers_than_there_are_is_refused():
    with pytest.raises(ConfigError, match="glimpse_layers is 99 and the language model has"):
        Glimpser(proxy("internvl"), 99, 0, 4)(encoded("internvl"))


@pytest.mark.parametrize(("rows", "dimensions"), [(40, 6), (12, 30)])
def test_held_out_values_are_those_of_fits_without_the_row(rows, dimensions):
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(rows, dimensions)) * np.geomspace(1, 0.01, dimensions)
    values = vectors @ generator.normal(size=dimensions) + 0.3 * generator.normal(size=rows) + 5
    line, held_out = fit_ridge(vectors, values)
    penalty = _penalty_of(line.slopes, vectors, values)
    for row in range(rows):
        others = np.arange(rows) != row
        centred = vectors - vectors[others].mean(0)
        inside = centred[others]
        middle = values[others].mean()
        slopes = np.linalg.solve(inside.T @ inside + penalty * np.eye(dimensions), inside.T @ (values[others] - middle))
        assert held_out[row] == pytest.approx(middle + centred[row] @ slopes, rel=1e-6)  # float64 solves


def _penalty_of(slopes: np.ndarray, vectors: np.ndarray, values: np.ndarray) -> float:
    """What makes the normal equations hold: X'X b + p b = X'y."""
    centred = vectors - vectors.mean(0)
    left = centred.T @ (values - values.mean()) - centred.T @ (centred @ slopes)
    return float(left @ slopes / (slopes @ slopes))


def test_short_glimpses_are_told_in_proportion_to_their_length(tmp_path):
    """The utility is a line of the glimpse with an error in proportion to it; a plain fit sees the long ones only."""
    generator = np.random.default_rng(0)
    lengths = np.where(np.arange(600) % 2, 1.0, 1e-3)
    glimpses = (generator.normal(size=(600, 20)) * lengths[:, None]).astype(np.float32)
    utility = glimpses @ generator.normal(size=20) + 0.3 * lengths * generator.normal(size=600)
    table = pa.table({"glimpse": list(glimpses), "glimpse_length": np.linalg.norm(glimpses, axis=1)})
    write_table(table, tmp_path / "scores.parquet")
    known = np.arange(100)
    seen = see(ScoreTable(tmp_path / "scores.parquet"))
    short = (lengths < 1) & (np.arange(600) >= 100)
    told = seen.expect(known, utility[known])[short]
    line, _ = fit_ridge(glimpses[known].astype(float), utility[known])
    plain = line(glimpses)[short]
    errors = [float(np.abs(one - utility[short]).mean() / np.abs(utility[short]).mean()) for one in (told, plain)]
    assert errors[0] < 0.3  # 0.07 is the noise; the line itself is fitted to a hundred rows
    assert errors[1] > 1  # its intercept alone


@functools.cache
def world() -> World:
    return make_world(WorldOptions(pool_rows=ROWS, heldout_rows=24, benchmark_rows=8), FOLDER / "world")


def run(name: str, method: OneStep, seed: int = 0, progress: Progress | None = None) -> ScoringResult:
    """Score the world's pool with its proxy; the held-out rows are the anchors.

    In float64: float32's round-off of a token's loss, over the shift, is up to a thousandth of the largest score.
    """
    return score_into(
        FOLDER / name,
        open_pool(world().pool),
        method,
        anchors=world().heldout,
        proxy=str(checkpoint("proxy")),
        loading=(ScopeOptions(), LoadOptions(dtype="float64")),
        options=ScoringOptions(shard_rows=64),
        seed=seed,
        progress=progress,
    )


LANDMARKS = OneStep("landmarks", landmark_budget=BUDGET, group_by="skill")


@functools.cache
def scored(name: str) -> ScoreTable:
    methods = {
        "fd": OneStep("fd", group_by="skill"),
        "landmarks": LANDMARKS,
        "more": dataclasses.replace(LANDMARKS, landmark_budget=0.9),
        "modest": dataclasses.replace(LANDMARKS, landmark_agreement=0.5),
    }
    return run(name, methods[name]).table


def top(values: np.ndarray) -> set[int]:
    return set(np.argsort(-values, kind="stable")[: len(values) // 5].tolist())


def facts(name: str) -> dict[str, float]:
    scored(name)
    return Run(FOLDER / name).provenance["landmarks"]


def groups(table: ScoreTable) -> Sequence[str]:
    return [name for name in table.names if name.startswith("utility.")]


def test_rows_that_were_scored_have_the_first_order_columns():
    fd, landmarks = scored("fd"), scored("landmarks")
    known = np.isfinite(landmarks.numbers("first_order"))
    assert known.sum() == facts("landmarks")["drawn"] + facts("landmarks")["doubtful"] <= BUDGET * ROWS
    assert len(groups(landmarks)) == 4
    for name in ("score", "harm", "gain", "worst_utility", *groups(landmarks)):
        # the batches are other ones; what transformers keeps in float32 (norms, positions) is rounded, over the shift
        theirs = fd.numbers(name)
        np.testing.assert_allclose(landmarks.numbers(name)[known], theirs[known], atol=1e-6 * np.abs(theirs).max())
    assert np.isnan(landmarks.numbers("worst_utility")[~known]).all()


def test_every_row_has_what_a_selection_needs():
    fd, landmarks = scored("fd"), scored("landmarks")
    np.testing.assert_allclose(landmarks.numbers("loss"), fd.numbers("loss"), rtol=1e-3)  # fd has it from two passes
    for name in ("score", "utility", "harm", "gain", *groups(landmarks)):
        assert np.isfinite(landmarks.numbers(name)).all()
    assert (landmarks.numbers("harm") <= 0).all()
    np.testing.assert_allclose(
        landmarks.numbers("harm") + landmarks.numbers("gain"), landmarks.numbers("utility"), atol=1e-9
    )
    assert "glimpse" not in landmarks.names
    selection = select_into(
        FOLDER / "landmarks", FOLDER / "subset.jsonl", keep="20%", options=SelectOptions(gate="50%")
    )
    assert len(selection.rows) == ROWS // 5


def test_what_the_anchors_look_like_is_measured_once():
    scored("landmarks")
    kept = {path.parent.name for path in (FOLDER / "landmarks").glob("*/reference.parquet")}
    assert kept == {"drawn"}
    assert (FOLDER / "landmarks" / "doubtful-0").exists()


def test_no_more_is_drawn_than_the_budget_allows():
    shares = [OneStep("landmarks", landmark_budget=budget).stages().drawn_share for budget in (0.03, 0.3)]
    assert shares == [0.03, 0.1]


def test_what_is_told_from_a_glimpse_goes_with_the_first_order():
    fd, landmarks = scored("fd"), scored("landmarks")
    others = ~np.isfinite(landmarks.numbers("first_order"))
    for name in ("utility", "harm"):
        both = np.corrcoef(landmarks.numbers(name)[others], fd.numbers(name)[others])[0, 1]
        assert both > np.abs(np.corrcoef(landmarks.numbers("loss")[others], fd.numbers(name)[others])[0, 1])
        assert both > 0.2  # by chance 0.06 or so; of 60 landmarks little can be learned, and doubtful rows are gone


def test_the_agreement_is_told_and_grows_with_the_budget():
    fd = scored("fd").numbers("score")
    for name in ("landmarks", "more", "modest"):
        seen = len(top(fd) & top(scored(name).numbers("score"))) / len(top(fd))
        assert seen == pytest.approx(facts(name)["expected_agreement"], abs=0.12)  # 80 places: two standard deviations
    assert facts("more")["expected_agreement"] > facts("landmarks")["expected_agreement"]
    assert facts("modest")["doubtful"] < facts("landmarks")["doubtful"]


def test_what_is_done_is_not_done_again():
    before = scored("landmarks").path.read_bytes()
    scored("landmarks").path.unlink()  # as after a kill before the end
    again = run("landmarks", LANDMARKS)
    assert again.scored_now == 0
    assert again.table.path.read_bytes() == before
    assert again.table.reference is not None


def test_a_kill_between_and_within_stages_changes_no_byte():
    whole = scored("landmarks")
    calls = 0

    def stop(done: int, total: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 9:  # in the stage of the doubtful rows
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("killed", LANDMARKS, progress=stop)
    assert (FOLDER / "killed" / "cheap" / "scores.parquet").exists()
    assert run("killed", LANDMARKS).table.path.read_bytes() == whole.path.read_bytes()


def test_rows_that_cannot_be_scored_keep_their_reason_and_a_small_pool_is_scored_whole(tmp_path):
    path = write_pool(tmp_path / "pool", 40)
    (tmp_path / "pool" / "images" / "7.png").write_bytes(b"no picture")
    anchors = write_pool(tmp_path / "anchors", 3, start=500)
    given = {"anchors": anchors, "proxy": str(tiny("qwen3_vl"))}
    table = score_into(tmp_path / "run", open_pool(path), OneStep("landmarks"), **given).table
    fd = score_into(tmp_path / "fd", open_pool(path), OneStep("fd"), **given).table
    reasons = table.read(["reason"])["reason"].to_pylist()
    assert reasons == fd.read(["reason"])["reason"].to_pylist()
    assert [row for row, reason in enumerate(reasons) if reason is not None] == [7]
    known = np.isfinite(table.numbers("first_order"))
    assert known.sum() == 39
    assert np.isnan(table.numbers("score")[7])


def test_what_cannot_be_asked_for_is_refused(tmp_path, capsys):
    with pytest.raises(ConfigError, match=r"landmark_budget is 1\.5"):
        OneStep("landmarks", landmark_budget=1.5)
    with pytest.raises(ConfigError, match="glimpse_layers is -1"):
        OneStep("landmarks", glimpse_layers=-1)
    with pytest.raises(ConfigError, match="does not measure every row; use fd or jvp with intervals"):
        OneStep("landmarks", intervals=8)
    assert main(["score", "--help"]) == 0
    assert "--landmark-budget" in capsys.readouterr().out
