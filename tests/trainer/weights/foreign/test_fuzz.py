"""Mutated and hostile checkpoints: one WeightsError each; nothing executed, memory and time bounded."""

from __future__ import annotations

import contextlib
import random
import resource
import struct
import sys
import time
import zipfile
from collections.abc import Iterator

import pytest
import torch

from tests.trainer.weights.foreign.yolov5_files import (
    NAMES,
    archive_parts,
    save_version,
    small_model,
    write_archive,
)
from trainer.errors import WeightsError
from trainer.weights.checkpoint import write_checkpoint
from trainer.weights.foreign.pickle_interpreter import MAX_STEPS
from trainer.weights.load import build_loaded, load_weights

EXTRA_MEMORY_BYTES = 1536 * 2**20
LONGEST_READ_S = 20
QUICK_MUTANTS, SLOW_MUTANTS = 120, 3_000
OPCODES = b"(.0125BCGIJKLMNOPQRSTUVX]abcdeghijlopqrstu}" + bytes(range(0x80, 0x98))
FORBIDDEN_EVENTS = ("os.system", "os.exec", "os.fork", "os.posix_spawn", "subprocess.Popen", "pickle.find_class")


class Watch:
    """An audit hook, which Python cannot remove again; the hook records only while it is on."""

    def __init__(self) -> None:
        self.on = False
        self.seen: list[str] = []
        sys.addaudithook(self.hook)

    def hook(self, event: str, arguments: tuple) -> None:
        if not self.on:
            return
        writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        # Python reports the modules that it loads as executed code, too; those come from files.
        executes = event == "exec" and arguments[0].co_filename.startswith("<string")
        if writes or executes or event in FORBIDDEN_EVENTS:
            self.seen.append(f"{event} {arguments[:1]!r}")


@pytest.fixture(scope="module")
def watch() -> Watch:
    # What torch imports at its first use is no business of the file's.
    build_loaded_once = small_model()
    build_loaded_once(torch.zeros(1, 3, 64, 64))
    return Watch()


@contextlib.contextmanager
def bounded(watch: Watch) -> Iterator[None]:
    """Memory limited to what is in use and a little, code execution noticed."""
    with open("/proc/self/statm") as file:
        in_use = int(file.read().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (in_use + EXTRA_MEMORY_BYTES, hard))
    watch.seen.clear()
    watch.on = True
    started_at = time.monotonic()
    try:
        yield
    finally:
        watch.on = False
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert time.monotonic() - started_at < LONGEST_READ_S
    assert watch.seen == []


def read_or_refuse(path, watch: Watch) -> str:
    """Returns the refusal, "" if the file is valid after all. Any error other than WeightsError fails the test."""
    with bounded(watch):
        try:
            loaded = load_weights(path)
            build_loaded(loaded)
            message = ""
        except WeightsError as error:
            message = str(error)
            assert 0 < len(message) < 2_000
    return message


# Hostile files


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def called(module: str, name: str, *arguments: str) -> bytes:
    """A pickle that calls something with texts."""
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"(" + b"".join(map(text, arguments)) + b"tR."


