"""A list whose items stay on the host until the agent's code touches them.

It is a `list` to Python and to the code. Items are read in pages of about a megabyte, and those that were read stay:
the same index gives the same object, and what the code changes in it stays changed. Only what would change the list
itself, such as `append` or `sort`, reads all of it; it is an ordinary list from then on.

C code that looks into a list's storage, past its methods, finds one object there that nothing can encode, until all is
read. So it fails, where it would take an empty storage for an empty list.

Checkpoints refer to functions of this module by name: to move or rename one loses what older ones hold.
"""

from __future__ import annotations

import copy
import operator
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final, SupportsIndex, cast

import msgspec

from kernel_bridge.inside.host_exceptions import NotSendable

__all__ = ["PagedList", "read_pages_with"]

_PAGE_BYTES: Final = 2**20
_GROWTH: Final = 4  # how many times as many items as the last page the next one may have

_encode = msgspec.msgpack.Encoder().encode
_Reader = Callable[[str, Any, int, int], Any]  # source, key, start, stop -> items


def _no_host(source: str, key: Any, start: int, stop: int) -> Any:
    raise RuntimeError("the rest of this list is on the host of its kernel, and cannot be read in this process")


_READ: dict[str, _Reader] = {"pages": _no_host}


def read_pages_with(read: _Reader) -> None:
    """Read the pages of all lists of this process so."""
    _READ["pages"] = read


def _on_ordinary(name: str) -> Any:
    """The list's method of this name, once it is an ordinary one."""
    method = getattr(list, name)

    def call(self: PagedList, *args: Any, **kwargs: Any) -> Any:
        self._become_ordinary()  # pyright: ignore[reportPrivateUsage]
        return method(self, *args, **kwargs)

    call.__name__, call.__doc__ = name, method.__doc__
    return call


class NotReadYet:
    """Stands in the storage of a list that is not read to its end."""


