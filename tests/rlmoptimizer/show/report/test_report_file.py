"""The report as a file: whole or not there at all, with nothing of val and test in it, and under a strict policy."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from stored_optimization import AFTER, BEFORE, add_run, finish, setup_of, write_small
from stored_runs import result

from rlmoptimizer.errors import InvalidSetup
from rlmoptimizer.records import StepTrace
from rlmoptimizer.show.report.document import read_document, read_examples
from rlmoptimizer.show.report.json_values import json_bytes
from rlmoptimizer.show.report.page import live_page_html, report_html, write_report
from rlmoptimizer.store.run_store import RunStore
from rlmoptimizer.store.store_reader import StoreReader

SECRET_ID = "91827364509"  # the ids of val are whole numbers
HOSTILE = "</script><script>alert(1)</script><!-- \u202e \x1b[31m ]]> {{ 7 * 7 }}"


def parts_of(page: str) -> dict[str, Any]:
    """The data in a page, by their ids."""
    found = re.findall(r'<script type="application/json\+gzip\+base64" id="([^"]+)">([^<]*)</script>', page)
    return {name: json.loads(gzip.decompress(base64.b64decode(text))) for name, text in found}


def test_the_file_holds_the_document_and_all_examples_in_chunks(tmp_path: Path) -> None:
    rows = [result(str(i), float(i % 3 == 0), inputs={"question": f"{HOSTILE} {i}"}) for i in range(120)]
    with RunStore.create_in(tmp_path) as store:
        store.record_setup(setup_of(120, 0))
        add_run(store, "train", rows, BEFORE, baseline=True)
        add_run(store, "train", [replace(row, score=1.0) for row in rows], AFTER)
        finish(store)
    path = tmp_path / "report.html"
    path.write_text("an earlier one")
    with StoreReader.open_in(tmp_path) as reading:
        write_report(reading, path)
        page = path.read_text(encoding="utf-8")
        parts = parts_of(page)
        assert {**parts["document"], "now": 0} == {**json.loads(json_bytes(read_document(reading))), "now": 0}
        chunks = [parts[f"examples-{number}"] for number in range(3)]
        assert chunks[2] == json.loads(json_bytes(read_examples(reading, 2)))
        assert [len(chunk) for chunk in chunks] == [50, 50, 20]
        assert parts_of(report_html(reading)).keys() == parts.keys()
    assert HOSTILE in chunks[0][0]["inputs"]["question"]
    assert "alert(1)" not in page
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [one.name for one in tmp_path.iterdir() if not one.name.startswith("runs-")] == ["report.html"]


def test_the_policy_allows_the_scripts_and_styles_of_the_page_and_nothing_else(tmp_path: Path) -> None:
    write_small(tmp_path).close()
    with StoreReader.open_in(tmp_path) as reading:
        report = report_html(reading)
    for page, connects in ((report, ""), (live_page_html(), "; connect-src 'self'")):
        policy = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)[0].replace("&#39;", "'")
        digests = [
            base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
            for kind in ("script", "style")
            for text in re.findall(rf"<{kind}>(.*?)</{kind}>", page, re.DOTALL)
        ]
        assert policy == (
            f"default-src 'none'; script-src 'sha256-{digests[0]}'; style-src 'sha256-{digests[1]}'; img-src data:; "
            f"base-uri 'none'; form-action 'none'{connects}"
        )
        assert len(digests) == 2
        assert not re.search(r"<[a-z]+[^>]*\s(on[a-z]+|style|src)=", page.split("<style>")[0])
    assert parts_of(live_page_html()) == {}


def test_nothing_of_val_and_test_is_in_the_file(tmp_path: Path) -> None:
    secret = "quokka"
    fields: dict[str, Any] = {name: {secret: [secret]} for name in ("inputs", "expected", "predicted")}
    fields |= {"source_example_id": secret, "error": secret, "feedback": secret, "objectives": {secret: 1.0}}
    fields |= {"steps": (StepTrace(0, secret, secret, {secret: secret}, {}, error=secret),)}
    rows = [
        result(f"{SECRET_ID}1", 0.5, **fields, error_kind="program"),
        result(f"{SECRET_ID}2", 0.0, **fields, error_kind=secret),
        result(f"{SECRET_ID}3", 0.0, **fields, error_kind="timeout"),
        result(f"{SECRET_ID}4", 0.0, **fields, error_kind="metric"),
    ]
    with RunStore.create_in(tmp_path) as store:
        store.record_setup(setup_of(2, 4, 4))
        add_run(store, "train", [1.0, 0.0], BEFORE, baseline=True)
        add_run(store, "val", rows, BEFORE, baseline=True)
        add_run(store, "val", rows, AFTER)
        add_run(store, "test", rows, BEFORE, baseline=True)
        for ended in (False, True):
            if ended:
                add_run(store, "test", rows, AFTER)
                finish(store)
            with StoreReader.open_in(tmp_path) as reading:
                page = report_html(reading)
            written = page + json.dumps(parts_of(page), ensure_ascii=False)
            assert '"val"' in written
            assert secret not in written
            assert SECRET_ID not in written


def test_a_place_that_cannot_hold_it_is_told_and_nothing_is_left_there(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    write_small(tmp_path / "runs").close()
    with StoreReader.open_in(tmp_path / "runs") as reading:
        before = reading.path.read_bytes()
        with pytest.raises(InvalidSetup, match="is the run store itself"):
            write_report(reading, reading.path)
        with pytest.raises(InvalidSetup, match=r"is a directory; name a file, such as .*report\.html"):
            write_report(reading, tmp_path)
        with pytest.raises(InvalidSetup, match=r"no report can be written to .*: No such file or directory"):
            write_report(reading, tmp_path / "missing" / "report.html")
        assert reading.path.read_bytes() == before
    RunStore.create_in(tmp_path / "runs").close()
    with StoreReader.open_in(tmp_path / "runs") as empty, pytest.raises(InvalidSetup, match="has not begun"):
        write_report(empty, tmp_path / "report.html")
    assert [one.name for one in tmp_path.iterdir()] == ["runs"]


def test_the_command_writes_it_and_says_where(tmp_path: Path, command: Any) -> None:
    write_small(tmp_path).close()
    (line,) = command("report", tmp_path, "-o", tmp_path / "made.html").lines
    assert line.startswith(str(tmp_path / "made.html"))
    assert line.endswith("MB)")
    assert "document" in parts_of((tmp_path / "made.html").read_text(encoding="utf-8"))
    assert "is a directory" in command("report", tmp_path, "-o", tmp_path).refused(1)
