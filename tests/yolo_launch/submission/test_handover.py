"""How a file reaches sbatch and kubectl, and what is said if it does not: programs of these names that answer so."""

from __future__ import annotations

import pytest

from yolo_launch.errors import ExitCode, LaunchError
from yolo_launch.submission import handover
from yolo_launch.submission.handover import submit_to_kubernetes, submit_to_slurm, write_job_file


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Makes a program of the only folder on the PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(folder))

    def make(name, body, mode=0o755):
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(mode)

    return make


def test_a_file_of_another_text_keeps_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [str(write_job_file("coco", ".sh", text)) for text in ("a", "b", "a", "c", "b")]
    assert names == [f"runs/submit/coco{number}.sh" for number in ("", "2", "", "3", "2")]
    assert (tmp_path / names[1]).read_text() == "b"


def test_a_folder_that_takes_no_file_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").write_text("")
    with pytest.raises(LaunchError, match="nothing was submitted") as caught:
        write_job_file("coco", ".sh", "a")
    assert caught.value.seen.startswith("runs/submit: ")


@pytest.mark.parametrize("answer", ["42", "42;west", "sbatch: lua: welcome\n42"])
def test_the_number_of_the_job_is_read(program, tmp_path, answer):
    program("sbatch", f'[ "$*" = "--parsable coco.sh" ] && echo "{answer}"')
    assert submit_to_slurm(tmp_path.joinpath("coco.sh").relative_to(tmp_path)) == "42"


@pytest.mark.parametrize(
    ("body", "what", "seen", "next_command"),
    [
        (
            None,
            "sbatch is not on this machine; coco.sh is written",
            "no sbatch on the PATH",
            "sbatch --parsable coco.sh",
        ),
        ("echo 'error: no partition' >&2; exit 1", "sbatch refused coco.sh", "error: no partition", "sbatch --pars"),
        ("exit 3", "sbatch refused", "exit code 3", "sbatch"),
        ("echo done", "sbatch named no job", "'done'", "squeue --me"),
        ("exec /bin/sleep 60", "sbatch gave no answer", "nothing in 0.5 s", "squeue --me"),
    ],
)
def test_what_sbatch_does_not_take_is_said_with_its_words(
    program, tmp_path, monkeypatch, body, what, seen, next_command
):
    monkeypatch.setattr(handover, "_ANSWER_S", 0.5 if body and "sleep" in body else 60.0)
    if body:
        program("sbatch", body)
    with pytest.raises(LaunchError, match=what) as caught:
        submit_to_slurm(tmp_path.joinpath("coco.sh").relative_to(tmp_path))
    assert seen in caught.value.seen
    assert caught.value.next_command.startswith(next_command)
    assert caught.value.exit_code == ExitCode.ENVIRONMENT


def test_a_program_that_cannot_start_is_no_traceback(program, tmp_path):
    program("sbatch", "")
    (tmp_path / "bin" / "sbatch").write_text("#!/none/sh\n")
    with pytest.raises(LaunchError, match="cannot be started"):
        submit_to_slurm(tmp_path / "coco.sh")


def test_kubectl_creates_and_changes_nothing(program, tmp_path):
    program("kubectl", 'echo "$*"')
    path = tmp_path.joinpath("coco.yaml").relative_to(tmp_path)
    assert submit_to_kubernetes(path, "lab") == "create --namespace lab --filename coco.yaml"
    assert submit_to_kubernetes(path, None) == "create --filename coco.yaml"
