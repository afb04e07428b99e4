"""The prompts of a program as one value: step name to text, with a digest. No dspy."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

__all__ = ["Prompts", "changed_steps"]


@dataclass(frozen=True, slots=True, eq=False)
class Prompts(Mapping[str, str]):
    """The whole prompt of every step, in the order of the steps. Immutable; equal to a dict of the same texts."""

    texts: Mapping[str, str]
    digest: str = field(init=False)  # 16 hexadecimal digits; the order of the steps counts

    def __post_init__(self) -> None:
        texts = dict(self.texts)
        data = json.dumps(texts, ensure_ascii=False).encode("utf-8", "surrogatepass")
        object.__setattr__(self, "texts", texts)
        object.__setattr__(self, "digest", hashlib.blake2b(data, digest_size=8).hexdigest())

    @classmethod
    def of(cls, prompts: Mapping[str, str]) -> Prompts:
        """`prompts` as such a value; itself if it is one."""
        return prompts if isinstance(prompts, Prompts) else cls(prompts)

    def __getitem__(self, step: str) -> str:
        return self.texts[step]

    def __iter__(self) -> Iterator[str]:
        return iter(self.texts)

    def __len__(self) -> int:
        return len(self.texts)


def changed_steps(prompts: Mapping[str, str], before: Mapping[str, str]) -> list[str]:
    """The steps whose prompts differ from those `before`, in the order of `prompts`."""
    return [step for step, text in prompts.items() if before.get(step) != text]
