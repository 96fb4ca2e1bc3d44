"""What a user's text file may be, and how quickly anything else is told from it."""

from __future__ import annotations

import os
import time
import zipfile

import pytest

from trainer.errors import DataError
from trainer.reading.text_file import TextFileError, printable, read_text

TEXT = "names:\n  - 红细胞\n  - é\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_every_encoding_that_editors_and_shells_write(tmp_path, encoding):
    (tmp_path / "a.txt").write_bytes(("one\r\ntwo\n" + TEXT).encode(encoding))
    text = read_text(tmp_path / "a.txt", limit_bytes=1000)
    assert text == "one\r\ntwo\n" + TEXT


def kinds() -> dict[str, tuple[bytes, str]]:
    return {
        "png": (b"\x89PNG\r\n\x1a\n", "a PNG picture"),
        "zip": (b"PK\x03\x04rest", "zip archive"),
        "page": (b"\n <!DOCTYPE HTML><html>", "web page"),
        "xml": (b"<annotation><object>", "XML"),
        "coco": (b'{"info": 1, "images": [], "annotations": []}', "COCO"),
        "zeros": (b"a" + bytes(99), "binary"),
        "late zero": (b"a" * 70_000 + b"\0", "a zero byte in line 1"),
        "latin": ("a\nb\né".encode("latin-1"), "bytes in line 3 that are not UTF-8"),
        "large": (b"a" * 100_001, "100 kB that start with 'aaa"),
    }


@pytest.mark.parametrize("kind", kinds())
def test_other_kinds_are_named(tmp_path, kind):
    content, expected = kinds()[kind]
    (tmp_path / "a.yaml").write_bytes(content)
    with pytest.raises(TextFileError, match=expected) as caught:
        read_text(tmp_path / "a.yaml", limit_bytes=100_000)
    error = caught.value.as_error(DataError, "what")
    assert isinstance(error, DataError)
    assert all(error.to_dict().values())


@pytest.mark.parametrize("start", [b"", b"PK\x03\x04", b'{"images": [', b"names: [a]\n"])
def test_a_file_of_450_megabytes_is_answered_at_once(tmp_path, start):
    with (tmp_path / "a.yaml").open("wb") as file:
        file.write(start)
        file.truncate(450_000_000)
    began_at = time.process_time()
    with pytest.raises(TextFileError, match="450 MB"):
        read_text(tmp_path / "a.yaml", limit_bytes=10**6)
    assert time.process_time() - began_at < 0.5


def test_what_is_no_file_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, why in ((tmp_path, "a folder"), (tmp_path / "pipe", "a pipe"), ("/dev/zero", "a device")):
        with pytest.raises(TextFileError, match=why):
            read_text(path, limit_bytes=10)
    for name in ("a\0b", "\ud800"):
        with pytest.raises(TextFileError, match="no file can have"):
            read_text(name, limit_bytes=10)
    with pytest.raises(FileNotFoundError):
        read_text(tmp_path / "none", limit_bytes=10)


def test_names_that_are_not_utf8_stay_what_they_are(tmp_path):
    (tmp_path / "list.txt").write_bytes(b"caf\xe9.jpg\n")
    text = read_text(tmp_path / "list.txt", limit_bytes=100, keep_bytes=True)
    assert os.fsencode(text) == b"caf\xe9.jpg\n"
    assert printable(text) == "caf\\udce9.jpg\n"
    assert printable("红 é") == "红 é"


def test_a_zip_is_told_by_its_content_whatever_its_name(tmp_path):
    with zipfile.ZipFile(tmp_path / "set.yaml", "w") as archive:
        archive.writestr("a", "b")
    with pytest.raises(TextFileError, match="zip"):
        read_text(tmp_path / "set.yaml", limit_bytes=10**6)
