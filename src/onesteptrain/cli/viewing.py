"""`ost view`: a scored pool in the browser of this machine."""

from __future__ import annotations

import contextlib
import importlib.util
import secrets
import socket
import tempfile
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from onesteptrain.cli.options import Command
from onesteptrain.cli.output import tell
from onesteptrain.errors import ConfigError, MissingExtraError
from onesteptrain.storage.score_table import read_scores

_NEEDED = ("duckdb", "starlette", "uvicorn")


@dataclass(frozen=True)
class View(Command):
    """Look through a scored pool in a browser: sort, filter, move the cut, mark rows; on this machine alone.

    Example: `ost view run`
    """

    run: Path
    """Run directory of `ost score` or `ost run`; marks are kept in it."""

    other: Path | None = None
    """A second run of the same pool, to see which rows are decided on otherwise."""

    _: KW_ONLY

    column: tuple[str, ...] = ()
    """Columns of the pool, such as source, to show and to count by; the pool is read for them."""

    port: int = 0
    """Port on 127.0.0.1; 0 takes a free one."""

    def __call__(self) -> None:
        """Open the tables, print the address and answer until interrupted."""
        missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
        if missing:
            raise MissingExtraError(f"ost view needs {', '.join(missing)}: pip install 'onesteptrain[view]'")
        import uvicorn

        from onesteptrain.viewing.app import make_app
        from onesteptrain.viewing.rows import open_rows

        table, token = read_scores(self.run), secrets.token_urlsafe(32)
        other = read_scores(self.other) if self.other is not None else None
        run = self.run if self.run.is_dir() else self.run.parent
        with tempfile.TemporaryDirectory(prefix="ost-view-") as folder, _listening(self.port) as listener:
            rows = open_rows(table, Path(folder), other=other, columns=self.column)
            port = listener.getsockname()[1]
            app = make_app(rows, table, run, token=token, port=port)
            address = f"http://127.0.0.1:{port}/?token={token}"
            self.say(f"open {address}", {"address": address, "rows": table.rows})
            tell("only this machine can open it; end it with Ctrl+C")
            options = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off", server_header=False)
            with contextlib.suppress(KeyboardInterrupt):  # the usual way to end it
                uvicorn.Server(options).run(sockets=[listener])


def _listening(port: int) -> socket.socket:
    """A socket on the loopback.

    Raises:
        ConfigError: the port is taken, or none.
    """
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise ConfigError(f"port {port} cannot be used ({error}); give another, or 0 for a free one") from error
    return listener
