"""Holds the names that a foreign checkpoint may use and the inert values that stand for them.

Objects of a project's classes become ``PlaceholderObject`` values, which have attributes and no methods of their class;
tensors become ``TensorRef`` values, which have the position of their numbers. Any name outside the tables is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from trainer.weights.foreign.numpy_values import NumpyArray, NumpyType, new_numpy_type, numpy_scalar
from trainer.weights.foreign.pickle_interpreter import PickleError, check_key

DTYPES: dict[str, torch.dtype] = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_PLACEHOLDER_PACKAGES = ("models", "utils", "yolov5.models", "yolov5.utils", "torch.nn")
"""Packages whose classes become placeholders: YOLOv5's own two, the same two as installed by pip, and torch's."""

_PATH_MODULES = ("pathlib", "pathlib._local")
_PATH_NAMES = ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
_STORAGE_KEY = re.compile(r"[0-9]{1,24}")
_MAX_DIMENSIONS = 8


class RefusedNameError(PickleError):
    """A name outside the tables. ``name`` is the dotted name, cut to a length that fits a message."""

    def __init__(self, name: str) -> None:
        self.name = name[:120]
        super().__init__(f"the name {self.name!r}")


@dataclass(frozen=True)
class Symbol:
    """A global name that was found in the tables."""

    path: str


class PlaceholderObject:
    """An object of a class that is not loaded: the dotted name of the class and the object's attributes."""

    __slots__ = ("path", "state")

    def __init__(self, path: str) -> None:
        self.path = path
        self.state: dict[str, Any] = {}

    def entries(self, attribute: str) -> dict[str, Any]:
        """Returns the dictionary in an attribute, {} if the attribute is missing or no dictionary."""
        value = self.state.get(attribute)
        return value if isinstance(value, dict) else {}


@dataclass(frozen=True)
class StorageRef:
    """A run of numbers of one type that lies outside the pickle."""

    key: str
    dtype: torch.dtype
    numel: int


@dataclass(frozen=True)
class TensorRef:
    """A view of a storage. Offset and strides count elements."""

    storage: StorageRef
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def numel(self) -> int:
        count = 1
        for side in self.size:
            count *= side
        return count


class CheckpointVocabulary:
    """The meaning of names, calls and references in checkpoints of YOLOv5 and of this project."""

    def __init__(self) -> None:
        self.class_names: set[str] = set()
        """Dotted names of the classes that placeholders were made for."""

    def symbol(self, module: str, name: str) -> Symbol:
        module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)
        path = f"{module}.{name}"
        if not (path in _CALLS or path in _VALUES or _is_path(path) or _is_placeholder(path)):
            raise RefusedNameError(path)
        return Symbol(path)

    def call(self, function: Any, arguments: tuple[Any, ...]) -> Any:
        if not isinstance(function, Symbol):
            raise PickleError(f"a call of a {type(function).__name__}")
        if function.path in _CALLS:
            return _CALLS[function.path](*arguments)
        if _is_path(function.path):
            return "/".join(part for part in arguments if type(part) is str).replace("//", "/")
        if _is_placeholder(function.path):
            self.class_names.add(function.path)
            return PlaceholderObject(function.path)
        raise PickleError(f"a call of {function.path}")

    def set_state(self, target: Any, state: Any) -> int:
        if isinstance(target, PlaceholderObject):
            parts = state if type(state) is tuple else (state,)  # (attributes, slots)
            for part in parts:
                if part is not None and type(part) is not dict:
                    raise PickleError(f"attributes in a {type(part).__name__}")
                target.state.update({str(key): value for key, value in (part or {}).items()})
            return sum(len(part or {}) for part in parts)
        if isinstance(target, NumpyType):
            target.set_order(state[1])
            return 1
        if isinstance(target, NumpyArray):
            return target.set_state(state)
        if type(target) is dict:  # torch puts versions on the dictionary of a module's state
            return 0
        raise PickleError(f"attributes for a {type(target).__name__}")

    def reference(self, identity: Any) -> Any:
        """Turns (\"storage\", type, key, location, numel[, view]) into a StorageRef; the location is ignored.

        Before torch 1.6, (\"module\", class, file, source text) stood for a class; such a tuple becomes the class.
        """
        if type(identity) is tuple and len(identity) == 4 and identity[0] == "module":
            if not isinstance(identity[1], Symbol):
                raise PickleError("a class that is no name")
            return identity[1]
        if type(identity) is not tuple or len(identity) not in (5, 6) or identity[0] != "storage":
            raise PickleError("a reference to something other than a tensor's storage")
        _, kind, key, _, numel = identity[:5]
        if len(identity) == 6 and identity[5] is not None:
            raise PickleError("a storage that is a view, as torch wrote before 0.4")
        name = kind.path.removeprefix("torch.") if isinstance(kind, Symbol) else ""
        if name not in DTYPES:
            raise PickleError(f"a storage of unknown type {name!r}")
        if type(key) is not str or not _STORAGE_KEY.fullmatch(key):
            raise PickleError("a storage whose key is no number")
        return StorageRef(key, DTYPES[name], _count(numel))


