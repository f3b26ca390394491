"""Scratch folders are pruned."""

from __future__ import annotations

from pytest_llmperf.system.paths import KEPT_RUNS, make_room, run_folder, scratch_folder


def test_the_oldest_runs_make_room(tmp_path):
    """Old folders and files are deleted; a run's own files stay."""
    for number in range(2 * KEPT_RUNS):
        folder = run_folder(tmp_path, "confirm", f"{number:04}")
        (folder / "1.log").touch()
    assert run_folder(tmp_path, "confirm", f"{number:04}") == folder
    kept = sorted(path.name for path in scratch_folder(tmp_path, "confirm").iterdir())
    assert kept == [f"{number:04}" for number in range(KEPT_RUNS, 2 * KEPT_RUNS)]


def test_files_make_room_too(tmp_path):
    """The oldest are deleted; hidden files are kept."""
    for name in (".gitignore", *(f"{number:04}.jsonl" for number in range(KEPT_RUNS + 5))):
        (tmp_path / name).touch()
    make_room(tmp_path)
    assert len(list(tmp_path.iterdir())) == KEPT_RUNS
    assert (tmp_path / ".gitignore").exists()
    assert not (tmp_path / "0005.jsonl").exists()
