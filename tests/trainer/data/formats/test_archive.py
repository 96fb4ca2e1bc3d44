"""A zip of any format: unpacked once into the cache; what leads out, explodes or is locked is refused."""

from __future__ import annotations

import zipfile

import pytest

from trainer.data.formats import archive
from trainer.data.formats.load import load_dataset
from trainer.errors import DataError


def packed(path, folder, above=""):
    with zipfile.ZipFile(path, "w") as file:
        for one in sorted(folder.rglob("*")):
            file.write(one, above + str(one.relative_to(folder)))
    return path


@pytest.mark.parametrize("above", ["", "set/"])
def test_a_zip_is_the_folder_in_it(tmp_path, coco_set, own_cache, above, monkeypatch):
    root = coco_set().parent.parent
    path = packed(tmp_path / "set.zip", root, above)
    dataset = load_dataset(path)
    assert (dataset.names, list(dataset.splits)) == (("cat", "dog"), ["train", "val"])
    assert all(image.is_relative_to(own_cache / "archives") for image in dataset.annotations["train"].images)
    assert all(image.is_file() for image in dataset.annotations["train"].images)

    def fail(*_):
        raise AssertionError("unpacked again")

    monkeypatch.setattr(archive, "_unpack", fail)
    assert load_dataset(path).names == dataset.names


@pytest.mark.parametrize("name", ["../evil.txt", "a/../../evil.txt", "/evil.txt", "..\\evil.txt", "C:\\evil.txt"])
def test_a_name_that_leads_out_is_refused_before_anything_is_written(tmp_path, own_cache, name):
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as file:
        file.writestr("good.txt", "x")
        file.writestr(zipfile.ZipInfo(name), "x")
    with pytest.raises(DataError, match="leads out"):
        load_dataset(tmp_path / "evil.zip")
    assert list(own_cache.rglob("*.txt")) == []


def test_a_bomb_is_refused_by_its_table_and_by_what_it_writes(tmp_path, own_cache, monkeypatch):
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("zeros.bin", b"\0" * (30 * 2**20))
    with pytest.raises(DataError, match=r"bytes unpacked for each byte"):
        load_dataset(path)
    monkeypatch.setattr(archive, "_check", lambda *_: None)  # as if the table of contents lied
    with pytest.raises(DataError, match="more than its table of contents"):
        load_dataset(path)
    assert [one for one in own_cache.rglob("*") if one.is_file()] == []


def test_an_encrypted_a_linked_and_a_damaged_zip_are_refused(tmp_path, coco_set):
    path = packed(tmp_path / "set.zip", coco_set().parent.parent)
    content = path.read_bytes()
    locked = content.replace(b"PK\x01\x02\x14\x03\x14\x00\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01\x00")
    assert locked != content
    path.write_bytes(locked)
    with pytest.raises(DataError, match="is encrypted"):
        load_dataset(path)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"(?s)cannot be unpacked.*zip"):
        load_dataset(path)
    with zipfile.ZipFile(path, "w") as file:
        link = zipfile.ZipInfo("link")
        link.external_attr = 0o120777 << 16
        file.writestr(link, "/etc")
    with pytest.raises(DataError, match="is a link"):
        load_dataset(path)
