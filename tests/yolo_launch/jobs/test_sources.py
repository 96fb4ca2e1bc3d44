"""What a job reads from elsewhere."""

from __future__ import annotations

import pytest

from yolo_launch.errors import LaunchError
from yolo_launch.jobs.sources import Sources, fetch_run, fetch_sources, sources_of_resume


def test_paths_stay_as_they_are():
    settings = {"data": "a/b.yaml", "weights": "", "epochs": 3}
    assert fetch_sources(settings, print) == (settings, Sources())


def test_urls_become_paths_of_copies(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    for name in ("data.yaml", "other", "w.pt"):
        (tmp_path / "set" / name).write_text(name, encoding="utf-8")
    urls = {"data": f"file://{tmp_path}/set/data.yaml", "weights": f"file://{tmp_path}/set/w.pt"}
    settings, sources = fetch_sources({**urls, "epochs": 3}, print)
    assert sources.urls == urls
    data, weights = (tmp_path / "cache").glob("*/remote/*/data.yaml"), (tmp_path / "cache").glob("*/remote/*/w.pt")
    assert settings["data"] in map(str, data)
    assert settings["weights"] in map(str, weights)
    assert settings["epochs"] == 3
    assert not (sources.copies[1].path.parent / "other").exists(), "weights are one file"


def test_what_cannot_be_read_is_an_error_at_the_start(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(LaunchError, match=r"--data file:///absent/data.yaml cannot be read"):
        fetch_sources({"data": "file:///absent/data.yaml"}, print)


def test_a_resume_reads_its_data_again_unless_others_are_typed():
    plan = {"sources": {"data": "s3://b/data.yaml", "weights": "s3://b/w.pt"}}
    assert sources_of_resume({}, plan) == {"data": "s3://b/data.yaml"}
    assert sources_of_resume({"data": "here.yaml"}, plan) == {"data": "here.yaml"}
    assert sources_of_resume({"epochs": 3}, {}) == {"epochs": 3}


def test_a_mirrored_run_is_read_into_a_new_folder(tmp_path):
    there, project = tmp_path / "there" / "cells", tmp_path / "runs"
    (there / "weights").mkdir(parents=True)
    for name in ("config.yaml", "plan.json", "weights/last.pt", "somebody-elses"):
        (there / name).write_text(name, encoding="utf-8")
    first, second = (fetch_run(f"file://{there}", str(project), dry_run=False) for _ in range(2))
    assert [first.name, second.name] == ["cells", "cells2"]
    found = sorted(path.relative_to(first).as_posix() for path in first.rglob("*") if path.is_file())
    assert found == ["config.yaml", "plan.json", "weights/last.pt"]
    assert sorted(path.name for path in project.iterdir()) == ["cells", "cells2"]


def test_a_url_without_a_run_and_a_dry_run_make_nothing(tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(LaunchError, match="--resume file://") as caught:
        fetch_run(f"file://{tmp_path}/there", str(tmp_path / "runs"), dry_run=False)
    assert "there is no config.yaml" in caught.value.seen
    with pytest.raises(LaunchError, match="--dry-run makes nothing"):
        fetch_run(f"file://{tmp_path}/there", str(tmp_path / "runs"), dry_run=True)
    assert not (tmp_path / "runs").exists()
