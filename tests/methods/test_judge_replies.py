"""The store of replies: nothing that was paid for is lost or asked for again."""

import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from onesteptrain.errors import ConfigError
from onesteptrain.methods.judge.replies import Replies, Reply, default_path, request_key

REPLY = Reply("It is 8.\n\x00 é 多", finished=False, prompt_tokens=3, completion_tokens=None, seconds=0.1 + 0.2)
REQUEST = {
    "model": "m",
    "messages": [{"role": "user", "content": [{"type": "text", "text": "What?"}]}],
    "max_completion_tokens": 8,
    "temperature": 0.5,
    "seed": 1,
}


def test_a_reply_comes_back_as_it_was_from_a_store_that_is_opened_again(tmp_path):
    with Replies(tmp_path / "deep" / "replies.sqlite") as store:
        assert store.get("a") is None
        store.keep("a", "m", REPLY)
    with Replies(tmp_path / "deep" / "replies.sqlite") as store:
        assert store.get("a") == REPLY


def test_the_first_reply_stays_so_that_scores_do(tmp_path):
    with Replies(tmp_path / "replies.sqlite") as store:
        store.keep("a", "m", REPLY)
        assert store.keep("a", "m", REPLY._replace(text="other")) == REPLY


def test_a_reply_is_on_disk_as_soon_as_it_is_kept(tmp_path):
    path = tmp_path / "replies.sqlite"
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from onesteptrain.methods.judge.replies import Replies, Reply\n"
        "Replies(Path(sys.argv[1])).keep('a', 'm', Reply('kept', True, 1, 2, 3.0))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == -9
    with Replies(path) as store:
        assert store.get("a") == Reply("kept", True, 1, 2, 3.0)


def test_several_writers_lose_nothing(tmp_path):
    path = tmp_path / "replies.sqlite"
    Replies(path).close()

    def write(writer):
        with Replies(path) as store:
            for number in range(25):
                store.keep(f"{writer}-{number}", "m", REPLY)

    writers = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    with sqlite3.connect(path) as database:
        assert database.execute("SELECT count(*) FROM replies").fetchone() == (100,)


@pytest.mark.parametrize(
    "change",
    [
        {"model": "n"},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "What!"}]}]},
        {"max_completion_tokens": 9},
        {"temperature": 0.6},
        {"seed": 2},
    ],
)
def test_the_key_depends_on_everything_that_is_asked(change):
    assert request_key(REQUEST | change) != request_key(REQUEST)


def test_the_key_does_not_depend_on_the_order_of_the_fields():
    assert request_key(dict(reversed(REQUEST.items()))) == request_key(REQUEST)


def test_a_file_that_is_no_store_is_refused_and_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("not a database, but a text that is longer than a header " * 20)
    before = (tmp_path / "notes.txt").read_bytes()
    with pytest.raises(ConfigError, match=r"notes\.txt cannot be opened .* --replies"):
        Replies(tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_bytes() == before
    with pytest.raises(ConfigError, match="--replies"):
        Replies(tmp_path / "notes.txt" / "replies.sqlite")


def test_the_default_is_in_the_cache_folder_of_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_path() == tmp_path / "onesteptrain" / "judge_replies.sqlite"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # the XDG specification: to be ignored
    assert default_path().parent == Path.home() / ".cache" / "onesteptrain"
