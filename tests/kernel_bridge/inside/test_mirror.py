"""The mirror of a transcript: what stands in its file, at each moment."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from kernel_bridge.inside.mirror import Mirror
from kernel_bridge.process.shared_files import SharedFiles


def add(mirror: Mirror, data: bytes) -> None:
    if mirror.write is not None:
        try:
            mirror.write(data)
        except ValueError:
            mirror.spill(data)


@given(
    st.lists(
        st.lists(st.tuples(st.text(min_size=1, max_size=9), st.sampled_from([1, 7, 3_000])), max_size=9), max_size=4
    ),
    st.integers(1, 100_000),
)
def test_the_file_has_the_first_bytes_of_each_text_from_its_first_write_on(
    cells: list[list[tuple[str, int]]], limit: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        files = SharedFiles(Path(folder))
        try:
            mirror = Mirror(os.path.join(folder, "transcript"), limit)
            for pieces in cells:
                mirror.clear()
                assert in_file(folder) == b""
                text = b""
                for piece, times in pieces:
                    data = (piece * times).encode()
                    add(mirror, data)
                    text += data
                    assert in_file(folder) == text[:limit]
            last = in_file(folder)
            assert files.take_transcript(200_000) == last
            assert files.take_transcript(200_000) == b""
        finally:
            files.close()


def in_file(folder: str) -> bytes:
    return Path(folder, "transcript").read_bytes().partition(b"\xff")[0]


def test_without_its_file_there_is_no_mirror(tmp_path: Path) -> None:
    mirror = Mirror(str(tmp_path / "none" / "at all"), 1000)
    mirror.clear()
    assert mirror.write is None
    mirror.spill(b"more")


def test_a_file_that_goes_away_costs_what_comes_later(tmp_path: Path) -> None:
    path = tmp_path / "transcript"
    path.touch()
    mirror = Mirror(str(path), 10**6)
    mirror.clear()
    add(mirror, b"x" * 10)
    path.unlink()
    add(mirror, b"y" * 10**6)
    assert mirror.write is None
    mirror.clear()
    add(mirror, b"again")
    assert not path.exists()
