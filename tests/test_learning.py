"""Whether training is worth it: losses of anchors before and after a warm-up, by closed forms and real small models."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import norm

from onesteptrain.cli import main
from onesteptrain.cli.choosing import describe_advice, describe_selection
from onesteptrain.data.anchors import ACCEPTED
from onesteptrain.data.pool import Sample, Turn
from onesteptrain.errors import RunError
from onesteptrain.methods import Setting
from onesteptrain.methods.loss import Loss
from onesteptrain.proxy import ScopeOptions, load_proxy
from onesteptrain.selection import select_rows
from onesteptrain.selection.advice import advise
from onesteptrain.selection.learning import measure_learning
from onesteptrain.storage.learning_record import (
    LEARNING,
    LearningRecord,
    Losses,
    read_learning_record,
    write_learning,
)
from onesteptrain.training import FinetuneOptions, WarmupOptions, warm_up
from tests.building import write_pool
from tests.test_trust import ANCHORS, ROWS, mixture, signals, table_of

TAUGHT = "The answer is 7."
OTHER = "It is seven. It is seven. It is B."


def losses(before: object, after: object, tokens: int = 50) -> Losses:
    each, then = np.broadcast_arrays(np.asarray(before, float), np.asarray(after, float))
    return Losses([tokens] * len(each), each.tolist(), then.tolist())


def told(folder: Path, anchors: Losses, own: Losses | None = None, rows: int = 400, **columns: object):
    """What is said of a score table beside such a record."""
    folder.mkdir(parents=True, exist_ok=True)
    table = table_of(folder, mixture(0.5)[0], signals(ANCHORS, 7), **columns)
    own = losses(np.full(100, 1.0), 0.5) if own is None else own
    write_learning(LearningRecord(rows, anchors, own), folder)
    return measure_learning(table)


def spread(mean: float, count: int = 100) -> np.ndarray:
    return mean * np.random.default_rng(0).lognormal(0, 0.5, count)


def test_the_fall_is_that_of_the_mean_loss_with_the_interval_of_a_ratio(tmp_path):
    before = spread(0.5)
    after = before * np.random.default_rng(1).lognormal(-0.2, 0.3, 100)
    fall = told(tmp_path, losses(before, after)).fall
    assert fall.value == pytest.approx(1 - after.mean() / before.mean(), rel=1e-12)
    ratio = after.mean() / before.mean()  # by the delta method, which a bootstrap of 100 meets within a tenth
    error = np.std(after - ratio * before, ddof=1) / before.mean() / 10
    reach = norm.ppf(0.975) * error
    assert (fall.low, fall.high) == pytest.approx((fall.value - reach, fall.value + reach), abs=0.1 * reach)


@pytest.mark.parametrize(
    ("after", "own_after", "rows", "verdict"),
    [
        (0.5, 0.5, 400, "worth it"),
        (1.0, 0.5, 400, "not worth it"),  # learned from its rows, and nothing of the anchors
        (1.5, 0.5, 400, "not worth it"),
        (1.0, 0.98, 400, "cannot tell"),  # too short to have learned anything
        (1.5, 0.5, 40, "cannot tell"),  # knows forty rows by heart
    ],
)
def test_the_verdict_needs_a_warm_up_that_learned_and_a_loss_that_did_not_fall(
    tmp_path, after, own_after, rows, verdict
):
    before = spread(1.0)
    own = losses(before, own_after * before)
    assert told(tmp_path, losses(before, after * before), own, rows).verdict == verdict


def test_few_anchors_of_which_half_gain_tell_nothing(tmp_path):
    before = spread(1.0, 30)
    after = before * np.where(np.arange(30) % 2, 0.7, 1.3)
    assert told(tmp_path, losses(before, after)).verdict == "cannot tell"
    assert told(tmp_path / "fewer", losses(before[:19], 2 * before[:19])) is None


@pytest.mark.parametrize(("given", "verdict"), [(0.99, "not worth it"), (0.9, "worth it")])
def test_a_proxy_that_gives_the_answers_already_has_little_to_learn(tmp_path, given, verdict):
    before = np.full(100, -np.log(given) / 50)
    learning = told(tmp_path, losses(before, before / 2))
    assert learning.known.value == pytest.approx(given)
    assert learning.verdict == verdict
    assert ("gave 99%" in "".join(learning.sentences())) == (verdict == "not worth it")


def test_rows_as_they_are_speak_of_the_whole_pool_alone_and_rows_that_pass_of_this_pool(tmp_path):
    before = spread(1.0)
    (whole,) = told(tmp_path / "first", losses(before, 1.5 * before)).sentences()
    assert whole == (
        "training on the whole pool is not worth it, as far as the proxy can see: a warm-up on 400 rows as they are "
        "changed the loss of 100 anchors by +50% (+50% to +50%); `ost run` tells of the rows that pass the gate, by a "
        "second pass"
    )
    more = {name: np.zeros(ROWS) for name in ("second_loss", "second_worst_loss")}
    (passing,) = told(tmp_path / "second", losses(before, 1.5 * before), **more).sentences()
    assert "training on this pool is not worth it" in passing
    assert "400 rows that pass the gate" in passing


def test_advise_and_select_say_the_same_and_nothing_without_a_record(tmp_path):
    rows = mixture(0.5)[0]
    table = table_of(tmp_path, rows, signals(ANCHORS, 7), utility=-rows[:, 1])
    assert advise(table).learning is None
    assert "worth it" not in describe_advice(advise(table))
    before = spread(1.0)
    write_learning(LearningRecord(400, losses(before, 2 * before), losses(before, 0.5 * before)), tmp_path)
    (sentence,) = measure_learning(table).sentences()
    advice, selection = advise(table), select_rows(table, keep="20%")
    assert sentence in describe_advice(advice)
    assert sentence in describe_selection(selection, tmp_path)
    assert advice.facts()["learning"] == selection.summary()["learning"]
    assert advice.facts()["learning"]["verdict"] == "not worth it"


def test_a_broken_record_is_named(tmp_path):
    (tmp_path / LEARNING).write_text('{"rows": 3}')
    with pytest.raises(RunError, match="is broken"):
        read_learning_record(tmp_path)


def texts(count: int, answer: str, start: int = 0) -> list[Sample]:
    return [
        Sample(f"s{row}", row, (Turn("user", (f"What is {row} plus 3?",)), Turn("assistant", (answer,))))
        for row in range(start, start + count)
    ]


@pytest.fixture(scope="module")
def begun(tiny_checkpoint, tmp_path_factory):
    """A small model that has begun to give the anchors' answer."""
    folder = tmp_path_factory.mktemp("begun")
    proxy = load_proxy(tiny_checkpoint, ScopeOptions("all"))
    training = FinetuneOptions(steps=8, batch_size=8, learning_rate=1e-2, schedule="constant")
    return warm_up(proxy, texts(32, TAUGHT, 500), WarmupOptions(1.0, training), folder / "warm").folder / "model"


