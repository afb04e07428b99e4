"""The benchmark driver: what it takes from a benchmark, what it shows, when it fails. No benchmark is run."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARK = """
def run():
    return [
        {"name": "start", "ours": 400.0, "theirs": 60.0, "ratio": 6.7, "target": 8},
        {"name": "alone", "ours": 3.0, "theirs": None, "ratio": None, "target": 1, "note": "nothing to compare with"},
        {"name": "rate", "unit": "examples/s", "ours": 500.0, "theirs": 400.0, "ratio": 0.8, "target": None},
    ]
"""


@pytest.fixture
def driver(project_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The driver, with a directory of benchmarks of the test's own."""
    spec = importlib.util.spec_from_file_location("bench_run", project_root / "bench" / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "HERE", tmp_path)
    monkeypatch.setattr(module, "README", tmp_path / "README.md")
    (tmp_path / "README.md").write_text(f"# Toy\n\n{module._BEGIN}\nnothing yet\n{module._END}\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    return module


def test_rows_are_shown_and_written(
    driver: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "toy_rows.py").write_text(BENCHMARK, encoding="utf-8")
    written = tmp_path / "results" / "out.json"
    assert driver.main(["--json", str(written), "--check"]) == 0
    shown = capsys.readouterr().out
    assert "nothing to compare with" in shown
    assert "met" in shown
    report = json.loads(written.read_text(encoding="utf-8"))
    assert report["machine"]["packages"]["dspy"]
    assert [(row["name"], row["unit"], row["met"]) for row in report["benchmarks"]["toy_rows"]] == [
        ("start", "ms", True),
        ("alone", "ms", None),
        ("rate", "examples/s", None),
    ]


def test_a_missed_target_is_named(driver: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "toy_missed.py").write_text(BENCHMARK.replace("6.7", "8.1"), encoding="utf-8")
    assert driver.main(["toy_missed", "--check"]) == 0  # nobody has claimed it
    assert "missed: start" in capsys.readouterr().out


KEY = """
def run():
    return [
        {"name": "start", "ours": 400.0, "theirs": 60.0, "whose": "peer", "ratio": 6.7, "target": 8, "key": True},
        {"name": "memory", "unit": "MB", "ours": 31.0, "theirs": None, "ratio": None, "target": None, "limit": 30,
         "key": True},
        {"name": "aside", "ours": 3.0, "theirs": 1.0, "ratio": 3.0, "target": 2},
        {"name": "absent", "ours": None, "theirs": None, "ratio": None, "target": None, "key": True,
         "note": "it is not installed"},
    ]
"""


def test_the_key_rows_become_the_table_of_the_readme(
    driver: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "toy_key.py").write_text(KEY, encoding="utf-8")
    assert driver.main(["--readme"]) == 0
    table = [line for line in (tmp_path / "README.md").read_text(encoding="utf-8").splitlines() if line[:1] == "|"]
    assert table[2:] == [
        "| start | 400 ms | 60.0 ms (peer) | 6.70 | ≤ 8 | met |",
        "| memory | 31.0 MB |  |  | ≤ 30 MB | missed |",
    ]
    shown = capsys.readouterr().out
    assert "\n".join(table) in shown
    assert "absent: it is not installed" in shown


def test_a_claim_of_the_readme_that_does_not_hold_fails_the_check(
    driver: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "toy_key.py").write_text(KEY, encoding="utf-8")
    driver.main(["--readme"])
    assert driver.main(["--check"]) == 0  # the README says itself that memory is missed
    for module in ("toy_key", "toy_slower"):
        sys.modules.pop(module, None)
    (tmp_path / "toy_slower.py").write_text(KEY.replace("6.7", "8.1"), encoding="utf-8")
    assert driver.main(["toy_slower", "--check"]) == 1
    assert "claimed by README.md and not so: start" in capsys.readouterr().out


def test_a_claim_that_is_not_measured_any_more_fails_the_check(
    driver: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "toy_key.py").write_text(KEY, encoding="utf-8")
    driver.main(["--readme"])
    sys.modules.pop("toy_key", None)
    (tmp_path / "toy_key.py").write_text(KEY.replace('"start"', '"start of another kind"'), encoding="utf-8")
    assert driver.main(["--check"]) == 1
    assert "claimed by README.md and not so: start (not measured)" in capsys.readouterr().out


def test_the_table_of_the_readme_is_that_of_one_whole_run(
    driver: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "toy_key.py").write_text(KEY, encoding="utf-8")
    with pytest.raises(SystemExit):
        driver.main(["toy_key", "--readme"])
    assert "--readme takes every benchmark" in capsys.readouterr().err


def test_a_key_that_no_row_has_is_refused(driver: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "toy_misspelt.py").write_text(BENCHMARK.replace('"note"', '"notes"'), encoding="utf-8")
    with pytest.raises(ValueError, match=r"the row 'alone' has \['notes'\], which no row has"):
        driver.main(["toy_misspelt"])


def test_a_row_without_a_ratio_is_refused(driver: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "toy_lacking.py").write_text("def run(): return [{'name': 'x', 'ours': 1}]", encoding="utf-8")
    with pytest.raises(ValueError, match=r"toy_lacking.py: the row 'x' lacks \['ratio', 'target', 'theirs'\]"):
        driver.main(["toy_lacking"])


def test_an_unknown_benchmark_is_refused(driver: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        driver.main(["nothing"])
    assert "no such benchmark: ['nothing']" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "shown"), [(None, "-"), (1234.5, "1,234"), (12.34, "12.3"), (1.234, "1.23"), (0.01234, "0.0123")]
)
def test_numbers_have_three_digits_and_no_exponent(driver: ModuleType, value: float | None, shown: str) -> None:
    assert driver.number(value) == shown
