"""Reads the values in a pickle without unpickling: a small interpreter of the opcodes that describe data.

Python's own unpickler imports and calls what a file names, reserves the memory that a file asks for, and crashes in C
if nesting is deep. This interpreter executes none of it: names become symbols, calls go to the vocabulary passed in,
and every step is counted. The format is that of PEP 307, PEP 3154 and the module ``pickletools``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Protocol

MAX_STEPS = 1_500_000
"""Most opcodes and copied items in a pickle; the largest YOLOv5 model with average and optimizer has a fifth of it."""

_MAX_NAME_BYTES = 512
_MAX_INTEGER_BYTES = 16
_KEY_TYPES = (str, int, float, bool, bytes, type(None))


class PickleError(ValueError):
    """A pickle that is damaged, too large, or no description of data."""


class Vocabulary(Protocol):
    """The meaning of names, calls and references in a pickle. Each method raises PickleError to refuse."""

    def symbol(self, module: str, name: str) -> Any:
        """Returns the meaning of a global name."""

    def call(self, function: Any, arguments: tuple[Any, ...]) -> Any:
        """Returns the value of a call, or of an object made from a class."""

    def set_state(self, target: Any, state: Any) -> int:
        """Sets an object's state and returns the number of items copied."""

    def reference(self, identity: Any) -> Any:
        """Returns a value for data outside the pickle, such as a tensor's storage."""


def check_key(value: Any) -> Any:
    """Returns a key that hashes in bounded time, to hashes that spread evenly. Raises PickleError for other values."""
    if type(value) not in _KEY_TYPES or (type(value) is int and abs(value) >= 2**63):
        raise PickleError(f"a key of type {type(value).__name__}")
    return value


class PickleInterpreter:
    """Reads one pickle in ``data`` from ``start``; afterwards ``position`` is the pickle's end."""

    def __init__(self, data: bytes, vocabulary: Vocabulary, start: int = 0) -> None:
        self.position = start
        self._data = data
        self._vocabulary = vocabulary
        self._steps = 0
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        """Returns the value that the pickle describes. Raises PickleError."""
        try:
            while (opcode := self._take(1)) != b".":
                action = _ACTIONS.get(opcode)
                if action is None:
                    raise PickleError(f"opcode {opcode!r}, which describes no data")
                self._count(1)
                action(self)
            return self._pop()
        except PickleError:
            raise
        except (struct.error, LookupError, TypeError, ValueError, OverflowError) as error:
            raise PickleError(f"a broken step at byte {self.position} ({type(error).__name__})") from None

    def _count(self, steps: int) -> None:
        self._steps += steps
        if self._steps > MAX_STEPS:
            raise PickleError(f"more than {MAX_STEPS:,} steps")

    def _take(self, size: int) -> bytes:
        end = self.position + size
        if end > len(self._data):
            raise PickleError("the end of the data in the middle of a value")
        taken = self._data[self.position : end]
        self.position = end
        return taken

    def _take_number(self, layout: str) -> Any:
        return struct.unpack(layout, self._take(struct.calcsize(layout)))[0]

    def _take_line(self) -> str:
        end = self._data.find(b"\n", self.position, self.position + _MAX_NAME_BYTES)
        if end < 0:
            raise PickleError("a name without an end")
        line = self._take(end - self.position).decode()
        self.position += 1
        return line

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        # Values below a mark belong to an unfinished list or dictionary.
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise PickleError("a value taken from an empty stack")
        return self._stack.pop()

    def _pop_to_mark(self) -> list[Any]:
        if not self._marks:
            raise PickleError("a missing mark")
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def _top(self, kind: type) -> Any:
        value = self._pop()
        if type(value) is not kind:
            raise PickleError(f"items for a {type(value).__name__} instead of a {kind.__name__}")
        self._push(value)
        return value

    # Structure

    def _protocol(self) -> None:
        if self._take(1)[0] > 5:
            raise PickleError("a protocol above 5")

    def _mark(self) -> None:
        self._marks.append(len(self._stack))

    def _drop(self) -> None:
        if self._marks and self._marks[-1] == len(self._stack):
            self._marks.pop()
        else:
            self._pop()

    def _duplicate(self) -> None:
        value = self._pop()
        self._stack += (value, value)

    def _store(self, slot: int) -> None:
        value = self._pop()
        self._push(value)
        self._memo[slot] = value

    def _recall(self, slot: int) -> None:
        if slot not in self._memo:
            raise PickleError(f"memo slot {slot}, which is empty")
        self._push(self._memo[slot])

    # Containers

    def _tuple(self, size: int) -> None:
        if len(self._stack) - (self._marks[-1] if self._marks else 0) < size:
            raise PickleError("a tuple of more values than there are")
        items = tuple(self._stack[-size:])
        del self._stack[-size:]
        self._push(items)

    def _append(self) -> None:
        item = self._pop()
        self._top(list).append(item)

    def _extend(self) -> None:
        items = self._pop_to_mark()
        self._top(list).extend(items)

    def _set_item(self) -> None:
        value, key = self._pop(), self._pop()
        self._top(dict)[check_key(key)] = value

    def _set_items(self) -> None:
        items = self._pop_to_mark()
        self._top(dict).update(_pairs(items))

    def _add_items(self) -> None:
        items = self._pop_to_mark()
        self._top(set).update(check_key(item) for item in items)

    def _frozen_set(self) -> None:
        self._push(frozenset(check_key(item) for item in self._pop_to_mark()))

    # Values with a length

    def _integer(self, size: int) -> None:
        if not 0 <= size <= _MAX_INTEGER_BYTES:
            raise PickleError(f"an integer of {size} bytes")
        self._push(int.from_bytes(self._take(size), "little", signed=True))

    def _text(self, size: int) -> None:
        self._push(self._take(size).decode("utf-8", "surrogatepass"))

    def _old_text(self, size: int) -> None:
        if size < 0:
            raise PickleError("a text of negative length")
        self._push(self._take(size).decode("latin-1"))

    # Names, calls and objects

    def _global_line(self) -> None:
        module, name = self._take_line(), self._take_line()
        self._push(self._vocabulary.symbol(module, name))

    def _global_stack(self) -> None:
        name, module = self._pop(), self._pop()
        if type(name) is not str or type(module) is not str or max(len(name), len(module)) > _MAX_NAME_BYTES:
            raise PickleError("a global name that is no text")
        self._push(self._vocabulary.symbol(module, name))

    def _call(self) -> None:
        arguments, function = self._pop(), self._pop()
        if type(arguments) is not tuple:
            raise PickleError(f"a call with a {type(arguments).__name__} of arguments")
        # A call may copy its arguments' items.
        self._count(sum(len(item) for item in arguments if isinstance(item, (list, tuple, dict, set, str, bytes))))
        self._push(self._vocabulary.call(function, arguments))

    def _call_with_keywords(self) -> None:
        if self._pop() != {}:
            raise PickleError("an object made with keyword arguments")
        self._call()

    def _build(self) -> None:
        state, target = self._pop(), self._pop()
        self._count(self._vocabulary.set_state(target, state))
        self._push(target)

    def _reference(self) -> None:
        self._push(self._vocabulary.reference(self._pop()))


