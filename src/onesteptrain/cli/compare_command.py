"""`ost compare`."""

from __future__ import annotations

import sys
from pathlib import Path

from onesteptrain.cli.output import say
from onesteptrain.jobs.comparison import compare as run_comparison
from onesteptrain.jobs.comparison import read_comparison
from onesteptrain.reporting.comparison import comparison_table, write_comparison
from onesteptrain.reporting.figures import need_matplotlib


def compare(
    file: Path,
    *,
    out: Path | None = None,
    seeds: int | None = None,
    workers: int = 0,
    overwrite: bool = False,
    json: bool = False,
) -> None:
    """Compare methods, shares and protocols on one pool, from one YAML file; what is done already is not done again.

    Args:
        file: The YAML file, or the comparison.yaml of an earlier one; paths in it start from the working directory.
        out: Directory, in place of the file's; results.json, differences.json, table.md and two figures go there.
        seeds: Trainings of each arm, in place of the file's.
        workers: Trainings at a time; 0 is one for each processor, or one for each GPU where there are some.
        overwrite: Delete what an earlier comparison has made in the directory.
        json: Print the records as JSON.
    """
    job = read_comparison(file, out=out, seeds=seeds)
    need_matplotlib()
    done = run_comparison(
        job,
        workers=workers,
        overwrite=overwrite,
        tell=lambda text: print(text, file=sys.stderr),  # noqa: T201
    )
    written = write_comparison(done.records, done.differences, job.out)
    text = comparison_table(done.records, done.differences) + "\n\n" + "\n".join(map(str, written))
    say(text, {"results": done.records, "differences": done.differences}, as_json=json)
