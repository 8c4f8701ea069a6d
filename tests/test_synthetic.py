"""What all synthetic data promise of their files, whatever the pictures show."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest

from onesteptrain.data.pool import Sample, open_pool
from onesteptrain.errors import ConfigError, RunError
from onesteptrain.synthetic import MixedOptions, SyntheticOptions, charts, make_synthetic
from onesteptrain.synthetic.charts import ChartProblem
from onesteptrain.synthetic.digits import DigitProblem
from tests.synthetic_data import ROWS, synthetic


class Kind(NamedTuple):
    """One kind of data."""

    name: str
    noise_kinds: tuple[str, ...]
    two_kinds: tuple[str, str]

    def make(self, folder, **options):
        return make_synthetic(self.name, OPTIONS[self.name](**options), folder)


OPTIONS = {"digits": SyntheticOptions, "charts": SyntheticOptions, "mixed": MixedOptions}


class Made(NamedTuple):
    """Data as read back from its files."""

    pool: list
    heldout: list
    benchmark: list
    truth: list


PROBLEMS = {"digits": DigitProblem, "charts": ChartProblem, "mixed": DigitProblem}
ONE_SOURCE = {
    "digits": Kind("digits", PROBLEMS["digits"].noise_kinds, ("slip", "cut_off")),
    "charts": Kind("charts", PROBLEMS["charts"].noise_kinds, ("invented", "looping")),
}
KINDS = ONE_SOURCE | {"mixed": Kind("mixed", (), ())}


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return KINDS[request.param]


@pytest.fixture(scope="module", params=ONE_SOURCE)
def one_source(request):
    return ONE_SOURCE[request.param]


@pytest.fixture(scope="module")
def folder(kind):
    return synthetic(kind.name)


@pytest.fixture(scope="module")
def made(folder):
    parts = [
        [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        for name in ("pool", "heldout", "benchmark")
    ]
    return Made(*parts, pq.read_table(folder / "truth.parquet").to_pylist())


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def lines(files):
    return b"".join(files[f"{name}.jsonl"] for name in ("pool", "heldout", "benchmark")).splitlines()


def test_the_benchmark_holds_no_answer_in_its_messages(made):
    assert all([turn["role"] for turn in row["messages"]] == ["user"] for row in made.benchmark)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_as_many_rows_are_noisy_as_asked(one_source, tmp_path, share):
    options = {"pool_rows": 90, "heldout_rows": 1, "benchmark_rows": 1, "noise_share": share}
    truth = pq.read_table(one_source.make(tmp_path / "data", **options).truth).to_pylist()
    assert sum(not fact["clean"] for fact in truth) == round(90 * share)


def test_all_kinds_of_noise_come_equally_often(one_source):
    truth = pq.read_table(synthetic(one_source.name) / "truth.parquet").to_pylist()
    counts = [sum(fact["kind"] == noise for fact in truth) for noise in one_source.noise_kinds]
    assert max(counts) - min(counts) <= 1
    assert sum(counts) == ROWS[one_source.name] / 2


def test_only_the_kinds_that_are_asked_for_come(one_source, tmp_path):
    options = {"pool_rows": 60, "heldout_rows": 1, "benchmark_rows": 1, "noise_kinds": one_source.two_kinds}
    truth = pq.read_table(one_source.make(tmp_path / "data", **options).truth).to_pylist()
    assert {fact["kind"] for fact in truth} == {"clean", *one_source.two_kinds}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(kind, tmp_path):
    small = {"pool_rows": 60, "heldout_rows": 10, "benchmark_rows": 10}
    folders = [tmp_path / name for name in ("first", "again", "other")]
    for folder, seed in zip(folders, (7, 7, 8), strict=True):
        kind.make(folder, **small, seed=seed)
    first, again, other = (contents(folder) for folder in folders)
    assert first == again
    assert len(first) == 5 + sum(
        len(json.loads(line)["images"]) for line in lines(first)
    )  # three files of rows, truth, what we made
    assert not {name for name in first if name.endswith(".png")} & set(other)


def test_neither_ids_nor_order_nor_columns_tell_which_rows_are_noisy(kind, made):
    assert all(re.fullmatch(r"[0-9a-f]{12}", row["id"]) for row in made.pool)
    source = ("source",) if kind.name == "mixed" else ()
    assert {tuple(row) for row in made.pool} == {("id", "messages", "images", "skill", "level", *source)}
    pictures = {row["id"]: [] if row.get("source") == "text" else [f"images/{row['id']}.png"] for row in made.pool}
    assert all(row["images"] == pictures[row["id"]] for row in made.pool)
    clean = np.array([fact["clean"] for fact in made.truth])
    order = np.arange(len(clean))
    first_byte = np.array([int(row["id"][:8], 16) for row in made.pool])
    for clue in (order, first_byte, first_byte % 97):
        # without a leak the correlation has a standard deviation of 1 / sqrt(rows)
        assert abs(np.corrcoef(clue, clean)[0, 1]) < 5 / np.sqrt(len(clean))


def test_the_truth_names_the_rows_of_the_pool_in_its_order(kind, made):
    assert [fact["uid"] for fact in made.truth] == [row["id"] for row in made.pool]
    assert [fact["row"] for fact in made.truth] == list(range(ROWS[kind.name]))
    assert all(fact["clean"] == (fact["kind"] == "clean") for fact in made.truth)


@pytest.mark.parametrize("name", ["pool", "heldout"])
def test_the_package_reads_its_own_data(folder, name):
    samples = list(open_pool(folder / f"{name}.jsonl"))
    assert all(isinstance(sample, Sample) for sample in samples)
    assert all(len(sample.images) == (sample.fields.get("source") != "text") for sample in samples)
    assert {"skill", "level"} <= set(samples[0].fields)


def test_an_existing_folder_is_refused(kind, folder):
    before = contents(folder)
    with pytest.raises(RunError, match="exists"):
        kind.make(folder)
    assert contents(folder) == before


def test_a_larger_pool_leaves_heldout_rows_and_benchmark_as_they_are(kind, tmp_path):
    small, large = (
        kind.make(tmp_path / str(rows), pool_rows=rows, heldout_rows=5, benchmark_rows=5) for rows in (10, 40)
    )
    assert small.benchmark.read_bytes() == large.benchmark.read_bytes()
    assert small.heldout.read_bytes() == large.heldout.read_bytes()


@pytest.mark.parametrize(
    "wrong",
    [
        {"pool_rows": 0},
        {"heldout_rows": 0},
        {"benchmark_rows": 0},
        {"noise_share": 1.2},
        {"noise_share": -0.1},
        {"duplicate_share": 1.0},
        {"noise_kinds": ()},
        {"noise_kinds": ("of another kind of data",)},
    ],
)
def test_options_that_make_no_data_are_refused(one_source, tmp_path, wrong):
    with pytest.raises(ConfigError):
        one_source.make(tmp_path / "data", **wrong)
    assert not any(tmp_path.iterdir())


def test_data_leave_nothing_beside_their_folder(folder):
    assert list(folder.parent.iterdir()) == [folder]


def test_data_that_break_off_do_not_appear(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(PROBLEMS[kind.name], "picture", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        kind.make(tmp_path / "data", pool_rows=9, heldout_rows=1, benchmark_rows=1)
    assert not any(tmp_path.iterdir())


def test_making_data_imports_neither_torch_nor_a_display(kind, tmp_path):
    code = (
        "import sys; from pathlib import Path; from onesteptrain.synthetic import *; "
        f"make_synthetic({kind.name!r}, {OPTIONS[kind.name].__name__}(20, 5, 5), Path({str(tmp_path / 'data')!r})); "
        "sys.exit('torch' in sys.modules or 'matplotlib.pyplot' in sys.modules)"
    )
    source = str(Path(charts.__file__).parents[2])
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": source})
