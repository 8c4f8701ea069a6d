"""Files that are broken or made to harm end in one line."""

from __future__ import annotations

import json
import shutil

import datasets
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from onesteptrain.data.pool import open_pool
from onesteptrain.errors import ConfigError, ModelError, OneStepError
from onesteptrain.proxy import load_proxy
from onesteptrain.storage.plain_yaml import parse_yaml
from tests.commands import done, refusal
from tests.pool_files import qa, write_jsonl

LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (LAUGHS, "spells out more than"),
        ("a: &a [*a]", "in itself"),
        ("[" * 60 + "]" * 60, "nested more than"),
        ("[" * 100_000, "nested more than"),
        ("a: 1\nb: 2\na: 3", "the key 'a' twice"),
        ("a:\n  b: 1\n  b: 1", "the key 'b' twice"),
        ("a: [", "is no YAML"),
        ("!!python/object/apply:os.system [ls]", "is no YAML"),
        ("2024-99-99", "is no YAML"),
    ],
)
def test_yaml_that_is_not_plain_is_refused_in_a_line(text, words, tmp_path):
    with pytest.raises(ConfigError, match=words) as refused:
        parse_yaml(text, "job.yaml")
    assert "\n" not in str(refused.value)
    (tmp_path / "job.yaml").write_text(text)
    assert words in refusal("run", tmp_path / "job.yaml")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text("ab: -#*&'\"", max_size=5),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text("abc", max_size=3), inside, max_size=3),
    max_leaves=10,
)


@given(value=VALUES)
def test_plain_yaml_is_read_as_the_library_reads_it(value):
    text = yaml.safe_dump(value)
    assert parse_yaml(text, "here") == value == yaml.safe_load(text)


def test_aliases_and_merges_of_a_usual_size_are_read():
    text = "base: &base {a: 1, b: 2}\nthis: {<<: *base, b: 3}\n"
    assert parse_yaml(text, "here") == yaml.safe_load(text)


@pytest.fixture
def run(tmp_path):
    pool = write_jsonl(tmp_path / "pool.jsonl", [qa(f"Question {i}?") for i in range(4)])
    arguments = ["score", pool, "--method", "random", "--out", tmp_path / "run"]
    done(*arguments)
    return arguments


@pytest.mark.parametrize("name", ["config.yaml", "provenance.json"])
@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"\xff\xfe", b"[" * 100_000, b"5"])
def test_a_broken_record_is_refused_in_a_line(run, name, content):
    (run[-1] / name).write_bytes(content)
    assert name in refusal(*run)


def test_no_changed_byte_of_a_dataset_folder_ends_in_a_foreign_error(tmp_path):
    rows = [qa(f"Question {i}?", id=f"u{i}") for i in range(3)]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "pool")
    (shard,) = (tmp_path / "pool").glob("*.arrow")
    content = shard.read_bytes()
    for place in range(0, len(content), 13):
        changed = bytearray(content)
        changed[place] ^= 0xFF
        shard.unlink()  # another file: the old one may still be mapped
        shard.write_bytes(changed)
        try:
            list(open_pool(tmp_path / "pool"))
        except OneStepError as error:
            assert "\n" not in str(error)  # noqa: PT017 - most changes are no error


def test_weights_that_run_code_are_refused_in_a_line_without_a_way_around(tiny_checkpoint, tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "touched"), "w"))

    copy = shutil.copytree(tiny_checkpoint, tmp_path / "copy")
    (copy / "model.safetensors").unlink()
    torch.save({"weight": Evil()}, copy / "pytorch_model.bin")
    with pytest.raises(ModelError) as refused:
        load_proxy(copy)
    assert not (tmp_path / "touched").exists()
    assert "\n" not in str(refused.value)
    assert "weights_only" not in str(refused.value)
    assert json.dumps(str(copy))[1:-1] in str(refused.value)
