"""Opens files of ``torch.save`` without trusting them: the zip format since torch 1.6 and the older format.

No entry is unpacked to disk, every stated size is compared with the file's size before use, and a tensor's entry is
read only when the tensor is asked for.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import torch
from torch import Tensor

from trainer.errors import WeightsError
from trainer.protocol import BEST_WEIGHTS
from trainer.weights.foreign.allowed_globals import CheckpointVocabulary, RefusedNameError, StorageRef, TensorRef
from trainer.weights.foreign.file_kinds import describe_foreign_file, describe_foreign_names, truncated_file
from trainer.weights.foreign.pickle_interpreter import PickleError, PickleInterpreter

MAX_PICKLE_BYTES = 16 * 2**20
"""Largest size of a pickle; the largest YOLOv5 file with its optimizer has about 2 MiB beside its tensors."""

_MAX_FLOAT_GROWTH = 4
"""Largest ratio of the tensors' memory to the file's size: float16 doubles, and a few storages are shared."""

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001


class _Storages(Protocol):
    """The numbers of tensors in a file."""

    def read(self, storage: StorageRef) -> bytes:
        """Reads the bytes of a storage, in the machine's order. Raises WeightsError or PickleError."""


class TorchFile:
    """An open file of ``torch.save``: content as inert values, tensors on demand."""

    def __init__(self, path: Path, content: Any, class_names: set[str], storages: _Storages, size_bytes: int) -> None:
        self.path = path
        self.content = content
        """Dictionaries, lists, plain values, PlaceholderObject and TensorRef values."""
        self.class_names = class_names
        self._storages = storages
        self._budget_bytes = _MAX_FLOAT_GROWTH * size_bytes
        self._loaded: dict[str, Tensor] = {}

    def tensor(self, reference: TensorRef) -> Tensor:
        """Reads a tensor to the CPU, with memory of its own, floating types as float32. Raises WeightsError."""
        floating = reference.storage.dtype.is_floating_point
        dtype = torch.float32 if floating else reference.storage.dtype
        self._budget_bytes -= reference.numel * dtype.itemsize
        if self._budget_bytes < 0:
            raise damaged(self.path, "its tensors take more memory than the file could hold")
        if not reference.numel:
            return torch.empty(reference.size, dtype=dtype)
        view = self._storage(reference.storage).as_strided(reference.size, reference.stride, reference.offset)
        return view.to(dtype, copy=True, memory_format=torch.contiguous_format)

    def _storage(self, storage: StorageRef) -> Tensor:
        if storage.key not in self._loaded:
            size_bytes = storage.numel * storage.dtype.itemsize
            try:
                data = self._storages.read(storage)
            except PickleError as error:
                raise damaged(self.path, str(error)) from None
            if len(data) != size_bytes:
                raise damaged(self.path, f"a tensor of {size_bytes:,} bytes for which it has {len(data):,}")
            self._loaded[storage.key] = torch.frombuffer(bytearray(data), dtype=storage.dtype)
        loaded = self._loaded[storage.key]
        if loaded.dtype != storage.dtype or loaded.numel() != storage.numel:
            raise damaged(self.path, "two tensors that disagree about their storage")
        return loaded


@contextmanager
def open_torch_file(path: Path) -> Iterator[TorchFile]:
    """Opens a ``.pt`` file without executing any of its content. Raises WeightsError for an unusable file."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise WeightsError(
            f"the weights file {path} cannot be read",
            seen=error.strerror or str(error),
            expected="a file that this user may read",
            next_command=f"ls -l {path}",
        ) from None
    with file:
        size_bytes = file.seek(0, io.SEEK_END)
        file.seek(0)
        head = file.read(512)
        file.seek(0)
        if head.startswith(b"PK"):
            yield _open_zip(path, file, size_bytes)
        elif head.startswith(b"\x80\x02\x8a\x0a"):
            yield _open_legacy(path, file, size_bytes)
        else:
            raise describe_foreign_file(path, head, size_bytes)


def damaged(path: Path, why: str) -> WeightsError:
    """Returns the error for a file that was a checkpoint once, or pretends to be one."""
    return WeightsError(
        f"{path.name} is damaged or not a checkpoint",
        seen=f"{path}: {why}",
        expected="a file as torch.save wrote it",
        next_command="get or copy it again",
    )


def _read_pickle(path: Path, data: bytes) -> tuple[Any, set[str]]:
    vocabulary = CheckpointVocabulary()
    try:
        return PickleInterpreter(data, vocabulary).run(), vocabulary.class_names
    except RefusedNameError as error:
        raise describe_foreign_names(path, error.name, data) from None
    except PickleError as error:
        raise damaged(path, str(error)) from None


# The zip format


class _ZipStorages:
    def __init__(self, path: Path, archive: zipfile.ZipFile, prefix: str) -> None:
        self._path = path
        self._archive = archive
        self._prefix = prefix

    def read(self, storage: StorageRef) -> bytes:
        return _read_entry(self._path, self._archive, f"{self._prefix}/data/{storage.key}")


def _open_zip(path: Path, file: BinaryIO, size_bytes: int) -> TorchFile:
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, ValueError, OSError, struct.error, NotImplementedError, OverflowError) as error:
        raise truncated_file(path, size_bytes, str(error)) from None
    names = archive.namelist()
    prefix = _folder_of(path, names)
    _check_entries(path, archive.infolist(), size_bytes)
    if f"{prefix}/byteorder" in names and _read_entry(path, archive, f"{prefix}/byteorder") != b"little":
        raise damaged(path, "numbers in another byte order than this machine's")
    content, class_names = _read_pickle(path, _read_entry(path, archive, f"{prefix}/data.pkl"))
    return TorchFile(path, content, class_names, _ZipStorages(path, archive, prefix), size_bytes)


def _folder_of(path: Path, names: list[str]) -> str:
    """Returns the name of the folder inside the archive that holds all entries.

    Raises WeightsError for an archive that is no checkpoint.
    """
    pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise WeightsError(
            f"{path.name} is a zip archive but not one of torch.save",
            seen=f"{path}: " + (", ".join(name[:40] for name in names[:3]) or "no entries"),
            expected="a checkpoint (.pt); if the archive contains one, unpack it first",
            next_command=f"--weights path/to/{BEST_WEIGHTS}",
        )
    folder = pickles[0].removesuffix("/data.pkl")
    if any(name == f"{folder}/constants.pkl" or name.startswith(f"{folder}/code/") for name in names):
        raise WeightsError(
            f"{path.name} is a TorchScript export, which holds a program and no longer the model's definition",
            seen=str(path),
            expected="the checkpoint (.pt) that it was exported from",
            next_command=f"--weights path/to/{BEST_WEIGHTS}",
        )
    return folder


def _check_entries(path: Path, entries: list[zipfile.ZipInfo], size_bytes: int) -> None:
    """Raises WeightsError unless the archive's table of contents is one that torch.save could have written."""
    if len({entry.filename for entry in entries}) != len(entries):
        raise damaged(path, "an archive with two entries of one name")
    for entry in entries:
        parts = entry.filename.split("/")
        if ".." in parts or "" in parts[:-1] or "\\" in entry.filename:
            raise damaged(path, f"an archive whose entries point outside it ({entry.filename[:80]!r})")
        if entry.flag_bits & 0x1:
            raise damaged(path, "an encrypted archive")
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise damaged(path, "a compressed archive, which torch.save never writes")
        if entry.filename.endswith("/data.pkl") and entry.file_size > MAX_PICKLE_BYTES:
            raise damaged(path, f"a description of {entry.file_size:,} bytes")
    # By overlapping entries a small archive without compression could unpack to a large one.
    if sum(entry.file_size for entry in entries) > size_bytes:
        raise damaged(path, "an archive that unpacks to more than its own size")


