"""A text stream that never fails its writer, whatever has become of the stream behind it."""

from __future__ import annotations

from typing import IO, TextIO, cast

__all__ = ["LastingStream", "writes_to"]


class LastingStream:
    """Writes to `stream` for as long as that takes anything.

    A process may have no stderr at all (pythonw), have it closed, lose its reader (`2>&1 | head`), or have one whose
    encoding lacks most characters (Windows code pages). None of that may end a compile: what cannot be encoded is
    spelled with backslashes, and once a write has failed for another reason, nothing more is written.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self.stream = stream

    @property
    def encoding(self) -> str:
        return getattr(self.stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        try:
            self._write(text)
        except UnicodeEncodeError:
            self._write(text.encode(self.encoding, "backslashreplace").decode(self.encoding))
        return len(text)

    def flush(self) -> None:
        stream = self.stream
        if stream is not None:
            try:
                stream.flush()
            except (OSError, ValueError):
                self.stream = None

    def isatty(self) -> bool:
        try:
            return self.stream is not None and self.stream.isatty()
        except (OSError, ValueError):  # it is closed
            return False

    def fileno(self) -> int:
        """Raises `OSError` where there is none, as streams do."""
        if self.stream is None:
            raise OSError("there is no stream")
        return self.stream.fileno()

    def as_text_io(self) -> TextIO:
        """Itself, for those who ask for more of a stream than they use."""
        return cast("TextIO", self)

    def _write(self, text: str) -> None:
        stream = self.stream
        if stream is None:
            return
        try:
            stream.write(text)
        except UnicodeEncodeError:
            raise
        except (OSError, ValueError):
            self.stream = None


def writes_to(stream: object, file: IO[str]) -> bool:
    """Whether `file` is this stream, or a `LastingStream` in front of it."""
    return stream is not None and stream is (file.stream if isinstance(file, LastingStream) else file)
