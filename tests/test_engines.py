"""Several workers give the bytes that one gives, whoever runs them and whatever befalls them."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from onesteptrain.data.pool import open_pool
from onesteptrain.errors import ConfigError, RunError, ScoreError
from onesteptrain.jobs.recipe import Recipe
from onesteptrain.jobs.scoring import ProxyOptions, _Preparation
from onesteptrain.methods import Setting
from onesteptrain.scoring.engines import rank_here
from onesteptrain.scoring.options import ScoringOptions
from onesteptrain.scoring.reuse import Kept
from onesteptrain.scoring.score import plan_work, score_pool
from onesteptrain.scoring.shards import Shards
from onesteptrain.scoring.work import score_share
from onesteptrain.storage.fingerprints import fingerprint
from onesteptrain.storage.run_directory import Run, begin_run, join_run
from tests.pool_files import qa, write_jsonl
from tests.scorers import Lengths

ROWS = 60
SIZES = {"shard_rows": 4, "chunk_rows": 3}
TABLES = ("scores.parquet", "reference.parquet")


@pytest.fixture
def pool(tmp_path):
    rows = [qa("?" * (row * 5 % 13 + 1), id=f"x{row % 50}") for row in range(ROWS)]
    return open_pool(write_jsonl(tmp_path / "pool.jsonl", rows))


def scored(pool, out: Path, scorer: Lengths, **options):
    out.mkdir(exist_ok=True)
    return score_pool(pool, scorer.prepare, Run(out), ScoringOptions(**SIZES, **options), facts=scorer.facts)


def tables(out: Path) -> list[bytes]:
    return [(out / name).read_bytes() for name in TABLES]


@pytest.fixture
def alone(pool, tmp_path):
    """What one worker gives."""
    scored(pool, tmp_path / "alone", Lengths(tmp_path / "alone.txt"))
    return tables(tmp_path / "alone")


def test_processes_share_the_work_and_give_the_same_bytes(pool, alone, tmp_path):
    scorer = Lengths(tmp_path / "diary.txt", seconds=0.02)
    result = scored(pool, tmp_path / "run", scorer, workers=2)
    assert tables(tmp_path / "run") == alone
    assert result.scored_now == ROWS
    by = dict(scorer.noted())
    assert len(by) == 2
    assert os.getpid() not in by
    assert Run(tmp_path / "run").provenance["device"] == "none"
    assert not (tmp_path / "run" / "shards.part").exists()


def test_a_killed_process_is_started_anew_and_nothing_is_lost(pool, alone, tmp_path):
    scorer = Lengths(tmp_path / "diary.txt", die_at="x7")
    scored(pool, tmp_path / "run", scorer, workers=2)
    assert tables(tmp_path / "run") == alone
    assert [what for _, what in scorer.noted()].count("died") == 1


def test_a_row_that_kills_whoever_scores_it_ends_the_run_and_keeps_the_rest(pool, alone, tmp_path):
    scorer = Lengths(tmp_path / "diary.txt", die_at="x13", lives=99)
    with pytest.raises(RunError, match=r"3 workers died one after the other \(exit code -9\)"):
        scored(pool, tmp_path / "run", scorer, workers=2)
    assert list((tmp_path / "run" / "shards.part").glob("*.parquet"))
    scored(pool, tmp_path / "run", Lengths(tmp_path / "diary.txt"))  # one worker goes on where two have stopped
    assert tables(tmp_path / "run") == alone


def test_what_a_process_raises_is_raised(pool, tmp_path):
    with pytest.raises(ScoreError, match="x9 is too much"):
        scored(pool, tmp_path / "run", Lengths(tmp_path / "diary.txt", fail_at="x9"), workers=2)


def test_a_scorer_that_lives_in_one_process_is_refused_for_several(pool, tmp_path):
    with pytest.raises(ConfigError, match="several workers need what each can load for itself"):
        score_pool(pool, lambda: None, Run(tmp_path), ScoringOptions(workers=2))


def work_of(pool, out: Path, scorer: Lengths):
    out.mkdir(exist_ok=True)
    return plan_work(pool, scorer.prepare, Run(out), ScoringOptions(**SIZES))


@pytest.mark.parametrize("workers", [1, 2, 3, 7, 40])
def test_shares_cover_all_shards_and_no_row_is_scored_twice_if_the_others_keep_pace(pool, workers, tmp_path):
    """Workers in turn, one shard each: the order that workers of one speed come to."""
    scorer = Lengths(tmp_path / "diary.txt")
    work = work_of(pool, tmp_path / "run", scorer)
    shares = [score_share(work, number, workers) for number in range(workers)]
    while shares:
        for share in list(shares):
            if next((step for step in share if step.written is not None), None) is None:
                shares.remove(share)
    assert work.shards.missing() == []
    assert [what for _, what in scorer.noted()].count("x3") == 1
    assert [what for _, what in scorer.noted() if what != "prepared"].__len__() <= ROWS + 4 * min(workers, 15)


def test_the_first_worker_does_what_the_others_have_left_from_behind(pool, tmp_path):
    scorer = Lengths(tmp_path / "diary.txt")
    work = work_of(pool, tmp_path / "run", scorer)
    written = [step.written for step in score_share(work, 0, 3) if step.written is not None]
    assert sorted(written) == list(work.shards.first_rows)
    assert written[:5] == [0, 4, 8, 12, 16]  # its third
    assert written[5] == 24  # the back half of its third of the ten that are left


def test_shards_of_other_sizes_are_scored_again(pool, tmp_path):
    shards = work_of(pool, tmp_path / "run", Lengths(tmp_path / "diary.txt")).shards
    list(score_share(work_of(pool, tmp_path / "run", Lengths(tmp_path / "diary.txt"))))
    other = Shards(shards.folder, ROWS, 8, shards.belonging)
    assert len(other.delete_damaged()) == 14
    assert other.there() == {56}  # the last four rows are a shard of either size


def test_two_writers_of_one_shard_leave_it_whole(pool, tmp_path):
    work = work_of(pool, tmp_path / "run", Lengths(tmp_path / "diary.txt"))
    one, other = (score_share(work, 0, 1) for _ in range(2))
    for _ in range(3):
        next(one), next(other)
    assert list(one)
    assert list(other)
    assert work.shards.delete_damaged() == []


RANK = """
import sys
from pathlib import Path
from tests.scorers import Lengths
from tests.test_engines import SIZES
from onesteptrain.data.pool import open_pool
from onesteptrain.scoring.engines import rank_here
from onesteptrain.scoring.options import ScoringOptions
from onesteptrain.scoring.reuse import Kept
from onesteptrain.scoring.score import plan_work, score_pool
from onesteptrain.scoring.work import score_share
from onesteptrain.storage.run_directory import begin_run, join_run

