"""The one door: from what people have to a subset, in a few lines, with the numbers that the commands give."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import onesteptrain as ost
from onesteptrain.errors import ConfigError, PoolError, RunError
from tests.building import write_pool
from tests.commands import ROWS, done, scored, world

OPTIONS = ost.OneStep(reference_folds=2)


@functools.cache
def scores() -> ost.ScoreTable:
    return ost.score(world().pool, anchors=world().anchors, proxy=world().proxy, options=OPTIONS)


@functools.cache
def proxy() -> ost.Proxy:
    return ost.load_proxy(world().proxy)


def rows() -> list[dict]:
    lines = [json.loads(line) for line in world().pool.read_text().splitlines()]
    return [row | {"images": [str(world().pool.parent / path) for path in row["images"]]} for row in lines]


def given(kind: str) -> object:
    """The pool as somebody may have it."""
    if kind == "path":
        return world().pool
    if kind == "frame":
        return pytest.importorskip("pandas").DataFrame(rows())
    return __import__("datasets").Dataset.from_list(rows()) if kind == "dataset" else rows()


@pytest.mark.parametrize("kind", ["path", "dataset", "frame", "list"])
def test_five_lines_lead_from_a_pool_to_a_subset(tmp_path, kind):
    pool = ost.open_pool(given(kind))
    table = ost.score(pool, anchors=world().anchors, proxy=proxy(), options=OPTIONS)
    subset = ost.select(table, keep="50%", options=ost.SelectOptions(prefer="top"))
    written = subset.write(tmp_path / "subset.jsonl")

    expected = scores().numbers("score")
    np.testing.assert_array_equal(table.numbers("score"), expected)
    assert (len(pool), len(table), len(subset)) == (ROWS, ROWS, ROWS // 2)
    assert subset.rows.tolist() == sorted(np.argsort(-expected, kind="stable")[: ROWS // 2].tolist())
    uids = [pool[row].uid for row in subset.rows.tolist()]
    assert [row.uid for row in ost.open_pool(written, image_root=world().pool.parent)] == uids
    assert subset.to_dataset()["id"] == uids
    assert table.to_pandas()["score"].tolist() == expected.tolist()
    for shown in (pool, table, subset):
        assert "<table" in shown._repr_html_()


def test_a_function_and_the_command_give_the_same_scores_and_the_same_record(tmp_path):
    options = ost.ScoringOptions(shard_rows=5)
    table = ost.score(world().pool, anchors=world().anchors, proxy=world().proxy, out=tmp_path / "run", scoring=options)
    assert table.path.read_bytes() == (scored() / "scores.parquet").read_bytes()
    assert (tmp_path / "run" / "config.yaml").read_bytes() == (scored() / "config.yaml").read_bytes()
    assert ost.read_scores(tmp_path / "run").names == table.names
    done("select", scored(), "--keep", "50%", "--out", tmp_path / "by-command.jsonl")
    ost.select(tmp_path / "run", keep="50%").write(tmp_path / "by-function.jsonl")
    assert (tmp_path / "by-function.jsonl").read_bytes() == (tmp_path / "by-command.jsonl").read_bytes()


def test_anchors_may_be_a_path_a_pool_samples_or_rows():
    for anchors in (
        str(world().anchors),
        ost.open_pool(world().anchors),
        list(ost.open_pool(world().anchors)),
        [
            row | {"images": [str(world().anchors.parent / path) for path in row["images"]]}
            for row in map(json.loads, world().anchors.read_text().splitlines())
        ],
    ):
        table = ost.score(world().pool, anchors=anchors, proxy=proxy(), options=OPTIONS)
        np.testing.assert_array_equal(table.numbers("score"), scores().numbers("score"))


def test_options_of_a_method_may_be_plain_values():
    table = ost.score(world().pool, method="random", options={}, seed=3)
    assert table.numbers("score").tolist() == ost.score(rows(), method="random", seed=3).numbers("score").tolist()
    with pytest.raises(ConfigError, match="there is no method 'nonsense'"):
        ost.score(world().pool, method="nonsense")


def test_weights_in_memory_are_a_part_of_the_request(tmp_path):
    ost.score(world().pool, anchors=world().anchors, proxy=proxy(), options=OPTIONS, out=tmp_path)
    other = ost.load_proxy(world().proxy)
    next(iter(other.parameters.values())).data.add_(1e-3)
    with pytest.raises(RunError, match="content of proxy"):
        ost.score(world().pool, anchors=world().anchors, proxy=other, options=OPTIONS, out=tmp_path)


def test_what_came_from_memory_is_asked_for_again(tmp_path):
    ost.score(rows(), method="random", out=tmp_path)
    chosen = ost.select(tmp_path, keep="50%")
    with pytest.raises(PoolError, match="came from memory"):
        chosen.write(tmp_path / "subset.jsonl")
    assert len(ost.select(tmp_path, keep="50%", pool=rows()).to_pandas()) == ROWS // 2
    anchors = write_pool(tmp_path / "anchors", 20, start=300)
    table = ost.score(world().pool, anchors=anchors, proxy=proxy(), options={"store_tokens": True})
    with pytest.raises(ConfigError, match="the proxy came from memory; give proxy"):
        ost.explain(table)
    assert len(ost.explain(table, proxy=world().proxy).uids) == ROWS


def test_anchors_a_warm_up_and_an_audit_are_functions_too(tmp_path):
    heldout = write_pool(tmp_path / "heldout", 8, start=200)
    anchors = ost.draw_anchors(heldout, pool=world().pool, count=4, by=["group"])
    assert {row.fields["group"] for row in anchors} == {"a", "b"}
    training = ost.WarmupOptions(share=0.5, finetune=ost.FinetuneOptions(steps=1, batch_size=2))
    warm = ost.warm_up(world().pool, proxy=world().proxy, out=tmp_path / "warm", options=training)
    adam = ost.OneStep(optimizer="adam", reference_folds=0)
    assert len(ost.score(world().pool, anchors=anchors, proxy=warm.folder, options=adam)) == ROWS
    asked = ost.AuditOptions(rows=8, step_sizes=(1e-3,))
    result = ost.audit(world().pool, anchors=anchors, proxy=warm.folder, options=asked, out=tmp_path / "audit.json")
    assert json.loads((tmp_path / "audit.json").read_text())["rows"] == result.rows == 8


def test_progress_is_told_in_scripts_too(capsys):
    ost.score(world().pool, method="random")
    assert f"scoring: {ROWS}/{ROWS}" in capsys.readouterr().err


def test_the_door_is_light_and_complete():
    code = (
        "import sys, onesteptrain as ost; assert set(ost.__all__) <= set(dir(ost));"
        "ost.open_pool, ost.select, ost.read_scores, ost.score; print('torch' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "False"
    for name in ost.__all__:
        assert getattr(ost, name).__name__ == name
        assert getattr(ost, name).__doc__
    with pytest.raises(AttributeError, match="has no attribute 'scores'"):
        _ = ost.scores


def test_the_page_of_the_door_names_all_that_it_offers():
    page = (Path(__file__).parents[1] / "docs" / "python.md").read_text()
    assert [name for name in ost.__all__ if f"`{name}" not in page] == []
