"""What notebooks show of pools, scores and selections."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from markupsafe import escape

from onesteptrain.errors import one_line, printable

_LONGEST = 120


def html_table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in HTML; all is escaped but `markupsafe.Markup`, and long texts are cut."""

    def cells(values: Iterable[object], tag: str) -> str:
        return "".join(f"<{tag}>{escape(_short(value))}</{tag}>" for value in values)

    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    head = f"<thead><tr>{cells(columns, 'th')}</tr></thead>"
    return f"<table><caption>{escape(one_line(caption))}</caption>{head}<tbody>{body}</tbody></table>"


def _short(value: object) -> object:
    if isinstance(value, float):
        return f"{value:.4g}"
    if value is None or hasattr(value, "__html__"):
        return "" if value is None else value
    text = printable(str(value))
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "..."
