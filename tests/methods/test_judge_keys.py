"""The judge's endpoint: keys in its URL, or that it echoes, are shown nowhere; replies of every shape are read."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from onesteptrain.data.pool import Sample, Turn
from onesteptrain.errors import ConfigError, ScoreError
from onesteptrain.methods import Setting
from onesteptrain.methods.judge import Judge
from onesteptrain.storage.secrets import keys_of, without_keys
from tests.commands import ost

KEYS = ["sk-in-the-header", "user-name", "pass-word/1", "in-the-query", "to-ken+2"]
QUESTION = Sample("one", 0, (Turn("user", ("Six?",)), Turn("assistant", ("The answer is 6.",))))


@contextmanager
def endpoint(status, content):
    """A server that answers with a content, made of the request's path and headers; with its URL, which holds keys."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            seen.append((self.path, self.headers["Authorization"]))
            said = content(f"{self.path} {self.headers['Authorization']} {' '.join(KEYS)}")
            message = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": said}}
            body = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [message]}
            answer = json.dumps(body if status == 200 else {"error": {"message": str(said)}}).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            """Keep the test's output clean."""

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    host = f"127.0.0.1:{httpd.server_address[1]}"
    try:
        yield f"http://user-name:pass-word%2F1@{host}/v1?api_key=in-the-query&token=to-ken%2B2&version=7", seen
    finally:
        httpd.shutdown()
        httpd.server_close()


def judged(url, folder, **options):
    judge = Judge(model="m", endpoint=url, mode="agreement", retries=0, replies=folder / "r.sqlite", **options)
    return judge.prepare(Setting())([QUESTION])[0]


def shown_keys(text):
    return [key for key in [*KEYS, "pass-word%2F1", "to-ken%2B2"] if key in text]


CONTENTS = [
    [{"type": "text", "text": "The answer "}, {"type": "text", "text": "is 6."}],
    [{"type": "thinking", "thinking": "The answer is 5."}, {"type": "text", "text": "The answer is 6."}],
    ["The answer is ", "6."],
    {"type": "text", "text": "The answer is 6."},
    "<think>The answer is 5.</think>The answer is 6.",
]


@pytest.mark.parametrize("content", CONTENTS)
def test_a_reply_of_parts_is_read_like_one_of_text(content, tmp_path):
    with endpoint(200, lambda echo: content) as (url, seen):
        assert judged(url, tmp_path).score == 1.0
    assert [path for path, _ in seen] == ["/v1/chat/completions?api_key=in-the-query&token=to-ken%2B2&version=7"]


def test_a_reply_without_an_answer_is_quoted_by_its_last_line(tmp_path):
    with endpoint(200, lambda echo: "I see a picture.\nI cannot \x1b[31mtell.") as (url, _):
        reason = judged(url, tmp_path).reason
    assert reason.endswith("; its last line: 'I cannot \\\\x1b[31mtell.'")
    with endpoint(200, lambda echo: None) as (url, _):
        assert judged(url, tmp_path, temperature=0.5).reason.endswith("; it was empty")


@pytest.mark.parametrize("status", [200, 400, 401, 404, 500])
def test_keys_that_a_server_echoes_reach_no_reason_no_error_and_no_file(status, tmp_path, monkeypatch):
    monkeypatch.setenv("TEST_KEY", "sk-in-the-header")
    with endpoint(status, lambda echo: f"no answer {echo}") as (url, _):
        if status == 200:
            said = judged(url, tmp_path, api_key_env="TEST_KEY").reason
        else:
            with pytest.raises((ConfigError, ScoreError)) as caught:
                judged(url, tmp_path, api_key_env="TEST_KEY")
            said = str(caught.value)
    assert "***" in said
    files = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()).decode("utf-8", "replace")
    assert shown_keys(said + files) == []


@pytest.mark.parametrize("status", [200, 401])
def test_a_run_keeps_no_key_of_its_endpoint_in_a_file_or_on_the_terminal(status, tmp_path, monkeypatch):
    monkeypatch.setenv("TEST_KEY", "sk-in-the-header")
    pool = tmp_path / "pool.jsonl"
    turns = [{"role": turn.role, "content": turn.text} for turn in QUESTION.turns]
    pool.write_text(json.dumps({"messages": turns}) + "\n", encoding="utf-8")
    with endpoint(status, lambda echo: f"The answer is 6. {echo}") as (url, _):
        options = {"--method": "judge", "--model": "m", "--endpoint": url, "--mode": "agreement", "--retries": 0}
        options |= {"--replies": tmp_path / "r.sqlite", "--api-key-env": "TEST_KEY", "--out": tmp_path / "run"}
        arguments = ["score", pool, *(str(part) for pair in options.items() for part in pair)]
        monkeypatch.setattr("sys.argv", ["ost", *map(str, arguments)])
        done = ost(*arguments)
    files = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()).decode("utf-8", "replace")
    assert shown_keys(done.out + done.err + files) == []
    assert (tmp_path / "run" / "scores.parquet").exists() == (status == 200)


def test_other_parts_of_a_url_and_of_a_text_stay():
    url = "https://me:pw12@host.example:8000/v1?api-key=abcd&model=x&X-Amz-Signature=9#token=efgh"
    assert without_keys(url) == "https://***@host.example:8000/v1?api-key=***&model=x&X-Amz-Signature=***#token=***"
    assert set(keys_of(url)) == {"me", "pw12", "abcd", "9"}
    for text in ("http://localhost:8000/v1", "a@b.c, key=7", "50% of ?keys", "/home/me/pool.json"):
        assert without_keys(text) == text