def _pairs(items: list[Any]) -> list[tuple[Any, Any]]:
    if len(items) % 2:
        raise PickleError("a key without its value")
    return [(check_key(key), value) for key, value in zip(items[::2], items[1::2], strict=True)]


def _sized(method: Callable[[PickleInterpreter, int], None], layout: str) -> Callable[[PickleInterpreter], None]:
    """Returns the action of an opcode whose number (a length or a memo slot) follows in the given layout."""
    return lambda interpreter: method(interpreter, interpreter._take_number(layout))


_M = PickleInterpreter
_ACTIONS: dict[bytes, Callable[[PickleInterpreter], None]] = {
    b"\x80": _M._protocol,
    b"\x95": lambda m: m._take_number("<Q"),  # a frame is a hint for reading ahead
    b"(": _M._mark,
    b"0": _M._drop,
    b"1": lambda m: m._pop_to_mark().clear(),
    b"2": _M._duplicate,
    b"N": lambda m: m._push(None),
    b"\x88": lambda m: m._push(True),
    b"\x89": lambda m: m._push(False),
    b"J": lambda m: m._push(m._take_number("<i")),
    b"K": lambda m: m._push(m._take_number("<B")),
    b"M": lambda m: m._push(m._take_number("<H")),
    b"G": lambda m: m._push(m._take_number(">d")),
    b"\x8a": _sized(_M._integer, "<B"),
    b"\x8b": _sized(_M._integer, "<i"),
    b"X": _sized(_M._text, "<I"),
    b"\x8c": _sized(_M._text, "<B"),
    b"\x8d": _sized(_M._text, "<Q"),
    b"T": _sized(_M._old_text, "<i"),
    b"U": _sized(_M._old_text, "<B"),
    b"B": lambda m: m._push(m._take(m._take_number("<I"))),
    b"C": lambda m: m._push(m._take(m._take_number("<B"))),
    b"\x8e": lambda m: m._push(m._take(m._take_number("<Q"))),
    b")": lambda m: m._push(()),
    b"\x85": lambda m: m._tuple(1),
    b"\x86": lambda m: m._tuple(2),
    b"\x87": lambda m: m._tuple(3),
    b"t": lambda m: m._push(tuple(m._pop_to_mark())),
    b"]": lambda m: m._push([]),
    b"l": lambda m: m._push(m._pop_to_mark()),
    b"a": _M._append,
    b"e": _M._extend,
    b"}": lambda m: m._push({}),
    b"d": lambda m: m._push(dict(_pairs(m._pop_to_mark()))),
    b"s": _M._set_item,
    b"u": _M._set_items,
    b"\x8f": lambda m: m._push(set()),
    b"\x90": _M._add_items,
    b"\x91": _M._frozen_set,
    b"q": _sized(_M._store, "<B"),
    b"r": _sized(_M._store, "<I"),
    b"\x94": lambda m: m._store(len(m._memo)),
    b"h": _sized(_M._recall, "<B"),
    b"j": _sized(_M._recall, "<I"),
    b"c": _M._global_line,
    b"\x93": _M._global_stack,
    b"R": _M._call,
    b"\x81": _M._call,  # NEWOBJ: a class and its arguments
    b"\x92": _M._call_with_keywords,
    b"b": _M._build,
    b"Q": _M._reference,
}