@pytest.mark.parametrize(("answer", "verdict"), [(TAUGHT, "worth it"), (OTHER, "not worth it")])
def test_a_warm_up_tells_a_pool_that_teaches_the_anchors_from_one_that_does_not(begun, tmp_path, answer, verdict):
    anchors = texts(24, TAUGHT, 900)
    training = FinetuneOptions(steps=8, batch_size=16, learning_rate=3e-3)
    start = load_proxy(begun, ScopeOptions("all"))
    warm_up(start, texts(100, answer), WarmupOptions(1.0, training), tmp_path / "warm", anchors=anchors)
    record = read_learning_record(tmp_path / "warm")
    assert told_of(record, tmp_path).verdict == verdict
    for place, model in ((1, begun), (2, tmp_path / "warm" / "model")):  # by another route: method loss
        proxy = load_proxy(model)
        expected = [-row.score for row in Loss().prepare(Setting(proxy))(anchors)]
        assert record.anchors[place] == pytest.approx(expected, rel=1e-5)  # float32, other batches


def told_of(record: LearningRecord, folder: Path):
    write_learning(record, folder)
    return measure_learning(table_of(folder, mixture(0.5)[0], signals(ANCHORS, 7)))


def test_measuring_changes_no_weight_and_leaves_accepted_anchors_out(tiny_checkpoint, tmp_path):
    training, rows = FinetuneOptions(steps=3, batch_size=2, learning_rate=1e-3), texts(6, TAUGHT)
    anchors = [*texts(3, OTHER, 50), replace(texts(1, OTHER, 60)[0], fields={ACCEPTED: "pool.jsonl"})]
    weights = []
    for name, given in (("plain", []), ("measured", anchors)):
        proxy = load_proxy(tiny_checkpoint, ScopeOptions("last", last_layers=1))
        warm_up(proxy, rows, WarmupOptions(1.0, training), tmp_path / name, anchors=given)
        weights.append(proxy.model.state_dict())
    assert all(torch.equal(*pair) for pair in zip(*(each.values() for each in weights), strict=True))
    record = read_learning_record(tmp_path / "measured")
    assert (len(record.anchors.before), len(record.own.before), record.rows) == (3, 6, 6)
    assert read_learning_record(tmp_path / "plain") is None


def test_the_commands_carry_what_was_measured_from_the_warm_up_to_the_scores(tiny_checkpoint, tmp_path, capsys):
    pool, anchors = write_pool(tmp_path / "pool", 12), write_pool(tmp_path / "anchors", 20, start=50)
    common = ["--anchors", str(anchors), "--device", "cpu"]
    warm, run = str(tmp_path / "warm"), str(tmp_path / "run")
    asked = ["--proxy", str(tiny_checkpoint), "--share", "1", "--steps", "1", "--batch-size", "2"]
    assert main(["warmup", str(pool), *common, *asked, "--out", warm]) == 0
    assert main(["score", str(pool), *common, "--proxy", warm, "--set", "corrupted=0", "--out", run]) == 0
    assert read_learning_record(tmp_path / "run") == read_learning_record(tmp_path / "warm")
    capsys.readouterr()
    assert main(["advise", run, "--json"]) == 0
    learning = json.loads(capsys.readouterr().out)["learning"]
    assert (learning["anchors"], learning["rows"], learning["verdict"]) == (20, 12, "cannot tell")