CANARY = "touch hostile_canary"
CALLS = {
    "os.system": called("os", "system", CANARY),
    "posix.system": called("posix", "system", CANARY),
    "nt.system": called("nt", "system", CANARY),
    "subprocess.Popen": called("subprocess", "Popen", CANARY),
    "eval": called("builtins", "eval", "__import__('os').system('touch hostile_canary')"),
    "exec": called("builtins", "exec", "open('hostile_canary','w')"),
    "Python 2 eval": called("__builtin__", "eval", "open('hostile_canary','w')"),
    "getattr": called("builtins", "getattr", "a", "upper"),
    "open": called("builtins", "open", "hostile_canary", "w"),
    "__import__": called("builtins", "__import__", "antigravity"),
    "runpy": called("runpy", "run_path", "a.py"),
    "torch.load": called("torch", "load", "other.pt"),
    "torch.hub": called("torch.hub", "load", "a/b", "c"),
    "torch.jit": called("torch.jit", "load", "a.pt"),
    "rebuild hook": called("torch._utils", "_rebuild_sparse_tensor", "a"),
    "numpy.load": called("numpy", "load", "a.npy"),
    "numpy runstring": called("numpy.testing._private.utils", "runstring", "import os", "a"),
    "dotted name": called("torch.nn.modules", "os.system", CANARY),
    "dotted module": called("torch.nn..os", "system", CANARY),
    "codecs": called("_codecs", "encode", "aGk=", "base64"),
    "stack global": b"\x80\x04" + text("os") + text("system") + b"\x93" + text(CANARY) + b"\x85R.",
    "inst": b"(" + text(CANARY) + b"ios\nsystem\n.",
    "obj": b"(cos\nsystem\n" + text(CANARY) + b"o.",
    "newobj": b"\x80\x02cos\nsystem\n" + text(CANARY) + b"\x85\x81.",
    "newobj with keywords": b"\x80\x04ctorch.nn\nModule\n)}" + text("a") + b"K\x01s\x92.",
    "extension 1": b"\x80\x02\x82\x01.",
    "extension 2": b"\x80\x02\x83\x01\x00.",
    "extension 4": b"\x80\x02\x84\x01\x00\x00\x00.",
    "build of a call": b"\x80\x02ctorch.nn\nModule\n)\x81}"
    + text("__reduce__")
    + called("os", "system", CANARY)[2:-1]
    + b"sb.",
    "text reference": b"Pos.system\n.",
    "next buffer": b"\x80\x05\x97.",
}


@pytest.mark.parametrize("name", CALLS)
def test_nothing_is_called(tmp_path, monkeypatch, watch, name):
    monkeypatch.chdir(tmp_path)
    write_archive(tmp_path / "a.pt", CALLS[name], {})
    message = read_or_refuse(tmp_path / "a.pt", watch)
    assert message
    assert not (tmp_path / "hostile_canary").exists()
    assert "antigravity" not in sys.modules


def test_a_stand_in_is_inert(tmp_path, monkeypatch, watch):
    """Names under torch.nn and models are accepted; calling them makes placeholders only."""
    monkeypatch.chdir(tmp_path)
    for module, name in (("models.common", "torch.os.system"), ("torch.nn.modules.module", "torch.os.system")):
        write_archive(tmp_path / "a.pt", called(module, name, CANARY), {})
        assert "no detection model" in read_or_refuse(tmp_path / "a.pt", watch)
    assert not (tmp_path / "hostile_canary").exists()
    assert "models" not in sys.modules


def persistent(*parts: bytes) -> bytes:
    return b"\x80\x02(" + b"".join(parts) + b"tQ."


FLOATS = b"ctorch\nFloatStorage\n"
STORAGE = b"(" + text("storage") + FLOATS + text("0") + text("cpu") + b"K\x04tQ"


def tensor(size: bytes, stride: bytes, offset: bytes = b"K\x00", storage: bytes = STORAGE) -> bytes:
    return (
        b"\x80\x02}"
        + text("a")
        + b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + offset
        + size
        + stride
        + b"\x89}tRs."
    )


