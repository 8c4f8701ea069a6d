"""What every built-in world promises of its files, whatever its pictures show."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest

from onesteptrain.data.pool import Sample, open_pool
from onesteptrain.errors import RunError
from onesteptrain.synthetic import charts, digits


class Kind(NamedTuple):
    """One kind of world."""

    options: Callable[..., Any]
    make: Callable[..., Any]
    noise_kinds: tuple[str, ...]
    rows: int
    two_kinds: tuple[str, str]


class Made(NamedTuple):
    """A world as read back from its files."""

    pool: list
    heldout: list
    benchmark: list
    truth: list


KINDS = {
    "digits": Kind(digits.WorldOptions, digits.make_world, digits.NOISE_KINDS, 1200, ("slip", "cut_off")),
    "charts": Kind(charts.ChartOptions, charts.make_charts, charts.NOISE_KINDS, 1400, ("invented", "looping")),
}


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return KINDS[request.param]


@pytest.fixture(scope="module")
def folder(kind, tmp_path_factory):
    folder = tmp_path_factory.mktemp("worlds") / "world"
    kind.make(kind.options(pool_rows=kind.rows, heldout_rows=120, benchmark_rows=120), folder)
    return folder


@pytest.fixture(scope="module")
def made(folder):
    parts = [
        [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        for name in ("pool", "heldout", "benchmark")
    ]
    return Made(*parts, pq.read_table(folder / "truth.parquet").to_pylist())


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_benchmark_holds_no_answer_in_its_messages(made):
    assert all([turn["role"] for turn in row["messages"]] == ["user"] for row in made.benchmark)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_as_many_rows_are_noisy_as_asked(kind, tmp_path, share):
    options = kind.options(pool_rows=90, heldout_rows=1, benchmark_rows=1, noise_share=share)
    truth = pq.read_table(kind.make(options, tmp_path / "world").truth).to_pylist()
    assert sum(not fact["clean"] for fact in truth) == round(90 * share)


def test_all_kinds_of_noise_come_equally_often(kind, made):
    counts = [sum(fact["kind"] == one for fact in made.truth) for one in kind.noise_kinds]
    assert max(counts) - min(counts) <= 1
    assert sum(counts) == kind.rows / 2


def test_only_the_kinds_that_are_asked_for_come(kind, tmp_path):
    options = kind.options(pool_rows=60, heldout_rows=1, benchmark_rows=1, noise_kinds=kind.two_kinds)
    truth = pq.read_table(kind.make(options, tmp_path / "world").truth).to_pylist()
    assert {fact["kind"] for fact in truth} == {"clean", *kind.two_kinds}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(kind, tmp_path):
    small = {"pool_rows": 60, "heldout_rows": 10, "benchmark_rows": 10}
    folders = [tmp_path / name for name in ("first", "again", "other")]
    for folder, seed in zip(folders, (7, 7, 8), strict=True):
        kind.make(kind.options(**small, seed=seed), folder)
    first, again, other = (contents(folder) for folder in folders)
    assert first == again
    assert len(first) == 80 + 4
    assert not {name for name in first if name.endswith(".png")} & set(other)


def test_neither_ids_nor_order_nor_columns_tell_which_rows_are_noisy(made):
    assert all(re.fullmatch(r"[0-9a-f]{12}", row["id"]) for row in made.pool)
    assert {tuple(row) for row in made.pool} == {("id", "messages", "images", "skill", "level")}
    assert all(row["images"] == [f"images/{row['id']}.png"] for row in made.pool)
    clean = np.array([fact["clean"] for fact in made.truth])
    order = np.arange(len(clean))
    first_byte = np.array([int(row["id"][:8], 16) for row in made.pool])
    for clue in (order, first_byte, first_byte % 97):
        # without a leak the correlation has a standard deviation of 1 / sqrt(rows)
        assert abs(np.corrcoef(clue, clean)[0, 1]) < 5 / np.sqrt(len(clean))


def test_the_truth_names_the_rows_of_the_pool_in_its_order(kind, made):
    assert [fact["uid"] for fact in made.truth] == [row["id"] for row in made.pool]
    assert [fact["row"] for fact in made.truth] == list(range(kind.rows))
    assert all(fact["clean"] == (fact["kind"] == "clean") for fact in made.truth)


@pytest.mark.parametrize("name", ["pool", "heldout"])
def test_the_package_reads_its_own_world(folder, name):
    samples = list(open_pool(folder / f"{name}.jsonl"))
    assert all(isinstance(sample, Sample) and len(sample.images) == 1 for sample in samples)
    assert {"skill", "level"} <= set(samples[0].fields)


def test_an_existing_folder_is_refused(kind, folder):
    before = contents(folder)
    with pytest.raises(RunError, match="exists"):
        kind.make(kind.options(), folder)
    assert contents(folder) == before


def test_a_larger_pool_leaves_heldout_rows_and_benchmark_as_they_are(kind, tmp_path):
    small, large = (
        kind.make(kind.options(pool_rows=rows, heldout_rows=5, benchmark_rows=5), tmp_path / str(rows))
        for rows in (10, 40)
    )
    assert small.benchmark.read_bytes() == large.benchmark.read_bytes()
    assert small.heldout.read_bytes() == large.heldout.read_bytes()
