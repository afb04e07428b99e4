"""The page of an optimization: a file that holds all of it and asks for nothing, and the page that a server fills."""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from rlmoptimizer.show.report.document import DocumentReader
from rlmoptimizer.show.report.json_values import json_bytes
from rlmoptimizer.show.report.page_assets import script, style, template
from rlmoptimizer.show.whole_file import write_whole
from rlmoptimizer.store.store_reader import StoreReader

__all__ = ["live_page_html", "report_html", "write_report"]

_GZIP: Final = 16 + zlib.MAX_WBITS  # what zlib calls this format
_LEVEL: Final = 6


def write_report(store: StoreReader, path: Path) -> None:
    """Write the report of an optimization to a file, which only its owner may read: it holds the examples of train.

    A file of this name is replaced once the new one is whole. Of the examples no more than 50 are in memory at once.

    Raises:
        InvalidSetup: no file can be written there, or it is the store itself; or the optimization has not begun.
        StoreCorrupt: the store cannot be read.
    """
    write_whole(_report_parts(store), path, store.path, "report", "report.html")


def report_html(store: StoreReader) -> str:
    """The report as one text, all of it in memory. Raises as `write_report` does."""
    return "".join(_report_parts(store))


def live_page_html() -> str:
    """The page without data, which asks its own server for them; it holds no secret and nothing of an optimization."""
    return "".join(_page_parts("RLMOptimizer", "", (), live=True))


def _report_parts(store: StoreReader) -> Iterator[str]:
    reader = DocumentReader(store)
    document = reader.read()
    chunks = (_packed(_list_parts(reader.each_example(chunk))) for chunk in range(reader.chunk_count))
    yield from _page_parts(document["title"], _packed([json_bytes(document)]), chunks, live=False)


def _page_parts(title: str, document: str, chunks: Iterable[str], *, live: bool) -> Iterator[str]:
    styles, scripts = style(live=live), script(live=live)
    policy = (
        f"default-src 'none'; script-src {_source(scripts)}; style-src {_source(styles)}; img-src data:; "
        f"base-uri 'none'; form-action 'none'{'; connect-src ' + repr('self') if live else ''}"
    )
    return template().generate(
        title=title,
        mode="live" if live else "report",
        csp=policy,
        style=styles,
        script=scripts,
        document=document,
        chunks=chunks,
    )


def _source(text: str) -> str:
    """What allows this text, and no other, in a Content-Security-Policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _list_parts(values: Iterable[Any]) -> Iterator[bytes]:
    """The JSON of a list, one value at a time."""
    separator = b"["
    for value in values:
        yield separator
        yield json_bytes(value)
        separator = b","
    yield b"[]" if separator == b"[" else b"]"


def _packed(parts: Iterable[bytes]) -> str:
    """Gzip, and that as base64."""
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP)
    packed = b"".join(packer.compress(part) for part in parts)
    return base64.b64encode(packed + packer.flush()).decode("ascii")
