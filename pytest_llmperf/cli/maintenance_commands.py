"""Implementation of the commands ``accept``, ``prune`` and ``history`` on a device's baseline file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

from pytest_llmperf.errors import BaselineError, UsageError
from pytest_llmperf.metrics import METRICS, find_metric
from pytest_llmperf.storage.baseline_file import baseline_files, baseline_path, load_baseline, update_baseline
from pytest_llmperf.storage.maintenance import Condemned, find_tests, next_epochs, with_epochs
from pytest_llmperf.storage.schema import Baseline, Epoch
from pytest_llmperf.system.git import head_commit
from pytest_llmperf.text import plural, printable

LONGEST_REASON = 2000


@dataclass(frozen=True)
class Accepted:
    """Result of ``accept``: the file, an epoch for each cell, and how many of them are new."""

    path: Path
    epochs: list[Epoch]
    new: int

    @property
    def tests(self) -> list[str]:
        """The tests of the epochs."""
        return list(dict.fromkeys(epoch.test for epoch in self.epochs))

    def lines(self) -> Iterator[str]:
        """Yield one line per test, and one about cells that were accepted before."""
        for test, epochs in groupby(self.epochs, key=lambda epoch: epoch.test):
            names = ", ".join(METRICS[epoch.metric].name for epoch in epochs)
            yield printable(f"{self.path}: accepted {names} of {test}: only later runs are compared from now on")
        if known := len(self.epochs) - self.new:
            yield f"{known} of {len(self.epochs)} cells were accepted before, have no run since, and keep their reason"


def only_file(folder: Path, device_key: str | None) -> Path:
    """Return the baseline of a device, or the only one there is.

    Raises:
        BaselineError: there is none.
        UsageError: there are several, and none was chosen.
    """
    known = sorted(path.stem for path in folder.glob("*.json"))
    if device_key is None and len(known) > 1:
        raise UsageError(
            f"{folder} holds baselines of {len(known)} devices: choose one with --device-key: {_all(known)}"
        )
    chosen = device_key or next(iter(known), "")
    if chosen not in known:
        found = f"found {_all(known)}" if known else "found none"
        raise BaselineError(
            f"no baseline {printable(chosen) or '*'}.json under {folder}: {found}. Choose the folder with --baselines"
        )
    return baseline_path(folder, chosen)


def accept(path: Path, pattern: str, metric: str | None, *, reason: str) -> Accepted:
    """Accept a step: the chosen cells are compared with later runs only.

    Raises:
        UsageError: no such test or metric, or no reason.
        BaselineError: the file cannot be read, trusted or written.
    """
    if not reason.strip() or len(reason) > LONGEST_REASON:
        raise UsageError(f"--reason: expected a text of 1 to {LONGEST_REASON} characters, found {len(reason)}")
    chosen = find_metric(metric) if metric else None
    commit = head_commit(Path.cwd())
    accepted: list[Accepted] = []

    def change(baseline: Baseline) -> Baseline:
        epochs = next_epochs(baseline, find_tests(baseline, pattern), chosen, reason=reason, commit=commit)
        changed = with_epochs(baseline, epochs)
        accepted.append(Accepted(path, epochs, len(changed.epochs) - len(baseline.epochs)))
        return changed

    _update(path, change)
    return accepted[0]


def prune(path: Path, condemned: Condemned, *, dry_run: bool) -> str:
    """Remove records, or with ``dry_run`` return what would be removed.

    Raises:
        UsageError: no such test, run or session, or nothing was named.
        BaselineError: the file cannot be read, trusted or written.
    """
    if not (condemned.tests or condemned.runs or condemned.sessions or condemned.before):
        raise UsageError("llmperf prune: no criterion given; expected TEST, --run, --session or --before")
    before = load_baseline(path)
    after = condemned.removed_from(before) if dry_run else _update(path, condemned.removed_from)
    gone = [
        f"{len(old) - len(new)} of {len(old)} {name}"
        for name, old, new in (
            ("runs", before.runs, after.runs),
            ("cells", before.cells, after.cells),
            ("tests", _tests(before), _tests(after)),
            ("epochs", before.epochs, after.epochs),
        )
    ]
    return f"{path}: {'would remove' if dry_run else 'removed'} {', '.join(gone)}"


def tell_history(
    place: Path, *, test: str | None, metric: str | None, every_metric: bool, plot: Path | None
) -> Iterator[str]:
    """Yield where the levels of the cells under ``place`` changed; draw them to ``plot`` as well.

    Raises:
        UsageError: no such test or metric, or an unknown picture format; ``MissingDependency`` without the extra.
        BaselineError: a file cannot be read, trusted or written.
    """
    from pytest_llmperf.report.history_plot import check_plot, write_plot
    from pytest_llmperf.report.history_text import change_lines
    from pytest_llmperf.verdict.level_history import series_of

    files = baseline_files(place)
    if plot:
        check_plot(plot)
        if len(files) > 1:
            raise UsageError(f"--plot: {place} holds {len(files)} files; choose one with --baselines FILE")
    chosen = find_metric(metric) if metric else None
    for file in files:
        series = series_of(load_baseline(file), test=test, metric=chosen, every_metric=every_metric)
        yield from change_lines(series, name=str(file))
        if plot:
            write_plot(series, plot, title=str(file))
            yield f"{plot}: {plural(len(series), 'cell')}"


def selecting(tests: list[str]) -> list[str]:
    """Return the arguments with which pytest runs just these tests, including those of the ready-made suite."""
    return [*(["--pyargs"] if any(test.startswith("pytest_llmperf.") for test in tests) else []), *tests]


def moment(text: str) -> str:
    """Convert a date or a time (UTC if it has no zone) to the format of stored times.

    Raises:
        UsageError: it is neither.
    """
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError(f"--before {text!r}: expected a date such as 2026-01-31, or a time") from error
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC).isoformat(timespec="seconds")


def _update(path: Path, change: Callable[[Baseline], Baseline]) -> Baseline:
    def change_present(baseline: Baseline | None) -> Baseline:
        if baseline is None:
            raise BaselineError(f"{path} no longer exists: another process removed it")
        return change(baseline)

    return update_baseline(path, change_present)


def _tests(baseline: Baseline) -> set[str]:
    return {cell.test for cell in baseline.cells}


def _all(names: list[str]) -> str:
    return ", ".join(map(printable, names))