class PagedList(list[Any]):
    """Safe in threads as far as a list is: two that read the same items get the same objects.

    Args:
        source, key: what the host reads the items from.
        length: of the list on the host.
    """

    __slots__ = ("_fitting", "_items", "_key", "_length", "_lock", "_pages", "_source")

    def __init__(self, source: str, key: Any, length: int) -> None:
        super().__init__((NotReadYet(),) if length else ())
        self._source, self._key, self._length = source, key, length
        self._items: dict[int, Any] | None = {}  # by their places, those that were read; None: an ordinary list now
        self._pages: list[tuple[tuple[int, ...], int | None]] = []  # places that were read together, their hash
        self._fitting = 1  # items that the next page may have
        self._lock = threading.Lock()  # guards the storage, until it is an ordinary list's

    # -- reading -----------------------------------------------------------------------------------------------------

    def _read(self, start: int, stop: int) -> None:
        """Read what is not read yet of these places."""
        place = start
        while place < stop and (items := self._items) is not None:
            if place in items:
                place += 1
                continue
            end = place + 1
            while end < stop and end - place < self._fitting and end not in items:
                end += 1
            place += self._read_page(items, place, end)

    def _read_page(self, items: dict[int, Any], start: int, stop: int) -> int:
        """Read at least one item from `start` on. Returns how many came."""
        try:
            page = _READ["pages"](self._source, self._key, start, stop)
        except Exception as error:
            if type(error).__name__ != NotSendable.__name__:
                raise
            if stop - start > 1:
                return self._read_page(items, start, start + (stop - start) // 2)
            reason = f"{error}; the items before and after it can be read, such as those from [{start + 1}:] on"
            raise NotSendable(f"item [{start}] of the list", "one item", reason) from None
        if not isinstance(page, list) or not 0 < len(cast("list[Any]", page)) <= stop - start:
            given = f"{len(cast('list[Any]', page))} items" if isinstance(page, list) else f"a {type(page).__name__}"
            wanted = f"a list of 1 to {stop - start} items from {start} on"
            raise RuntimeError(f"the source {self._source!r} must give {wanted}, and gave {given}")
        found = cast("list[Any]", page)
        size, mark = _measured(found)
        self._pages.append((tuple(range(start, start + len(found))), mark))
        for place, item in enumerate(found, start):
            items.setdefault(place, item)  # another thread may have read it too
        if size:
            most = max(1, len(found) * _PAGE_BYTES // size)
            self._fitting = min(max(self._fitting, _GROWTH * len(found)), most)
        if len(items) == self._length:
            self._fill(items)
        return len(found)

    def _fill(self, items: dict[int, Any]) -> None:
        """Put all items into the storage, where C code looks for them."""
        with self._lock:
            if self._items is items:
                super().__setitem__(slice(None), [items[place] for place in range(self._length)])

    def _become_ordinary(self) -> None:
        """From now on the storage says what is in the list."""
        items = self._items
        if items is None:
            return
        self._read(0, self._length)
        self._fill(items)
        with self._lock:
            self._items = None
            self._pages.clear()

    def _read_around(self, items: dict[int, Any], place: int) -> None:
        """Read a page that begins with this place, or ends with it where the code seems to go backwards."""
        start, stop = place, place + 1
        if stop == self._length or stop in items:
            while start and start - 1 not in items and stop - start < self._fitting:
                start -= 1
            self._read(start, stop)
        else:
            while stop < self._length and stop not in items and stop - start < self._fitting:
                stop += 1
            self._read_page(items, start, stop)

    def __len__(self) -> int:
        return super().__len__() if self._items is None else self._length

    def __getitem__(self, index: Any) -> Any:
        items = self._items
        if items is None:
            return super().__getitem__(index)
        if isinstance(index, slice):
            places = range(self._length)[index]
            if places and abs(places.step) == 1:
                self._read(min(places[0], places[-1]), max(places[0], places[-1]) + 1)
            else:
                for place in places:
                    self._read(place, place + 1)
            return [items[place] for place in places]
        place = operator.index(index)
        if place < 0:
            place += self._length
        if not 0 <= place < self._length:
            raise IndexError("list index out of range")
        if place not in items:
            self._read_around(items, place)
        return items[place]

    def __iter__(self) -> Iterator[Any]:
        place = 0
        while place < len(self):
            yield self[place]
            place += 1

    def __reversed__(self) -> Iterator[Any]:
        for place in range(len(self) - 1, -1, -1):
            yield self[place]

    def __contains__(self, item: object) -> bool:
        return any(own is item or own == item for own in self)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, list):
            return NotImplemented
        if self is other:
            return True
        others = cast("list[Any]", other)
        return len(self) == len(others) and all(a is b or a == b for a, b in zip(self, others, strict=False))

    def __ne__(self, other: object) -> bool:
        return not self == other if isinstance(other, list) else NotImplemented

    __hash__ = None  # type: ignore[assignment] # pyright: ignore[reportAssignmentType, reportIncompatibleVariableOverride]

    def __repr__(self) -> str:
        items = self._items
        if items is None:
            return super().__repr__()
        if len(items) == self._length:
            return f"<list of {self._length:,} items, all of them read; print(list(...)) shows them>"
        return f"<list of {self._length:,} items, {len(items):,} of them read; an index, a slice or a loop reads more>"

    # -- copies ------------------------------------------------------------------------------------------------------

    def copy(self) -> list[Any]:
        """Another list of the same items, which reads the others when they are touched."""
        items = self._items
        return [*self] if items is None else self._twin(items)

    __copy__ = copy

    def __deepcopy__(self, memo: dict[int, Any]) -> list[Any]:
        items = self._items
        if items is None:
            copied: list[Any] = []
            memo[id(self)] = copied
            copied.extend(copy.deepcopy(item, memo) for item in self)
            return copied
        return self._twin(copy.deepcopy(dict(items), memo))

    def _twin(self, items: dict[int, Any]) -> PagedList:
        made = PagedList(self._source, self._key, self._length)
        made._items, made._pages, made._fitting = items, self._pages.copy(), self._fitting
        if len(items) == self._length:
            made._fill(items)
        return made

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        """As what it is read from, with those pages in which the code has changed items."""
        items = self._items
        if items is None:
            return list, (), None, super().__iter__()
        changed: dict[int, Any] = {}
        for places, mark in tuple(self._pages):
            page = {place: items[place] for place in places if place in items}
            if mark is None or _measured([*page.values()])[1] != mark:
                changed.update(page)
        return _restored, (self._source, self._key, self._length), changed, None, None, _take_changed

    # -- what reads all of it, and what makes it an ordinary list ----------------------------------------------------

    def __add__(self, other: Any) -> list[Any]:
        return [*self] + other  # noqa: RUF005 - other must be a list

    def __radd__(self, other: Any) -> list[Any]:
        return [*other, *self] if isinstance(other, list) else NotImplemented

    def __mul__(self, times: SupportsIndex) -> list[Any]:
        return [*self] * times

    __rmul__ = __mul__

    def __lt__(self, other: list[Any]) -> bool:
        return [*self] < other

    def __le__(self, other: list[Any]) -> bool:
        return [*self] <= other

    def __gt__(self, other: list[Any]) -> bool:
        return [*self] > other

    def __ge__(self, other: list[Any]) -> bool:
        return [*self] >= other

    def count(self, value: Any) -> int:
        return [*self].count(value)

    def index(self, value: Any, *bounds: SupportsIndex) -> int:
        return [*self].index(value, *bounds)

    append, extend, insert = _on_ordinary("append"), _on_ordinary("extend"), _on_ordinary("insert")
    pop, remove, clear = _on_ordinary("pop"), _on_ordinary("remove"), _on_ordinary("clear")
    reverse, sort = _on_ordinary("reverse"), _on_ordinary("sort")
    __setitem__, __delitem__ = _on_ordinary("__setitem__"), _on_ordinary("__delitem__")
    __iadd__, __imul__ = _on_ordinary("__iadd__"), _on_ordinary("__imul__")


def _measured(items: list[Any]) -> tuple[int, int | None]:
    """Bytes of items on the wire, and their hash in this process; (0, None) of what does not go there as it is."""
    try:
        data = _encode(items)
    except Exception:  # noqa: BLE001 - the code may have put anything into them
        return 0, None
    return len(data), hash(data)


def _restored(source: str, key: Any, length: int) -> PagedList:
    return PagedList(source, key, length)


def _take_changed(made: PagedList, changed: dict[int, Any]) -> None:
    items = made._items  # pyright: ignore[reportPrivateUsage]
    assert items is not None
    items.update(changed)
    made._pages.append((tuple(changed), None))  # pyright: ignore[reportPrivateUsage]
