"""What is said of progress."""

from __future__ import annotations

import itertools

from onesteptrain.jobs import progress as progressing


def test_work_in_stages_is_timed_stage_by_stage(monkeypatch, capsys):
    clock = itertools.count(0.0, 10.0)
    monkeypatch.setattr(progressing.time, "monotonic", lambda: next(clock))
    with progressing.progress_bar("scoring") as progress:
        for done, total in [(16, 120), (56, 120), (120, 120), (1, 1), (20, 60), (60, 60), (30, 60)]:
            progress(done, total)
    lines = capsys.readouterr().err.splitlines()
    assert lines[1] == "scoring: 56/120 (2.0 rows/s, 32 s left)"  # 40 rows in 20 s: the clock is read twice a report
    assert lines[3:5] == ["scoring: 1/1", "scoring: 20/60"]  # a stage begins: there is no rate yet
    assert lines[5] == "scoring: 60/60 (2.0 rows/s)"
    assert lines[6] == "scoring: 30/60"