pool, out, rank = open_pool(sys.argv[1]), Path(sys.argv[2]), rank_here()
scorer = Lengths(Path(sys.argv[3]), seconds=0.02)
options, asked = ScoringOptions(**SIZES, engine="ranks"), ({"a": 1}, {})
if rank.number:
    run = join_run(out, *asked)
    list(score_share(plan_work(pool, scorer.prepare, run, options), rank.number, rank.ranks))
else:
    with begin_run(out, *asked) as run:
        score_pool(pool, scorer.prepare, run, options)
"""


@pytest.mark.parametrize("dead", [None, 1])
def test_ranks_share_the_work_and_the_first_does_that_of_a_dead_one(pool, alone, tmp_path, dead):
    """Each rank is a process of its own, as torchrun starts them."""
    command = [sys.executable, "-c", RANK, str(pool.path), str(tmp_path / "run"), str(tmp_path / "diary.txt")]
    ranks = [
        subprocess.Popen(command, env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)})
        for rank in (1, 0)
    ]
    if dead is not None:
        ranks[0].send_signal(signal.SIGKILL)
    assert ranks[1].wait(60) == 0
    assert ranks[0].wait(60) == (0 if dead is None else -9)
    assert tables(tmp_path / "run") == alone
    assert len({who for who, _ in Lengths(tmp_path / "diary.txt").noted()}) == (2 if dead is None else 1)


def test_a_rank_joins_the_run_of_its_own_request_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("onesteptrain.storage.run_directory._PATIENCE", 0.0)
    with pytest.raises(RunError, match="holds no run; start rank 0"):
        join_run(tmp_path / "run", {"seed": 1}, {})
    with begin_run(tmp_path / "run", {"seed": 1}, {}) as run:
        assert join_run(tmp_path / "run", {"seed": 1}, {}) == run
        with pytest.raises(RunError, match=r"holds seed \(1, now 2\); start rank 0 with the same options"):
            join_run(tmp_path / "run", {"seed": 2}, {})


@pytest.mark.parametrize(
    ("said", "rank"),
    [
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, (3, 8, 1, 2)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, (0, 1, 0, 1)),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}, (1, 2, 1, 1)),
    ],
)
def test_launchers_say_the_rank(said, rank, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="engine ranks is for processes that a launcher starts"):
        rank_here()
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    assert rank_here() == rank
    monkeypatch.setenv(next(iter(said)), "9")
    with pytest.raises(ConfigError, match="=9"):
        rank_here()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"workers": 0}, "workers is 0"),
        ({"address": "auto"}, "address and gpus_per_worker are for engine ray"),
        ({"engine": "ray", "gpus_per_worker": -1}, "gpus_per_worker is -1"),
        ({"engine": "ranks", "workers": 2}, "as many workers as ranks"),
    ],
)
def test_engines_refuse_options_that_they_have_not(options, reason):
    with pytest.raises(ConfigError, match=reason):
        ScoringOptions(**options)


def test_a_job_of_several_steps_is_none_for_ranks():
    with pytest.raises(ConfigError, match="does more than scoring"):
        Recipe(pool=Path("pool.json"), scoring=ScoringOptions(engine="ranks"))


def test_workers_end_when_the_process_that_started_them_is_killed(pool, tmp_path):
    code = f"""