HUGE = b"\x8a\x08" + struct.pack("<q", 2**40)
BROKEN = {
    "reference to nothing": b"\x80\x02NQ.",
    "reference to a text": b"\x80\x02" + text("0") + b"Q.",
    "reference of other types": persistent(text("storage"), text("FloatStorage"), b"K\x01", b"N", b"]"),
    "storage key as a path": persistent(text("storage"), FLOATS, text("../../etc/passwd"), text("cpu"), b"K\x01"),
    "storage key as a number": persistent(text("storage"), FLOATS, b"K\x00", text("cpu"), b"K\x01"),
    "tensor past its end": tensor(b"(K\x04t", b"(K\x02t"),
    "tensor at an offset": tensor(b"(K\x04t", b"(K\x01t", b"K\x01"),
    "negative offset": tensor(b"(K\x04t", b"(K\x01t", b"J\xff\xff\xff\xff"),
    "repeating tensor": tensor(b"(" + HUGE + b"t", b"(K\x00t"),
    "negative stride": tensor(b"(K\x04t", b"(J\xff\xff\xff\xfft"),
    "strides missing": tensor(b"(K\x02K\x02t", b"(K\x01t"),
    "many sides": tensor(b"(" + b"K\x01" * 70 + b"t", b"(" + b"K\x01" * 70 + b"t"),
    "size that is a text": tensor(b"(" + text("4") + b"t", b"(K\x01t"),
    "huge text": b"\x80\x02X\xff\xff\xff\xff.",
    "huge text of protocol 4": b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7f.",
    "huge bytes": b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f.",
    "huge byte array": b"\x80\x05\x96" + b"\xff" * 7 + b"\x7f.",
    "huge frame": b"\x80\x04\x95" + b"\xff" * 8 + b"N.",
    "huge integer": b"\x80\x02\x8b\xff\xff\xff\x7f" + b"1" * 1000 + b".",
    "integer of negative length": b"\x80\x02\x8b\xff\xff\xff\xff.",
    "huge memo": b"\x80\x02Nr\xff\xff\xff\xff.",
    "digits of an integer": b"\x80\x02L" + b"9" * 500_000 + b"L\n.",
    "missing memo": b"\x80\x02h\x07.",
    "missing mark": b"\x80\x02t.",
    "no value": b"\x80\x02.",
    "no stop": b"\x80\x02N",
    "protocol of the future": b"\x80\x63N.",
    "list as a key": b"\x80\x02}]Ns.",
    "number as a list": b"\x80\x02K\x01Na.",
    "key without a value": b"\x80\x02}(K\x01u.",
    "deep lists": b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".",
    "deep tuples": b"\x80\x02N" + b"\x85" * 300_000 + b".",
    "deep tuples as a key": b"\x80\x02}N" + b"\x85" * 300_000 + b"Ns.",
    "list of itself": b"\x80\x02]q\x00h\x00a.",
    "dictionary of itself": b"\x80\x02}q\x00" + text("model") + b"h\x00s.",
    "doubling tuples": b"\x80\x02N" + b"2\x86" * 100_000 + b".",
    "doubling tuples in a set": b"\x80\x02cbuiltins\nset\nN" + b"2\x86" * 100 + b"\x85R.",
    "sets of a large list": b"\x80\x02(" + b"".join(b"M" + struct.pack("<H", n) for n in range(60_000)) + b"lq\x00"
    + b"cbuiltins\nset\nh\x00\x85R" * 5_000 + b".",
    "steps without end": b"\x80\x02" + b"N0" * (MAX_STEPS // 2 + 10) + b"N.",
    "keys that collide": b"\x80\x02}(" + b"".join(
        b"\x8a\x0d" + (n * (2**61 - 1)).to_bytes(13, "little") + b"N" for n in range(1, 100_000)
    ) + b"u.",
    "numpy type of objects": b"\x80\x02cnumpy\ndtype\n" + text("O8") + b"\x85R.",
    "numpy scalar without bytes": b"\x80\x02cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n" + text("f8")
    + b"\x85RNtR.",
}  # fmt: skip


SOUND_BUT_NO_MODEL = {"deep lists", "deep tuples", "doubling tuples", "list of itself", "dictionary of itself"}
SOUND_BUT_NO_MODEL |= {"huge frame", "huge memo"}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_and_endless_pickles(tmp_path, watch, name):
    write_archive(tmp_path / "a.pt", BROKEN[name], {"0": bytes(16)})
    message = read_or_refuse(tmp_path / "a.pt", watch)
    assert ("no detection model" if name in SOUND_BUT_NO_MODEL else "is damaged") in message


def model_with(modules: bytes, yaml: bytes = b"}") -> bytes:
    """A pickle with a model whose ``_modules`` and ``yaml`` are as given; memo slot 0 is the model."""
    return (
        b"\x80\x02}" + text("model") + b"cmodels.yolo\nModel\n)\x81q\x00}("
        + text("_modules") + modules + text("yaml") + yaml + b"ubs."
    )  # fmt: skip


def parameters_with(tensors: bytes) -> bytes:
    """A pickle with a model of one layer, whose parameters are as given."""
    return model_with(
        b"}" + text("model") + b"ctorch.nn\nModule\n)\x81}" + text("_parameters") + tensors + b"sbs", LAYERS
    )


LAYERS = b"}(" + text("backbone") + b"]" + text("head") + b"]u"


def test_a_storage_that_claims_more_than_the_archive_has(tmp_path, watch):
    weight = tensor(b"(K\x04t", b"(K\x01t", storage=STORAGE.replace(b"K\x04", HUGE))[2:-1]
    write_archive(tmp_path / "a.pt", parameters_with(weight), {"0": bytes(16)})
    assert "a tensor of 4,398,046,511,104 bytes" in read_or_refuse(tmp_path / "a.pt", watch)


def test_modules_that_contain_themselves(tmp_path, watch):
    write_archive(tmp_path / "a.pt", model_with(b"}" + text("model") + b"h\x00s", LAYERS), {})
    assert "without end" in read_or_refuse(tmp_path / "a.pt", watch)


def test_modules_that_double(tmp_path, watch):
    """Each module holds the one before twice: 2^60 paths to walk."""
    nested = b"ctorch.nn\nModule\n)\x81"
    for _ in range(28):
        nested = (
            b"ctorch.nn\nModule\n)\x81}"
            + text("_modules")
            + b"}("
            + text("a")
            + nested
            + b"q\x05"
            + text("b")
            + b"h\x05usb"
        )
    write_archive(tmp_path / "a.pt", model_with(b"}" + text("model") + nested + b"s", LAYERS), {})
    assert "without end" in read_or_refuse(tmp_path / "a.pt", watch)


def test_a_definition_that_contains_itself(tmp_path, watch):
    endless = b"}q\x01(" + text("backbone") + b"]q\x02h\x02a" + text("head") + b"]h\x01au"
    write_archive(tmp_path / "a.pt", model_with(b"}", endless), {})
    assert "nested without end" in read_or_refuse(tmp_path / "a.pt", watch)


def test_a_definition_larger_than_its_weights_is_not_built(tmp_path, watch):
    """Some 2 GiB, which a machine may well have to spare."""
    save_own(tmp_path / "a.pt", {"width_multiple": 40})
    assert "larger than its weights" in read_or_refuse(tmp_path / "a.pt", watch)


@pytest.mark.parametrize(
    "change",
    [
        {"width_multiple": 1e6},
        {"width_multiple": 1e300},
        {"depth_multiple": 1e9},
        {"backbone": [[-1, 10**9, "Conv", [64]]]},
        {"backbone": [[-1, 1, "Conv", [64, 50_001]]]},
        {"backbone": [[-1, 1, "Conv", [10**9, 3, 2]]]},
        {"backbone": [[-1, 1, "nn.Upsample", [None, 1e6]]] * 3},
        {"backbone": [[-1, 1, "nn.Upsample", [None, 4]]] * 300},
        {"backbone": [[-1, 1, "nn.ZeroPad2d", [10**6]]]},
        {"backbone": [[-1, 1, "nn.ZeroPad2d", [[4, 10**6, 0, 0]]]]},
        {"backbone": [[-1, 1, "C3TR", [10**5]]]},
        {"activation": "(" * 100_000},
        {"activation": "__import__('os').system('touch hostile_canary')"},
        {"anchors": [[1e308] * 6] * 2},
        {"anchors": 10**9},
        {"head": []},
        {"head": [[[0, 1], 1, "Detect", ["nc", "anchors"]]] * 2},
    ],
    ids=str,
)
def test_definitions_that_ask_for_too_much(tmp_path, monkeypatch, watch, change):
    monkeypatch.chdir(tmp_path)
    save_own(tmp_path / "a.pt", change)
    assert read_or_refuse(tmp_path / "a.pt", watch)
    assert not (tmp_path / "hostile_canary").exists()


def save_own(path, change=None) -> None:
    model = small_model()
    header = {"names": list(NAMES), "stride": [4, 8], "image_size": 64, "config": {}}
    definition = {**model.definition, **(change or {})}
    write_checkpoint(path, {**header, "definition": definition, "ema": {"model": model.state_dict(), "updates": 0}})


# Hostile archives


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    path = tmp_path_factory.mktemp("sound") / "a.pt"
    save_version(path, "v6 stripped")
    return path


def rewritten(source, target, *, compression=zipfile.ZIP_STORED, extra=()) -> None:
    with zipfile.ZipFile(source) as before, zipfile.ZipFile(target, "w", compression) as after:
        for entry in before.infolist():
            after.writestr(entry.filename, before.read(entry))
        for name in extra:
            after.writestr(name, b"x")


@pytest.mark.parametrize(
    "name",
    ["a/../../b", "/etc/passwd", "a//b", "a\\b", "a/data.pkl"],
    ids=["up", "root", "empty", "backslash", "second"],
)
def test_entries_that_point_outside(tmp_path, watch, sound, name):
    rewritten(sound, tmp_path / "b.pt", extra=[name])
    assert read_or_refuse(tmp_path / "b.pt", watch)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_entries_of_one_name(tmp_path, watch, sound):
    rewritten(sound, tmp_path / "b.pt", extra=["a/data/0"])
    assert "two entries of one name" in read_or_refuse(tmp_path / "b.pt", watch)


def test_a_compressed_bomb(tmp_path, watch):
    with zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("a/data.pkl", "w", force_zip64=True) as entry:
            for _ in range(100):
                entry.write(b"N" * 2**20)
    assert (tmp_path / "a.pt").stat().st_size < 2**20
    assert "a compressed archive, which" in read_or_refuse(tmp_path / "a.pt", watch)


def test_overlapping_entries(tmp_path, watch, sound):
    """A table of contents that names the same bytes many times."""
    data = bytearray(sound.read_bytes())
    with zipfile.ZipFile(sound) as archive:
        directory = archive.start_dir
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    size = struct.pack("<I", largest.file_size)
    at = directory
    changed = 0
    while data[at : at + 4] == b"PK\x01\x02":
        name, extra, comment = struct.unpack("<HHH", data[at + 28 : at + 34])
        if b"/data/" in data[at + 46 : at + 46 + name]:
            data[at + 20 : at + 28] = size * 2
            data[at + 42 : at + 46] = struct.pack("<I", largest.header_offset)
            changed += 1
        at += 46 + name + extra + comment
    assert changed > 20
    (tmp_path / "b.pt").write_bytes(data)
    assert read_or_refuse(tmp_path / "b.pt", watch)


def test_an_encrypted_archive(tmp_path, watch, sound):
    data = bytearray(sound.read_bytes())
    at = data.rfind(b"PK\x01\x02")
    data[at + 8] |= 1
    (tmp_path / "b.pt").write_bytes(data)
    assert "an encrypted archive" in read_or_refuse(tmp_path / "b.pt", watch)


def test_a_shared_storage_cannot_be_multiplied(tmp_path, watch):
    """Thousands of tensors over one storage of 1 MiB are small in the file and would be gigabytes in memory."""
    numel = 2**18
    view = b"(" + text("storage") + FLOATS + text("0") + text("cpu") + b"J" + struct.pack("<i", numel) + b"tQ"
    one = b"ctorch._utils\n_rebuild_tensor_v2\n(" + view + b"K\x00(J" + struct.pack("<i", numel) + b"t(K\x01t\x89}tR"
    group = (
        b"}("
        + b"".join(text(f"t{index}") + (one + b"q\x07" if not index else b"h\x07") for index in range(5000))
        + b"u"
    )
    write_archive(tmp_path / "a.pt", parameters_with(group), {"0": bytes(numel * 4)})
    assert "more memory than the file" in read_or_refuse(tmp_path / "a.pt", watch)


# Random damage


def mutated(data: bytes, random_source: random.Random) -> bytes:
    """One to a few changes: flipped bits, other bytes, opcodes put in, parts cut, doubled or swapped."""
    changed = bytearray(data)
    for _ in range(random_source.choice((1, 1, 2, 4, 16))):
        at = random_source.randrange(max(len(changed), 1))
        kind = random_source.randrange(7)
        length = random_source.choice((1, 2, 4, 8, 64, 1000))
        if not changed:
            break
        if kind == 0:
            changed[at] ^= 1 << random_source.randrange(8)
        elif kind == 1:
            changed[at] = random_source.randrange(256)
        elif kind == 2:
            changed[at] = random_source.choice(OPCODES)
        elif kind == 3:
            changed[at:at] = bytes(random_source.choices(OPCODES, k=min(length, 8)))
        elif kind == 4:
            del changed[at : at + length]
        elif kind == 5:
            changed[at:at] = changed[at : at + length]
        else:
            changed[at : at + 4] = struct.pack("<I", random_source.choice((0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000)))
    return bytes(changed)


def damage(path, target, kind: str, random_source: random.Random) -> None:
    """A damaged copy: of the whole file, cut short, of its pickle alone, of its last kilobytes, of one storage."""
    data = path.read_bytes()
    if kind == "whole":
        target.write_bytes(mutated(data, random_source))
    elif kind == "cut":
        target.write_bytes(data[: random_source.randrange(len(data))])
    elif kind == "directory":
        at = len(data) - random_source.randrange(100, 6000)
        target.write_bytes(data[:at] + mutated(data[at:], random_source))
    elif kind == "head":
        target.write_bytes(mutated(data[:40_000], random_source) + data[40_000:])
    else:
        pickled, storages = archive_parts(path)
        if kind == "pickle":
            pickled = mutated(pickled, random_source)
        else:
            key = random_source.choice(sorted(storages))
            storages[key] = mutated(storages[key], random_source)
        write_archive(target, pickled, storages)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    save_version(folder / "v7.pt", "v7")
    save_version(folder / "v5.pt", "v5")
    save_version(folder / "old.pt", "v5", _use_new_zipfile_serialization=False)
    save_own(folder / "own.pt")
    return folder


KINDS = [
    *((name, kind) for name in ("v7", "v5", "own") for kind in ("pickle", "whole", "cut", "directory", "storage")),
    ("old", "head"),
    ("old", "cut"),
]
WEIGHT_OF = {"pickle": 6, "head": 3}


def fuzz(sources, tmp_path, watch, count: int, seed: int) -> tuple[int, int]:
    """Numbers of files refused and accepted."""
    random_source = random.Random(seed)
    weights = [WEIGHT_OF.get(kind, 1) for _, kind in KINDS]
    refused = 0
    for index in range(count):
        name, kind = random_source.choices(KINDS, weights)[0]
        target = tmp_path / "mutant.pt"
        damage(sources / f"{name}.pt", target, kind, random_source)
        try:
            refused += bool(read_or_refuse(target, watch))
        except Exception as error:
            raise AssertionError(f"mutant {index} of seed {seed}: {name}, {kind}") from error
    return refused, count - refused


@pytest.mark.filterwarnings("ignore")
def test_mutated_files_are_refused_or_read(sources, tmp_path, watch):
    refused, _ = fuzz(sources, tmp_path, watch, QUICK_MUTANTS, seed=0)
    assert refused > QUICK_MUTANTS / 2


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_thousands_of_mutated_files(sources, tmp_path, watch, seed):
    refused, accepted = fuzz(sources, tmp_path, watch, SLOW_MUTANTS, seed)
    assert refused > SLOW_MUTANTS / 2
    assert accepted > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_mutants_of_the_official_file(shared_dir, tmp_path, watch):
    random_source = random.Random(4)
    for _ in range(200):
        kind = random_source.choice(("pickle", "pickle", "whole", "directory"))
        damage(shared_dir / "weights" / "yolov5n.pt", tmp_path / "mutant.pt", kind, random_source)
        read_or_refuse(tmp_path / "mutant.pt", watch)
