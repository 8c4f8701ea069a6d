"""The pages of `ost view`: plain HTML made here, a page at a time; scripts only save clicks."""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from onesteptrain.data.pool import Pool, Sample, Unreadable
from onesteptrain.errors import OneStepError, printable
from onesteptrain.reporting.examples import thumbnail
from onesteptrain.reporting.typeset import FILTERS
from onesteptrain.selection import scored_pool
from onesteptrain.storage.score_table import ScoreTable
from onesteptrain.viewing.exporting import write_exports
from onesteptrain.viewing.guarding import Guard
from onesteptrain.viewing.marks import RIGHT, Marks, marked_beginning, measure_precision
from onesteptrain.viewing.rows import Ask, Rows

_ROWS_A_PAGE = 50
_PICTURES_A_PAGE = 24
_MOST_BODY = 65_536
_LONGEST_TEXT = 20_000
_DRAWN = 5_000
_PAGES = Path(__file__).parent / "pages"
_FILES = {"app.css": "text/css", "app.js": "text/javascript"}
_FACET = "f."


class Viewer:
    """One run that is looked at."""

    def __init__(self, rows: Rows, table: ScoreTable, run: Path) -> None:
        self._rows, self._table, self._run = rows, table, run
        self._marks = Marks(run)
        self._reading = threading.Lock()
        self._pages = Environment(
            loader=PackageLoader("onesteptrain.viewing", "pages"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._pages.filters.update({**FILTERS, "cell": _cell, "printable": printable})

    @functools.cached_property
    def _pool(self) -> Pool:
        return scored_pool(self._table)

    @functools.cached_property
    def _draws(self) -> dict[str, list[str]]:
        """Rows of each decision in random order, the same in each session."""
        return {decision: self._rows.draw(decision, _DRAWN) for decision in RIGHT}

    def routes(self) -> list[Route]:
        """What can be asked for."""
        pages: Mapping[str, Callable[[Request], Response]] = {
            "/": self.list_rows,
            "/row/{row:int}": self.show_row,
            "/cut": self.move_cut,
            "/marks": self.show_marks,
            "/draw": self.next_drawn,
        }
        posts = {"/mark": self.mark, "/export": self.export}
        files = [Route(f"/{name}", functools.partial(_file, name)) for name in _FILES]
        return [
            *(Route(path, self._handled(page), methods=["GET"]) for path, page in pages.items()),
            *(Route(path, self._posted(post), methods=["POST"]) for path, post in posts.items()),
            *files,
        ]

    def list_rows(self, request: Request) -> Response:
        """Rows as a table or as a gallery, with counts to filter by."""
        given = dict(request.query_params)
        ask = _asked(given)
        size = _PICTURES_A_PAGE if given.get("view") == "gallery" else _ROWS_A_PAGE
        count = self._rows.count(ask)
        pages = max(1, -(-count // size))
        page = min(max(1, _whole(given.get("page"), 1)), pages)
        found = self._rows.page(ask, (page - 1) * size, size)
        gallery = given.get("view") == "gallery"
        return self._show(
            "rows.html",
            given=given,
            ask=ask,
            count=count,
            page=page,
            pages=pages,
            rows=found,
            columns=self._rows.columns,
            sortable=[name for name in self._rows.columns if name.isprintable()],
            facets=self._rows.facets(ask),
            samples={row["row"]: self._sample(row["row"], 1) for row in found} if gallery else {},
            marks=self._marks.read(),
            link=functools.partial(_link, given),
        )

    def show_row(self, request: Request) -> Response:
        """One row with all that is known of it."""
        number = int(request.path_params["row"])
        row = self._rows.row(number)
        if row is None:
            return self._show("problem.html", 404, problem=f"there is no row {number}; the list has all")
        mark = self._marks.read().get(row["uid"])
        drawing = request.query_params.get("draw") == "1"
        return self._show("row.html", row=row, mark=mark, sample=self._sample(number, 8), drawing=drawing)

    def move_cut(self, request: Request) -> Response:
        """What would be kept at another cut, in all and by a column."""
        probability = self._rows.cut_column == "probability"
        low, high, usual = (0.0, 1.0, 0.5) if probability else self._rows.score_range()
        cut = min(max(_number(request.query_params.get("cut"), usual), low), high)
        by = request.query_params.get("by") or next(iter(self._rows.facet_names), "decision")
        whole, parts = self._rows.at_cut(cut, None), self._rows.at_cut(cut, by)
        facts: dict[str, Any] = {"cut": cut, "low": low, "high": high, "by": by, "whole": whole, "parts": parts}
        return self._show("cut.html", **facts, names=self._rows.facet_names, column=self._rows.cut_column)

    def show_marks(self, request: Request) -> Response:
        """The marks, and how often decisions are right by those of the draw."""
        return self._show("marks.html", **self._marked(), exported=None)

    def next_drawn(self, request: Request) -> Response:
        """The next row of the draw: of the decision of which fewer are marked."""
        marks = self._marks.read()
        begun = {name: len(marked_beginning(draw, marks)) for name, draw in self._draws.items()}
        left = [name for name, draw in self._draws.items() if begun[name] < len(draw)]
        if not left:
            return RedirectResponse("/marks", 303)
        name = min(left, key=lambda name: begun[name])
        row = self._rows.place(self._draws[name][begun[name]])
        return RedirectResponse(f"/row/{row}?draw=1", 303)

    def mark(self, given: Mapping[str, str]) -> Response:
        """Mark a row and go on."""
        row = self._rows.row(_whole(given.get("row"), -1))
        if row is None:
            return self._show("problem.html", 404, problem="there is no such row; the list has all")
        self._marks.put(row["uid"], given.get("mark", ""), given.get("note", ""))
        drawing = given.get("draw") == "1" and given.get("mark")
        return RedirectResponse("/draw" if drawing else f"/row/{row['row']}", 303)

    def export(self, given: Mapping[str, str]) -> Response:
        """Write the marks as files for other commands and programs."""
        marks = self._marks.read()
        rows = self._rows.named(list(marks))
        with self._reading:
            written = write_exports(self._run / "marked", rows, marks, self._pool)
        return self._show("marks.html", **self._marked(), exported=written)

    def _marked(self) -> dict[str, Any]:
        marks = self._marks.read()
        sizes = {name: self._rows.count(Ask(facets=(("decision", name),))) for name in RIGHT}
        told = {name: measure_precision(name, sizes[name], draw, marks) for name, draw in self._draws.items()}
        counts = {mark: sum(one.mark == mark for one in marks.values()) for mark in ("good", "bad", "unsure")}
        return {"precision": told, "counts": counts, "run": str(self._run)}

    def _sample(self, row: int, pictures: int) -> dict[str, Any]:
        """Texts and pictures of a row of the pool, or why there are none."""
        try:
            with self._reading:
                sample = self._pool[row]
        except (OneStepError, IndexError, StopIteration) as error:
            return {"problem": f"the pool cannot be read: {error}", "turns": [], "pictures": []}
        if isinstance(sample, Unreadable):
            return {"problem": sample.reason, "turns": [], "pictures": []}
        return {
            "problem": "",
            "turns": _turns(sample),
            "pictures": [thumbnail(ref) for ref in sample.images[:pictures]],
        }

    def _show(self, template: str, status: int = 200, /, **facts: Any) -> Response:
        facts = {"title": printable(self._run.name), **facts}
        return HTMLResponse(self._pages.get_template(template).render(facts), status)

    def _handled(self, page: Callable[[Request], Response]) -> Callable[[Request], Any]:
        async def handle(request: Request) -> Response:
            return await run_in_threadpool(self._tried, page, request)

        return handle

    def _posted(self, post: Callable[[Mapping[str, str]], Response]) -> Callable[[Request], Any]:
        async def handle(request: Request) -> Response:
            body = bytearray()
            async for part in request.stream():
                body += part
                if len(body) > _MOST_BODY:
                    return self._show("problem.html", 413, problem="the note is too long; shorten it")
            given = dict(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True))
            return await run_in_threadpool(self._tried, post, given)

        return handle

    def _tried(self, page: Callable[[Any], Response], given: Any) -> Response:
        try:
            return page(given)
        except OneStepError as error:
            return self._show("problem.html", 400, problem=str(error))


def make_app(rows: Rows, table: ScoreTable, run: Path, *, token: str, port: int) -> ASGIApp:
    """The app, behind its guard."""
    return Guard(Starlette(routes=Viewer(rows, table, run).routes()), token, port)


async def _file(name: str, request: Request) -> Response:
    return FileResponse(_PAGES / name, media_type=_FILES[name])


def _asked(given: Mapping[str, str]) -> Ask:
    chosen = {name.removeprefix(_FACET): value for name, value in given.items() if name.startswith(_FACET)}
    facets = tuple((name, value) for name, value in chosen.items() if value)
    return Ask(given.get("where", ""), facets, given.get("sort") or "row", given.get("falling") == "1")


def _link(given: Mapping[str, str], **changes: object) -> str:
    """The address of the same list with other values; None takes one away."""
    changes = {"page": None, **{name.replace("f__", _FACET): value for name, value in changes.items()}}
    merged = {name: value for name, value in {**given, **changes}.items() if value not in (None, "")}
    return "/?" + urlencode(merged)


def _turns(sample: Sample) -> list[tuple[str, str]]:
    return [(turn.role, printable(turn.text[:_LONGEST_TEXT])) for turn in sample.turns]


def _cell(value: object) -> str:
    if value is None:
        return ""
    text = printable(f"{value:.4g}" if isinstance(value, float) else str(value))
    return text if len(text) <= 120 else text[:120] + "…"


def _whole(text: str | None, usual: int) -> int:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 16 else usual


def _number(text: str | None, usual: float) -> float:
    try:
        value = float(text or usual)
    except ValueError:
        return usual
    return value if math.isfinite(value) else usual
