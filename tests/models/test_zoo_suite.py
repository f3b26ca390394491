"""The ready-made suite on every entry of the zoo: measured as counted by hand, or refused or skipped with a reason.

The outcomes are the table of ``docs/models.md``. ``LLMPERF_WRITE_MODELS=1`` writes it anew.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import pytest
from filelock import FileLock
from zoo import ZOO, Entry

from pytest_llmperf.storage.process_result import ProcessResult
from pytest_llmperf.storage.schema import TestResult

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("bitsandbytes")

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
BATCH, INPUT, OUTPUT = 2, 12, 6
QUANTIZATIONS = ("bf16", "nf4", "int8")
EXECUTIONS = ("generate", "loop", "graph", "compile")
MACHINE = re.compile("AVX512-BF16|needs peft")
"""What a refusal names that depends on the machine or on what is installed."""
FAMILIES = [
    "llama",
    "gpt2",
    "gpt_neox",
    "opt",
    "bloom",
    "falcon",
    "mpt",
    "phi3",
    "qwen3",
    "gemma3_text",
    "mistral",
    "cohere",
    "glm",
    "openai-gpt",
    "mixtral",
    "mamba",
    "mamba2",
    "rwkv",
    "bamba",
    "lfm2",
    "llava",
    "blip-2",
    "t5",
    "bart",
    "marian",
    "m2m_100",
    "bert",
    "roberta",
    "distilbert",
]
"""Architectures that each run of the tests tries, at least one of each kind, beside the checkpoints.

The page has all of the zoo; `test_zoo_generation` has the generation configs.
"""

COLUMNS = [("bf16", "generate"), ("bf16", "loop"), ("bf16", "compile"), ("nf4", "loop"), ("int8", "loop")]
LEFT_OUT = " and ".join(
    f"not {name}-b{BATCH}-{execution}" for name in ("nf4", "int8") for execution in ("generate", "graph")
)
START, END = "<!-- table -->\n", "<!-- end of table -->\n"
WRITES = bool(os.environ.get("LLMPERF_WRITE_MODELS"))

ENTRIES = [
    one
    for name, one in ZOO.items()
    if WRITES or name in FAMILIES or (one.family == "checkpoint" and not name.startswith("generation-"))
]

COMPILED = """
import pytest
from pytest_llmperf import Compile


@pytest.mark.parametrize("llm", ["bf16"], indirect=True)
def test_compile(llm, llmperf):
    llmperf.generate(llm, batch_size=2, execution=Compile(backend="eager"))
"""
"""The suite's execution ``compile`` without the compiler, which takes ten seconds a model."""


@dataclass(frozen=True)
class Cell:
    """What the suite did with one entry in one quantization by one execution."""

    quantization: str
    execution: str
    outcome: str
    """``measured``, ``skipped`` or ``refused``; ``error`` must not occur."""
    reason: str = ""


@pytest.mark.usefixtures("old_objects_aside")
@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_the_suite_on(entry, project, tmp_path):
    """Each entry is built and loaded once for each quantization. No cell is an error; figures are those by hand."""
    folder, journal = entry.build(tmp_path / "zoo" / entry.name), tmp_path / "one.jsonl"
    cells, results = suite_on(project, folder, journal, quantizations_of(entry))
    if WRITES:
        write_page(entry.name, cells)
    check_page(entry.name, cells)
    assert [cell for cell in cells if cell.outcome == "error"] == []
    if entry.refused or MACHINE.search(cells[0].reason):
        assert any((entry.refused or "peft") in cell.reason for cell in cells if cell.outcome != "measured")
    else:
        assert any(cell.outcome == "measured" for cell in cells)
    for result in results:
        check(entry, result)


def quantizations_of(entry: Entry) -> Sequence[str]:
    """A checkpoint that is quantized already is taken as it is."""
    if entry.name.startswith(("stored-", "declared-")):
        return ("stored",)
    return ("bf16",) if entry.family == "checkpoint" else QUANTIZATIONS


def suite_on(project, folder: Path, journal: Path, quantizations: Sequence[str]):
    """Run the suite, and compile without the compiler, on one checkpoint; return outcomes and results."""
    project.write(COMPILED, conftest="")
    dense = ",".join(quantizations)
    result = project.pytester.runpytest_inprocess(
        "--llmperf", "--device=cpu", f"--llmperf-model={folder}", f"--llmperf-quantization={dense}",
        "--llmperf-execution=generate,loop,graph", f"--llmperf-batch-sizes={BATCH}",
        f"--llmperf-input-tokens={INPUT}", f"--llmperf-output-tokens={OUTPUT}", "--llmperf-requests=1",
        "--llmperf-warmup=0", "--llmperf-measure-only", f"--llmperf-journal={journal}", "--llmperf-explain=off",
        "-p", "no:cacheprovider", "-k", LEFT_OUT, "--pyargs", "pytest_llmperf.suite.test_quantization",
        *(["test_perf.py"] if "bf16" in quantizations else []),
    )  # fmt: skip
    notes = ProcessResult.read(journal).notes if journal.exists() else {}
    reports = result.reprec.getreports("pytest_runtest_logreport")
    cells = [_cell(report, notes) for report in reports if report.when == "call" or not report.passed]
    if not cells:
        cells = [Cell("-", "-", *_refused(line)) for line in result.errlines if line.startswith("ERROR: ")]
    return cells, _results(journal)


