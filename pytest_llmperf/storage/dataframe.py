"""Export baselines as a pandas DataFrame, CSV or Parquet: one row per cell and run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_llmperf.errors import BaselineError, MissingDependency, UsageError
from pytest_llmperf.metrics import METRICS, Scalar
from pytest_llmperf.storage.baseline_file import baseline_files, load_baseline
from pytest_llmperf.storage.schema import Baseline, CellRun, Run, Workload
from pytest_llmperf.text import printable

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Scalar]

_FORMULA_SIGNS = ("=", "+", "-", "@")

COLUMNS: dict[str, str] = {
    "device_key": "device that the file belongs to",
    "run_id": "run: one fresh process",
    "session_id": "runs made close together on one boot of one machine",
    "time": "start of the run, UTC",
    "commit": "commit of the measured project",
    "dirty": "whether its tracked files differed from the commit",
    "test": "test, including its parameters",
    "metric": "metric's key, including its unit",
    "unit": "the metric's unit",
    "value": "the run's value: median over requests; missing if not measured or not a number",
    "text": "value of a text metric (token_digest)",
    "count": "number of requests behind the value",
    "mean_log": "mean of the logarithms of the requests' values",
    "mad_log": "median absolute deviation of those logarithms",
    "reason": "why there is no value",
    "workload": "hash of the workload",
    **{field: f"workload: {field.replace('_', ' ')}" for field in Workload.model_fields},
    "settings": "workload: other requested settings, as JSON",
}
"""All columns with their descriptions; ``env_*`` columns follow, one for each field of the environment."""

TYPES: dict[str, str] = {
    **dict.fromkeys(COLUMNS, "string"),
    **dict.fromkeys(("value", "mean_log", "mad_log"), "float64"),
    **dict.fromkeys(("count", "batch_size", "input_tokens", "output_tokens"), "int64"),
    "time": "datetime64[us, UTC]",
    "dirty": "boolean",
}
"""Types of these columns in exports, also of empty ones, so that files can be concatenated."""


def load_runs(path: str | Path) -> pd.DataFrame:
    """Load every cell of every run under ``path`` (a baseline file, a run's journal, or a folder of them).

    Returns:
        One row per cell and run, with the columns of an export and ``env_*``.

    Raises:
        BaselineError: there is none, or one cannot be read or is invalid.
    """
    return _frame(_rows(path))


def export_runs(source: str | Path, target: Path) -> int:
    """Write the rows of ``load_runs`` as ``.csv`` or ``.parquet``, with control characters escaped.

    In CSV, an apostrophe precedes texts that a spreadsheet would take for a formula
    (https://owasp.org/www-community/attacks/CSV_Injection).

    Returns:
        The number of rows written.

    Raises:
        UsageError: the suffix is neither; ``MissingDependency`` for Parquet without pyarrow.
        BaselineError: the source cannot be read, or the target cannot be written.
    """
    if target.suffix not in {".csv", ".parquet"}:
        raise UsageError(f"cannot export to {target}: expected a name ending in .csv or .parquet")
    as_csv = target.suffix == ".csv"
    frame = _frame(_each_text(row, _inert if as_csv else printable) for row in _rows(source)).astype(TYPES)
    try:
        if as_csv:
            frame.to_csv(target, index=False)
        else:
            frame.to_parquet(target, index=False)
    except ImportError as error:
        raise MissingDependency("pyarrow", extra="parquet", purpose="exporting to Parquet") from error
    except OSError as error:
        raise BaselineError(f"cannot write {target}: {error.strerror or error}") from error
    return len(frame)


def _frame(rows: Iterable[Row]) -> pd.DataFrame:
    import pandas as pd

    made = list(rows)
    frame = pd.DataFrame(made, columns=None if made else list(COLUMNS))
    return frame.assign(time=pd.to_datetime(frame["time"], utc=True, format="ISO8601"))


def _each_text(row: Row, change: Callable[[str], str]) -> Row:
    return {change(name): change(value) if isinstance(value, str) else value for name, value in row.items()}


def _inert(text: str) -> str:
    """Escape a text so that neither a terminal nor a spreadsheet interprets it."""
    return f"'{printable(text)}" if text.startswith(_FORMULA_SIGNS) else printable(text)


def _rows(path: str | Path) -> Iterator[Row]:
    for file in baseline_files(Path(path)):
        baseline = load_baseline(file)
        runs = {run.run_id: run for run in baseline.runs}
        for cell in baseline.cells:
            yield _row(baseline, cell, runs[cell.run])


def _row(baseline: Baseline, cell: CellRun, run: Run) -> Row:
    metric, workload = METRICS.get(cell.metric), baseline.workloads[cell.workload]
    is_text = isinstance(cell.value, str)
    return {
        "device_key": baseline.device_key,
        "run_id": run.run_id,
        "session_id": run.session_id,
        "time": run.time,
        "commit": run.commit,
        "dirty": run.dirty,
        "test": cell.test,
        "metric": cell.metric,
        "unit": metric.unit if metric else None,
        "value": None if is_text or cell.value is None else float(cell.value),
        "text": cell.value if is_text else None,
        "count": cell.count,
        "mean_log": cell.mean_log,
        "mad_log": cell.mad_log,
        "reason": cell.reason,
        "workload": cell.workload,
        **workload.model_dump(),
        "settings": json.dumps(workload.settings, sort_keys=True),
        **{f"env_{name}": value for name, value in run.environment.items()},
    }