def _is_placeholder(path: str) -> bool:
    return any(path.startswith(package + ".") for package in _PLACEHOLDER_PACKAGES)


def _is_path(path: str) -> bool:
    module, _, name = path.rpartition(".")
    return module in _PATH_MODULES and name in _PATH_NAMES


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**48:
        raise PickleError("a size that is not a usable number")
    return value


def _counts(values: Any) -> tuple[int, ...]:
    if type(values) not in (tuple, list) or len(values) > _MAX_DIMENSIONS:
        raise PickleError("a shape that is no short list of numbers")
    return tuple(_count(value) for value in values)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> TensorRef:
    """Makes a tensor from its storage; the flag for gradients and the hooks are ignored."""
    if not isinstance(storage, StorageRef):
        raise PickleError("a tensor without a storage")
    tensor = TensorRef(storage, _count(offset), _counts(size), _counts(stride))
    if len(tensor.size) != len(tensor.stride):
        raise PickleError("a tensor with another number of strides than sides")
    last = tensor.offset + sum((side - 1) * step for side, step in zip(tensor.size, tensor.stride, strict=True))
    # A view of more elements than the storage has repeats elements, and its copy would be larger than the file.
    if tensor.numel and (last >= storage.numel or tensor.numel > storage.numel):
        raise PickleError("a tensor larger than its storage")
    return tensor


def _parameter(tensor: Any, *_: Any) -> TensorRef:
    if not isinstance(tensor, TensorRef):
        raise PickleError("a parameter that is no tensor")
    return tensor


def _tensor_from_type(function: Any, kind: Any, arguments: Any, _: Any) -> TensorRef:
    """Makes a tensor with Python attributes, which are dropped."""
    if not isinstance(function, Symbol) or function.path not in _TENSOR_CALLS or type(arguments) is not tuple:
        raise PickleError("a tensor made in an unknown way")
    return _TENSOR_CALLS[function.path](*arguments)


def _encode(text: Any, encoding: Any) -> bytes:
    """Returns the bytes that protocol 2 writes as text in Latin-1."""
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise PickleError("bytes in an unknown encoding")
    return text.encode("latin-1", "replace")


def _mapping(*arguments: Any) -> dict[Any, Any]:
    """Returns what dict() or OrderedDict() is for no argument or for pairs."""
    return {check_key(key): value for key, value in (arguments[0] if arguments else ())}


def _items(*arguments: Any) -> set[Any]:
    source = arguments[0] if arguments else ()
    if type(source) not in (list, tuple, set, frozenset):
        raise PickleError("a set that is made from something other than a list")
    return {check_key(item) for item in source}


def _device(*arguments: Any) -> str:
    return ":".join(str(part) for part in arguments if type(part) in (str, int))


_TENSOR_CALLS: dict[str, Callable[..., TensorRef]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
}
_CALLS: dict[str, Callable[..., Any]] = {
    **_TENSOR_CALLS,
    "torch._tensor._rebuild_from_type_v2": _tensor_from_type,
    "torch.Size": lambda values=(): _counts(values),
    "torch.device": _device,
    "collections.OrderedDict": _mapping,
    "collections.defaultdict": lambda *_: {},
    "builtins.dict": _mapping,
    "builtins.set": _items,
    "builtins.frozenset": lambda *arguments: frozenset(_items(*arguments)),
    "_codecs.encode": _encode,
    "builtins.bytes": lambda *_: b"",  # how protocol 2 writes empty bytes
    "argparse.Namespace": lambda *_: PlaceholderObject("argparse.Namespace"),
    "copyreg._reconstructor": lambda kind, *_: PlaceholderObject(kind.path if isinstance(kind, Symbol) else "object"),
    "numpy.dtype": new_numpy_type,
    **{f"numpy.{core}.multiarray.scalar": numpy_scalar for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray._reconstruct": lambda *_: NumpyArray() for core in ("core", "_core")},
}
_VALUES = frozenset(
    [f"torch.{name}" for name in DTYPES]
    + [str(dtype) for dtype in DTYPES.values()]
    + ["torch.Tensor", "numpy.ndarray", "builtins.object", "builtins.list", "builtins.int", "builtins.float"]
)
"""Names that are values, never called: the type of a storage, a class or a default."""
