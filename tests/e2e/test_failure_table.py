"""docs/failures.md names settings, defaults, metrics and tests: each of them exists, and has that default."""

import ast
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from guard.actions.escalate import Escalate
from guard.policy import policy_from_text
from guard.schema import Defaults
from server.assemble import create_metrics, second_opinions
from server.config import ServerConfig
from server.keys.file import LimitsSpec
from server.second_opinion.config import read_targets

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "failures.md"
POLICY = """
apiVersion: interlock/v1
kind: Policy
metadata: {name: p, version: "1"}
rules:
  - {id: harm, when: max(prompt.harm) > 0.5, then: {block: {}}}
"""
TARGETS = (
    "second_opinions:\n  judge: {kind: openai_judge, url: 'http://judge/v1', model: m, instructions: x}\n"
)


class Row(NamedTuple):
    failure: str
    settings: str
    client: str
    metrics: str
    tests: str


def read_rows():
    table = PAGE.read_text().split("## The table")[1].split("\n## ")[0]
    lines = [line for line in table.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[1:]]
    return [Row(*row) for row in cells if not row[0].startswith("-")]


ROWS = read_rows()


def defaults():
    """Of every setting that a row may name, as the page writes it."""
    found = {}
    for prefix, model in {
        "": ServerConfig,
        "defaults.": Defaults,
        "then.escalate.": Escalate,
        "limits.": LimitsSpec,
    }.items():
        for name, field in model.model_fields.items():
            value = field.default
            found[prefix + name] = (
                "none" if value is None else f"{value:g}" if type(value) is float else str(value)
            )
    return found


def test_the_table_has_a_row_for_each_kind_of_failure():
    assert len(ROWS) > 20
    assert len({row.failure for row in ROWS}) == len(ROWS)
    for row in ROWS:
        assert row.client, row.failure
        assert row.settings, row.failure


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.failure[:40])
def test_each_setting_exists_and_has_the_default_that_is_told(row):
    known = defaults()
    named = re.findall(r"`([\w.]+)` \(([^)]*)\)", row.settings)
    assert named or row.settings.startswith("none")
    for name, told in named:
        assert name in known
        assert told == known[name], name


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.failure[:40])
def test_each_metric_exists_with_its_labels_before_anything_has_failed(row, tmp_path):
    metrics = create_metrics("model", policy_from_text(POLICY))
    targets = tmp_path / "targets.yaml"
    targets.write_text(TARGETS)
    opinions = second_opinions(read_targets(targets, {}), metrics)
    assert opinions.names == ("judge",)
    shown = {
        (sample.name, *sample.labels.items())
        for metric in metrics.registry.collect()
        for sample in metric.samples
    }
    families = {metric.name for metric in metrics.registry.collect()}
    named = re.findall(r'`(interlock_\w+)(?:\{(\w+)="(\w+)"\})?`', row.metrics)
    assert named or row.metrics.startswith("none")
    for name, label, value in named:
        if label:
            assert any(sample[0] == name and (label, value) in sample for sample in shown), name
        else:
            assert name.removesuffix("_total") in families, name


def test_each_test_exists():
    known = {
        f"{file.stem}::{node.name}"
        for file in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    for row in ROWS:
        named = re.findall(r"`(test_\w+::\w+)`", row.tests)
        assert named, row.failure
        assert set(named) <= known, row.failure
