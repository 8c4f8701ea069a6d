"""The steps from files to files: what is scored, in which columns, and that another route gives the same numbers."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from onesteptrain.data.pool import open_pool
from onesteptrain.errors import AnchorError, PoolError, RunError
from onesteptrain.jobs.scoring import ScoreRequest, audit_into, locate_proxy, score_into
from onesteptrain.jobs.steps import AnchorDraw, AnchorOptions, draw_anchor_file, plain, read_anchors
from onesteptrain.methods.one_step import OneStep
from onesteptrain.scoring.audit import AuditOptions
from onesteptrain.scoring.options import ScoringOptions
from onesteptrain.storage.score_table import Record, ScoreTable
from tests.commands import ROWS, done, refusal, scored, world
from tests.pool_files import qa, write_jsonl


def table_of(run: Path) -> ScoreTable:
    return ScoreTable(run / "scores.parquet")


def test_the_score_table_of_a_model_has_the_documented_columns_and_types():
    schema = pq.read_schema(scored() / "scores.parquet")
    numbers = {
        name: pa.float64() for name in ("utility", "harm", "gain", "worst_utility", "relative", "loss", "worst_loss")
    }
    counts = {name: pa.int64() for name in ("answer_tokens", "tokens")}
    base = {"uid": pa.string(), "row": pa.int64(), "score": pa.float64(), "reason": pa.string()}
    assert {field.name: field.type for field in schema} == base | numbers | counts
    assert schema.names[:4] == list(base)


def test_the_columns_of_a_row_belong_together():
    table = table_of(scored())
    assert table.numbers("row").tolist() == list(range(ROWS))
    np.testing.assert_array_equal(table.numbers("score"), table.numbers("utility"))
    # harm and gain are the two signs of one mean: only the last digit of float64 differs
    np.testing.assert_allclose(table.numbers("harm") + table.numbers("gain"), table.numbers("utility"), atol=1e-15)
    assert (table.numbers("harm") <= 0).all()
    assert (table.numbers("gain") >= 0).all()
    assert (table.numbers("answer_tokens") < table.numbers("tokens")).all()


def converted(folder: Path, kind: str) -> Path:
    """The pool of the world in another format or container."""
    rows = [json.loads(line) for line in world().pool.read_text().splitlines()]
    if kind == "parquet":
        for row in rows:
            row["images"] = [
                {"bytes": (world().pool.parent / path).read_bytes(), "path": path} for path in row["images"]
            ]
        pq.write_table(pa.Table.from_pylist(rows), folder / "pool.parquet")
        return folder / "pool.parquet"
    names = {"user": "human", "assistant": "gpt"}
    for row in rows:
        said = row.pop("messages")
        row["conversations"] = [{"from": names[turn["role"]], "value": turn["content"]} for turn in said]
        row["conversations"][0]["value"] = said[0]["content"].replace("<image>", "<image>\n")
        row["image"] = row.pop("images")[0]
    (folder / "pool.json").write_text(json.dumps(rows))
    return folder / "pool.json"


@pytest.mark.parametrize("kind", ["llava", "parquet"])
def test_the_same_data_in_another_format_gets_the_same_scores(tmp_path, kind):
    pool = converted(tmp_path, kind)
    done(*world().scoring(tmp_path / "run", pool=pool, image_root=world().pool.parent))
    here, there = table_of(scored()).read(), table_of(tmp_path / "run").read()
    assert there.column("uid").equals(here.column("uid"))
    # float32 central differences; batches of another size only change the order of sums
    np.testing.assert_allclose(there["score"].to_numpy(), here["score"].to_numpy(), rtol=2e-2, atol=1e-6)


def test_several_groups_of_anchors_give_a_column_each_which_their_own_run_gives_too(tmp_path):
    exactly = {"dtype": "float64", "estimator": "jvp", "scope": "last", "last_layers": 1}
    done(*world().scoring(tmp_path / "run", group_by="group", **exactly))
    table = table_of(tmp_path / "run")
    lines = world().anchors.read_text().splitlines(keepends=True)
    uneven = [line for line in lines if json.loads(line)["group"] == "a"] + lines[1:2]
    shares = {"a": 3 / 4, "b": 1 / 4}
    (tmp_path / "uneven.jsonl").write_text("".join(uneven))
    done(
        *world().scoring(
            tmp_path / "uneven",
            anchors=tmp_path / "uneven.jsonl",
            anchor_image_root=world().anchors.parent,
            group_by="group",
            **exactly,
        )
    )
    for name, run in (("run", table), ("uneven", table_of(tmp_path / "uneven"))):
        weights = {"a": 0.5, "b": 0.5} if name == "run" else shares
        mean = sum(share * run.numbers(f"utility.{group}") for group, share in weights.items())
        np.testing.assert_allclose(mean, run.numbers("utility"), rtol=1e-12)
        np.testing.assert_allclose(run.numbers("harm") + run.numbers("gain"), run.numbers("utility"), rtol=1e-9)
    for group in "ab":
        alone = tmp_path / f"{group}.jsonl"
        alone.write_text("".join(line for line in lines if json.loads(line)["group"] == group))
        options = {"anchors": alone, "anchor_image_root": world().anchors.parent, **exactly}
        done(*world().scoring(tmp_path / group, **options))
        # float64 up to the float32 norms inside: the two routes do the same sums
        np.testing.assert_allclose(
            table_of(tmp_path / group).numbers("utility"), table.numbers(f"utility.{group}"), rtol=1e-6
        )
        assert "utility.a" not in table_of(tmp_path / group).names


def test_the_utility_of_each_token_adds_up_to_the_other_columns(tmp_path):
    done(*world().scoring(tmp_path / "run", estimator="jvp"), "--store-tokens")
    for row in table_of(tmp_path / "run").read().to_pylist():
        tokens = np.array(row["token_utility"])
        assert len(tokens) == row["answer_tokens"]
        # the list is kept in float32: seven digits of the largest token
        slack = 1e-6 * np.abs(tokens).max()
        assert tokens.mean() == pytest.approx(row["utility"], abs=slack)
        assert np.minimum(tokens, 0).mean() == pytest.approx(row["harm"], abs=slack)
        assert np.maximum(tokens, 0).mean() == pytest.approx(row["gain"], abs=slack)


def test_a_relative_checkpoint_is_the_same_request_from_anywhere(tmp_path, monkeypatch):
    shutil.copytree(world().proxy, tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    done(*world().scoring(tmp_path / "run", proxy="model"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = done(*world().scoring(tmp_path / "run", proxy="../model"), "--json")
    assert json.loads(again.out)["scored_now"] == 0
    done("score", "--config", tmp_path / "run" / "config.yaml", "--out", tmp_path / "again")
    assert (tmp_path / "again" / "scores.parquet").read_bytes() == (tmp_path / "run" / "scores.parquet").read_bytes()


def test_rows_of_the_held_out_data_that_cannot_be_read_are_passed_over(tmp_path):
    held = write_jsonl(tmp_path / "held.jsonl", [qa(f"question {n}", id=f"h{n}") for n in range(6)])
    held.write_text("{broken\n" + held.read_text())
    pool = open_pool(write_jsonl(tmp_path / "pool.jsonl", [qa("another")]))
    assert draw_anchor_file(open_pool(held), pool, tmp_path / "anchors.jsonl", AnchorDraw(6)) == 6
    assert [row.uid for row in open_pool(tmp_path / "anchors.jsonl")] == [f"h{n}" for n in range(6)]


def test_drawn_anchors_that_stand_in_the_pool_are_refused_and_not_written(tmp_path):
    held = open_pool(write_jsonl(tmp_path / "held.jsonl", [qa(f"question {n}", id=f"h{n}") for n in range(3)]))
    pool = open_pool(write_jsonl(tmp_path / "pool.jsonl", [qa("x"), qa("Question  1", "other")]))
    with pytest.raises(AnchorError, match="row 1 is anchor 'h1'"):
        draw_anchor_file(held, pool, tmp_path / "anchors.jsonl", AnchorDraw(3))
    assert not (tmp_path / "anchors.jsonl").exists()


def test_an_anchor_that_cannot_be_read_is_refused_with_its_line(tmp_path):
    path = write_jsonl(tmp_path / "anchors.jsonl", [qa("1"), qa("2", "")])
    with pytest.raises(AnchorError, match=r"anchors\.jsonl:2: .* empty answer"):
        read_anchors(path, None, AnchorOptions())


def test_an_anchor_file_without_samples_is_refused(tmp_path):
    pq.write_table(pa.Table.from_pylist([qa()]).slice(0, 0), tmp_path / "anchors.parquet")
    with pytest.raises((AnchorError, PoolError), match="holds no"):
        read_anchors(tmp_path / "anchors.parquet", None, AnchorOptions())


def test_leaks_are_only_let_through_when_asked(tmp_path):
    path = write_jsonl(tmp_path / "anchors.jsonl", [qa("1"), qa("2")])
    pool = open_pool(write_jsonl(tmp_path / "pool.jsonl", [qa("0"), qa("2")]))
    with pytest.raises(AnchorError, match="1 rows are anchors too: row 1"):
        read_anchors(path, pool, AnchorOptions())
    assert len(read_anchors(path, pool, AnchorOptions(allow_leaks=True)).anchors) == 2


def test_the_folder_of_a_warm_up_is_told_from_a_checkpoint(tmp_path):
    assert locate_proxy(str(tmp_path)) == (str(tmp_path), None)
    (tmp_path / "second_moments.safetensors").touch()
    assert locate_proxy(str(tmp_path)) == (str(tmp_path / "model"), tmp_path / "second_moments.safetensors")
    assert locate_proxy("OpenGVLab/InternVL3-1B") == ("OpenGVLab/InternVL3-1B", None)


def test_plain_values_can_be_written_as_yaml_and_json(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {"a": Path("x"), "b": None, "c": (1, 2.5), "d": {"e": [Path("/y")], "f": None}, "g": float("nan")}
    expected = {"a": str(tmp_path / "x"), "c": [1, 2.5], "d": {"e": ["/y"]}, "g": None}
    assert plain(given) == expected
    assert json.loads(json.dumps(plain(given), allow_nan=False)) == expected


@pytest.mark.parametrize("make", ["mkdir", "touch"])
def test_an_audit_is_not_begun_where_it_cannot_be_written(tmp_path, make):
    out = tmp_path / "audit.json"
    getattr(out, make)()
    with pytest.raises(RunError, match="output"):
        audit_into(out, ScoreRequest(open_pool(world().pool), OneStep()), AuditOptions())


@dataclasses.dataclass(frozen=True)
class Seeded:
    """A plug-in whose option has the name of one of ours."""

    seed: int = 0
    readers: int = 0

    def prepare(self, setting):
        return lambda samples: [Record(float(self.seed)) for _ in samples]


def test_an_option_of_a_plug_in_is_not_hidden_by_ours_of_the_same_name(tmp_path):
    request = ScoreRequest(open_pool(world().pool), Seeded(1), "seeded", seed=5)
    assert set(score_into(tmp_path, request).table.numbers("score")) == {1.0}
    asked = yaml.safe_load((tmp_path / "config.yaml").read_text())["score"]
    assert asked["method"] == {"name": "seeded", "options": {"seed": 1, "readers": 0}}
    assert asked["seed"] == 5
    for other in (Seeded(2), Seeded(1, readers=3)):
        with pytest.raises(RunError, match=r"score method options (seed|readers) \("):
            score_into(tmp_path, dataclasses.replace(request, method=other))
    again = dataclasses.replace(request, scoring=ScoringOptions(readers=2, chunk_rows=7))
    assert score_into(tmp_path, again).scored_now == 0  # our own readers are no part of what comes out


def test_a_run_of_the_old_record_is_refused_with_what_to_do(tmp_path):
    shutil.copytree(scored(), tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    asked = yaml.safe_load(config.read_text())["score"]
    config.write_text(yaml.safe_dump({"score": {**asked, "method": "one_step", "format": "messages"}}))
    for command in (
        ["select", tmp_path / "run", "--keep", "20%", "--out", tmp_path / "s.jsonl"],
        ["report", tmp_path / "run"],
    ):
        assert "scored by an earlier version of ost" in refusal(*command)
    assert "score again" in refusal(*world().scoring(tmp_path / "run", shard_rows=5))
