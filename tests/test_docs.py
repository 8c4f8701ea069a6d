"""What the documentation names is there, and what is there is documented."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from onesteptrain.cli import COMMANDS, build_app
from onesteptrain.cli.options import RARE
from onesteptrain.methods import installed, method_class

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


OURS = [name for name, entry in installed().items() if entry.value.startswith("onesteptrain.")]


@pytest.mark.parametrize("name", OURS)
def test_every_method_has_a_page_that_names_every_option(name):
    page = (ROOT / "docs" / "methods" / f"{name}.md").read_text(encoding="utf-8")
    for option in dataclasses.fields(method_class(name)):
        flag = f"--set {option.name}" if option.name in RARE else f"--{option.name.replace('_', '-')}"
        assert flag in page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_local_links_lead_somewhere(page):
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)  # code holds no links
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_ost_command_that_a_page_shows_exists(page):
    shown = re.findall(r"^(?:\$ )?ost ([a-z]+)", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert [name for name in shown if name not in COMMANDS] == []


def test_the_page_of_commands_has_a_section_with_an_example_for_each_that_can_be_parsed():
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## (\w+)$(.*?)(?=^## |\Z)", page, flags=re.MULTILINE | re.DOTALL))
    assert list(sections) == list(COMMANDS)
    for name, text in sections.items():
        examples = re.findall(r"^ost (.+)$", text, flags=re.MULTILINE)
        assert examples
        for tokens in map(shlex.split, examples):
            command, bound, _ = build_app(tokens).parse_args(tokens)
            assert command(*bound.args, **bound.kwargs).__class__.__name__ == name.capitalize()


def test_the_readme_names_make_targets_that_exist():
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    shown = re.findall(r"^make ([a-z]+)", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert shown
    assert set(shown) <= set(targets)


EXPERIMENTS = [page for part in ("benchmarks", "experiments") for page in sorted((ROOT / part).rglob("*.md"))]


@pytest.mark.parametrize("page", [*PAGES, *EXPERIMENTS], ids=lambda page: str(page.relative_to(ROOT)))
def test_every_script_that_a_page_runs_exists_and_has_the_options_it_is_given(page):
    shown = re.findall(r"python ((?:benchmarks|experiments)/\S+\.py)([^`\n#]*)", page.read_text(encoding="utf-8"))
    assert [script for script, _ in shown if not (ROOT / script).is_file()] == []
    for script, given in shown:
        shared = (ROOT / "experiments" / "worlds_common").glob("*.py")  # options of the pretrainings
        texts = [file.read_text(encoding="utf-8") for file in (*(ROOT / script).parent.glob("*.py"), *shared)]
        options = re.findall(r"--[a-z][a-z-]*", given)
        assert [option for option in options if not any(f'"{option}"' in text for text in texts)] == []


def test_the_tables_of_the_page_on_speed_say_what_was_measured():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        tables = importlib.import_module("tables")
    finally:
        sys.path.pop(0)
    page = tables.PAGE.read_text(encoding="utf-8")
    assert set(re.findall(r"^<!-- (\w+) -->$", page, flags=re.MULTILINE)) == {*tables.TABLES, "end"}
    assert tables.written(page, tables.Records()) == page


def test_every_figure_on_speed_names_a_command_that_exists():
    records = json.loads((ROOT / "benchmarks" / "results.json").read_text(encoding="utf-8"))
    for one in records:
        assert {"benchmark", "subject", "unit", "command"} <= one.keys()
        script = re.match(r"python (benchmarks/\S+\.py)", one["command"])
        assert script, one["command"]
        assert (ROOT / script[1]).is_file()
