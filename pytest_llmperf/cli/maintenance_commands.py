"""Implementation of the commands ``accept``, ``prune`` and ``history`` on a device's baseline file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import groupby
from pathlib import Path

from pytest_llmperf.errors import BaselineError, UsageError
from pytest_llmperf.metrics import METRICS, Metric, Scalar, find_metric, is_counted
from pytest_llmperf.storage.baseline_file import baseline_files, load_baseline, update_baseline
from pytest_llmperf.storage.comparability import KIND, values_of
from pytest_llmperf.storage.maintenance import Condemned, after_runs_of, find_tests, next_epochs, with_epochs
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


@dataclass(frozen=True)
class Target:
    """A baseline file that a command changes, and what it holds."""

    path: Path
    baseline: Baseline

    @property
    def kind(self) -> frozenset[tuple[Scalar, ...]]:
        """The kind of device, as its runs tell it."""
        return frozenset(values_of(run.environment, KIND) for run in self.baseline.runs)

    def is_of_one_machine(self, tests: Sequence[str], metric: Metric | None) -> bool:
        """Whether it holds figures of these tests, of this metric or of any, that depend on the machine."""
        found = {cell.metric for cell in self.baseline.cells if cell.test in tests}
        return any(not is_counted(key) for key in found if metric is None or key == metric.key)


def accept(
    folder: Path, device_key: str | None, pattern: str, metric: str | None, *, reason: str
) -> Iterator[Accepted]:
    """Accept a step: the chosen cells are compared with later runs only. Yield the result for each changed file.

    A counted metric is accepted for all machines: its level changes after its latest run in any file of the folder.

    Raises:
        UsageError: no such test or metric, no reason, or it is not clear which device is meant.
        BaselineError: a file cannot be read, trusted or written.
    """
    if not reason.strip() or len(reason) > LONGEST_REASON:
        raise UsageError(f"--reason: expected a text of 1 to {LONGEST_REASON} characters, found {len(reason)}")
    chosen = find_metric(metric) if metric else None
    commit = head_commit(Path.cwd())

    def epochs(baseline: Baseline, kin: Iterable[Baseline] = ()) -> list[Epoch]:
        tests = find_tests(baseline, pattern)
        return after_runs_of(kin, next_epochs(baseline, tests, chosen, reason=reason, commit=commit))

    known = _targets(folder, device_key)
    chosen_files = _fitting(known, device_key, epochs)
    tests = [epoch.test for target in chosen_files for epoch in epochs(target.baseline)]
    _refuse_several(folder, chosen_files, [one for one in chosen_files if one.is_of_one_machine(tests, chosen)])
    for target in chosen_files:
        kin = [other.baseline for other in known if other.kind == target.kind]
        yield _accept_in(target.path, partial(epochs, kin=kin))


def _accept_in(path: Path, epochs: Callable[[Baseline], list[Epoch]]) -> Accepted:
    accepted: list[Accepted] = []

    def change(baseline: Baseline) -> Baseline:
        found = epochs(baseline)
        changed = with_epochs(baseline, found)
        accepted.append(Accepted(path, found, len(changed.epochs) - len(baseline.epochs)))
        return changed

    _update(path, change)
    return accepted[0]


def _targets(folder: Path, device_key: str | None) -> list[Target]:
    """Return the baselines of a folder.

    Raises:
        BaselineError: there is none, or none of the device; or one cannot be read or trusted.
    """
    known = sorted(folder.glob("*.json"))
    names = [path.stem for path in known]
    if not known or (device_key and device_key not in names):
        found = f"found {_all(names)}" if names else "found none"
        raise BaselineError(
            f"no baseline {printable(device_key or '') or '*'}.json under {folder}: {found}. "
            "Choose the folder with --baselines"
        )
    return [Target(path, load_baseline(path)) for path in known]


def _fitting(known: Sequence[Target], device_key: str | None, check: Callable[[Baseline], object]) -> list[Target]:
    """Return the baseline of a device, or all that hold what is asked for.

    Raises:
        UsageError: ``check`` finds it in none of them.
    """
    if device_key:
        return [target for target in known if target.path.stem == device_key]
    found, errors = [], []
    for target in known:
        try:
            check(target.baseline)
        except UsageError as error:
            errors.append(error)
        else:
            found.append(target)
    if not found:
        raise errors[0]
    return found


def _refuse_several(folder: Path, chosen: Sequence[Target], exclusive: Sequence[Target]) -> None:
    """Reject files of several kinds of devices, or several that are ``exclusive``, unless one was chosen.

    Raises:
        UsageError: it is not clear which device is meant.
    """
    if len(exclusive) > 1 or len({target.kind for target in chosen}) > 1:
        names = [target.path.stem for target in chosen]
        raise UsageError(
            f"{folder} holds baselines of {len(chosen)} devices: choose one with --device-key: {_all(names)}"
        )


def prune(folder: Path, device_key: str | None, condemned: Condemned, *, dry_run: bool) -> Iterator[str]:
    """Remove records, or with ``dry_run`` only say what would be removed; yield a line for each file.

    Raises:
        UsageError: no such test, run or session, nothing was named, or it is not clear which device is meant.
        BaselineError: a file cannot be read, trusted or written.
    """
    if not (condemned.tests or condemned.runs or condemned.sessions or condemned.before):
        raise UsageError("llmperf prune: no criterion given; expected TEST, --run, --session or --before")
    chosen = _fitting(_targets(folder, device_key), device_key, condemned.removed_from)
    tests = {test for target in chosen for pattern in condemned.tests for test in find_tests(target.baseline, pattern)}
    whole_tests = not (condemned.runs or condemned.sessions or condemned.before)
    exclusive = [target for target in chosen if not whole_tests or target.is_of_one_machine([*tests], None)]
    _refuse_several(folder, chosen, exclusive)
    for target in chosen:
        yield _prune_in(target.path, condemned, dry_run=dry_run)


def _prune_in(path: Path, condemned: Condemned, *, dry_run: bool) -> str:
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