if __name__ == "__main__":
    from pathlib import Path
    from tests.test_engines import *
    scored(open_pool({str(pool.path)!r}), Path({str(tmp_path / "run")!r}),
           Lengths(Path({str(tmp_path / "diary.txt")!r}), seconds=0.2), workers=2)
"""
    (tmp_path / "main.py").write_text(code)
    scorer = Lengths(tmp_path / "diary.txt")
    here = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    driver = subprocess.Popen([sys.executable, str(tmp_path / "main.py")], env=here)
    workers = wait_for(lambda: {who for who, what in scorer.noted() if what != "prepared"}, 2)
    driver.kill()
    driver.wait()
    assert wait_for(lambda: {who for who in workers if not Path(f"/proc/{who}").exists()}, 2) == workers


def wait_for(look, count: int):
    for _ in range(600):
        if len(found := look()) >= count:
            return found
        time.sleep(0.1)
    raise AssertionError(f"{look()} after a minute")


ON_RAY = """
import json, sys
from pathlib import Path
from tests.test_engines import *
out, diary = Path(sys.argv[2]), Path(sys.argv[3])
if __name__ == "__main__":
    pool = open_pool(sys.argv[1])
    for name, how in {"even": {"seconds": 0.02}, "dying": {"die_at": "x7"}}.items():
        scored(pool, out / name, Lengths(diary / f"{name}.txt", **how), engine="ray", workers=2)
    failing = Lengths(diary / "failing.txt", fail_at="x9")
    for refused in (lambda: scored(pool, out / "failing", failing, engine="ray", workers=2),
                    lambda: scored(pool, out / "gpus", failing, engine="ray", gpus_per_worker=1)):
        try:
            refused()
        except (ScoreError, ConfigError) as error:
            print(error)
"""


def test_ray_gives_the_same_bytes_and_survives_a_killed_worker(pool, alone, tmp_path):
    pytest.importorskip("ray")
    (tmp_path / "main.py").write_text(ON_RAY)
    (tmp_path / "runs").mkdir()
    here = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    command = [sys.executable, str(tmp_path / "main.py"), str(pool.path), str(tmp_path / "runs"), str(tmp_path)]
    done = subprocess.run(command, env=here, capture_output=True, text=True, timeout=300)
    said = ["x9 is too much", "gpus_per_worker is 1 and the Ray cluster has 0 GPUs; a worker would never start"]
    assert set(said) <= set(done.stdout.splitlines()), done.stderr[-2000:]  # Ray says there that a worker died
    assert tables(tmp_path / "runs" / "even") == tables(tmp_path / "runs" / "dying") == alone
    assert len({who for who, _ in Lengths(tmp_path / "even.txt").noted()}) == 2
    assert [what for _, what in Lengths(tmp_path / "dying.txt").noted()].count("died") == 1
    assert json.loads((tmp_path / "runs" / "even" / "provenance.json").read_text())["device"] == "none"


def test_a_proxy_that_has_changed_since_the_run_began_is_refused(tmp_path):
    class Request:
        proxy = ProxyOptions(str(tmp_path))

        def setting(self, anchors):
            return Setting()

    (tmp_path / "weights").write_text("1")
    at = _Preparation(Request(), [], Kept(tmp_path), fingerprint(tmp_path))
    assert at.facts() == {}
    (tmp_path / "weights").write_text("22")
    with pytest.raises(RunError, match="has changed since the run began"):
        dataclasses.replace(at).facts()