def _read_entry(path: Path, archive: zipfile.ZipFile, name: str) -> bytes:
    """Reads the bytes of an entry and compares the checksum. Raises WeightsError."""
    try:
        return archive.read(name)
    except KeyError:
        raise damaged(path, f"the archive lacks {name!r}") from None
    except (zipfile.BadZipFile, zlib.error, ValueError, OSError, EOFError, RuntimeError, struct.error) as error:
        raise damaged(path, str(error)[:200]) from None


# The format before torch 1.6: a magic number, a version, facts of the machine, the content and the storages' keys as
# five pickles; then for each key a count in 8 bytes and the numbers.


class _LegacyStorages:
    def __init__(self, path: Path, file: BinaryIO, offsets: dict[str, int], size_bytes: int) -> None:
        self._path = path
        self._file = file
        self._offsets = offsets
        self._size_bytes = size_bytes

    def read(self, storage: StorageRef) -> bytes:
        if storage.key not in self._offsets:
            raise damaged(self._path, f"no numbers for storage {storage.key}")
        self._file.seek(self._offsets[storage.key])
        return self._file.read(min(storage.numel * storage.dtype.itemsize, self._size_bytes))


class _LegacyVocabulary(CheckpointVocabulary):
    """A vocabulary that keeps the storages, whose types are needed to compute each storage's offset in the file."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[str, StorageRef] = {}

    def reference(self, identity: Any) -> Any:
        meaning = super().reference(identity)
        if isinstance(meaning, StorageRef):
            self.storages[meaning.key] = meaning
        return meaning


def _open_legacy(path: Path, file: BinaryIO, size_bytes: int) -> TorchFile:
    data = file.read(MAX_PICKLE_BYTES)
    vocabulary = _LegacyVocabulary()
    position = 0
    parts = []
    try:
        for _ in range(5):
            interpreter = PickleInterpreter(data, vocabulary, position)
            parts.append(interpreter.run())
            position = interpreter.position
    except RefusedNameError as error:
        raise describe_foreign_names(path, error.name, data) from None
    except PickleError as error:
        raise damaged(path, str(error)) from None
    magic, protocol, machine_facts, content, keys = parts
    if magic != _LEGACY_MAGIC or protocol != _LEGACY_PROTOCOL or not isinstance(keys, list):
        raise damaged(path, "the head of a checkpoint without the rest")
    if not isinstance(machine_facts, dict) or machine_facts.get("little_endian") is not True:
        raise damaged(path, "numbers in another byte order than this machine's")
    offsets: dict[str, int] = {}
    for key in keys:
        if type(key) is not str or key not in vocabulary.storages:
            raise damaged(path, "a list of storages that does not fit the content")
        file.seek(position)
        stated = file.read(8)
        storage = vocabulary.storages[key]
        if len(stated) != 8 or struct.unpack("<q", stated)[0] != storage.numel:
            raise truncated_file(path, size_bytes, f"storage {key} is not where it should be")
        offsets[key] = position + 8
        position += 8 + storage.numel * storage.dtype.itemsize
    if position > size_bytes:
        raise truncated_file(path, size_bytes, "the last tensors are missing")
    storages = _LegacyStorages(path, file, offsets, size_bytes)
    return TorchFile(path, content, vocabulary.class_names, storages, size_bytes)