def _cell(report, notes) -> Cell:
    name = report.nodeid.rpartition("::")[2]
    axes = name.partition("[")[2].rstrip("]").split("-")
    execution = "compile" if "test_compile" in name else next((one for one in EXECUTIONS if one in axes), "-")
    quantization = next((one for one in ("stored", *QUANTIZATIONS) if one in axes), "-")
    if report.passed:
        return Cell(quantization, execution, "measured")
    if report.skipped:
        return Cell(quantization, execution, "skipped", report.longrepr[2].removeprefix("Skipped: "))
    note = next((note for test, note in notes.items() if test.endswith(name)), None)
    line = note.error if note and note.error else report.longreprtext.strip().splitlines()[-1]
    return Cell(quantization, execution, *_refused(line))


def _refused(line: str) -> tuple[str, str]:
    """A refusal is an error of ours that names the reason; what the libraries raise is an error."""
    found = re.search(r"(?:ERROR: |Failed: |\b(?:UsageError|ModelError|MissingDependency): )(.*)", line)
    return ("refused", found[1]) if found else ("error", line)


def _results(journal: Path) -> list[TestResult]:
    from pytest_llmperf.storage.journal import read_results

    return read_results(journal.read_text(encoding="utf-8"))[1] if journal.exists() else []


def check(entry: Entry, result: TestResult) -> None:
    """Compare the figures that are known by hand."""
    if entry.weights is not None and result.workload.quantization == "bf16":
        assert result.value("weights") == entry.weights
    if entry.cache is not None and result.workload.execution != "compile":  # a static cache keeps one position more
        assert result.value("kv_cache") == entry.cache(BATCH, INPUT, OUTPUT)
    tokens = BATCH * OUTPUT
    assert result.observation.tokens_produced == tokens * result.observation.requests


def check_page(name: str, cells: Sequence[Cell]) -> None:
    """The page says the same, except where a refusal depends on the machine."""
    page = PAGE.read_text(encoding="utf-8")
    if any(map(MACHINE.search, [*reasons_of(name, cells), *_lines(page, f"- `{name}`")])):
        return
    assert _lines(page, f"| {name} |") == [row_of(name, cells)]


def _lines(page: str, start: str) -> list[str]:
    return [line for line in page.splitlines() if line.startswith(start)]


def write_page(name: str, cells: Sequence[Cell]) -> None:
    """Put an entry's row and reasons into the page, in the order of the zoo."""
    with FileLock(PAGE.with_suffix(".lock")):
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
        table, _, after = rest.partition(END)
        rows = {one: _lines(table, f"| {one} |") for one in ZOO} | {name: [row_of(name, cells)]}
        reasons = {one: _lines(table, f"- `{one}`") for one in ZOO} | {name: reasons_of(name, cells)}
        heading = "| checkpoint | kind | " + " | ".join(" ".join(column) for column in COLUMNS) + " |"
        lines = [heading, "|---" * (len(COLUMNS) + 2) + "|", *chain(*rows.values()), "", *chain(*reasons.values()), ""]
        PAGE.write_text(f"{before}{START}{chr(10).join(lines)}{END}{after}", encoding="utf-8")


def row_of(name: str, cells: Sequence[Cell]) -> str:
    words = [cell.outcome.replace("measured", "yes") if (cell := _of(cells, *column)) else "" for column in COLUMNS]
    return f"| {name} | {ZOO[name].family} | {' | '.join(words)} |"


def reasons_of(name: str, cells: Sequence[Cell]) -> list[str]:
    """Return a line for each reason, with the columns that it is about."""
    found: dict[str, list[str]] = {}
    for column in COLUMNS:
        if (cell := _of(cells, *column)) and cell.reason:
            reason = re.sub(r"'[^']*/zoo/([^/']+)[^']*'", r"'\1'", cell.reason)
            found.setdefault(f"{cell.outcome}: {reason}", []).append(" ".join(column))
    return [f"- `{name}` ({', '.join(columns)}) {reason}" for reason, columns in found.items()]


def _of(cells: Sequence[Cell], quantization: str, execution: str) -> Cell | None:
    """Return the cell of a column; a checkpoint that is quantized already stands in the first ones."""
    same = {quantization} | ({"stored", "-"} if quantization == "bf16" else set())
    return next((cell for cell in cells if cell.quantization in same and cell.execution in (execution, "-")), None)
