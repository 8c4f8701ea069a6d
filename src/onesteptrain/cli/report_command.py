"""`ost report`."""

from __future__ import annotations

from pathlib import Path

from onesteptrain.cli.output import say
from onesteptrain.reporting import ReportOptions, write_report
from onesteptrain.storage.score_table import read_scores


def report(
    run: Path, *, out: Path = Path("report.html"), examples: int = 12, overwrite: bool = False, json: bool = False
) -> None:
    """Write an HTML page about a scored pool.

    Args:
        run: Run directory of `ost score`.
        out: The page.
        examples: Rows to show from each end of the ranking; 0 writes the page without the pool file.
        overwrite: Replace an existing page.
        json: Print the result as JSON.
    """
    page = write_report(read_scores(run), out, options=ReportOptions(examples), overwrite=overwrite)
    size = page.stat().st_size
    say(f"report: {page} ({size / 1e6:.1f} MB)", {"report": str(page), "bytes": size}, as_json=json)
