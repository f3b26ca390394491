"""Metric definitions: each metric's unit, direction and tolerances.

A metric's key includes its unit (``tpot_ms``); users may also write the name without it (``tpot``).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from pytest_llmperf.errors import UsageError

METHOD = 3
"""Version of the measuring method. Runs of different versions are not compared."""

Scalar = str | bool | int | float | None
"""Types of values in records other than figures."""

COUNTED = frozenset(
    {
        "method",
        "device_type",
        "compute_capability",
        "cpu_capability",
        "torch",
        "transformers",
        "bitsandbytes",
        "torchao",
    }
)
"""Fields of a run's environment that counted work depends on. Its processor, driver and host are not among them."""


class Kind(StrEnum):
    """How a metric is judged."""

    TIMED = "timed"
    """Varies between runs: compared by the screen, with a margin."""
    EXACT = "exact"
    """Equal in identical runs: compared with the largest value in the baseline's window."""
    IDENTITY = "identity"
    """Text that is equal or not, such as a digest."""
    INFORMATIVE = "informative"
    """Explains other metrics and is never judged."""


class Better(StrEnum):
    """Which direction is better. Defined for each metric, never guessed from its name."""

    SMALLER = "smaller"
    LARGER = "larger"

    @property
    def sign(self) -> int:
        """Factor that makes larger values worse."""
        return 1 if self is Better.SMALLER else -1


@dataclass(frozen=True, kw_only=True)
class Metric:
    """Definition of a metric.

    ``tolerate`` is δ0, the relative change for the worse that is accepted. ``catch`` is δ1, the change that must be
    detected. ``floor`` is the absolute change, in the metric's unit, below which nothing is a regression.
    """

    name: str
    unit: str
    title: str
    definition: str
    kind: Kind
    better: Better = Better.SMALLER
    tolerate: float = 0.0
    catch: float = 0.0
    floor: float = 0.0
    gates: bool = False
    """Whether the metric can fail a test by default."""
    depends_on: frozenset[str] | None = None
    """Fields of the environment in which a difference prevents a comparison; ``None`` for all fields that block."""

    @property
    def key(self) -> str:
        """The stored name, including the unit."""
        named = not self.unit or f"_{self.unit}_" in f"_{self.name}_"
        return self.name if named else f"{self.name}_{self.unit}"


@dataclass(frozen=True, kw_only=True)
class Limit:
    """Limits of one cell: change to accept (``tolerate``, δ0) or detect (``catch``, δ1), and whether it gates."""

    tolerate: float
    catch: float
    floor: float
    gates: bool

    @classmethod
    def of(cls, metric: Metric) -> Limit:
        """The limits from a metric's definition."""
        return cls(tolerate=metric.tolerate, catch=metric.catch, floor=metric.floor, gates=metric.gates)


NO_DECODE = "one output token has no decode: ask for two or more"
"""Why a request with a single output token has no decode figures."""

NO_CACHE = "the request kept no KV cache"
"""Why a request has no size of the KV cache."""
SEVERAL_AT_A_TIME = "several tokens arrived at a time: the gaps between them are unknown"
"""Why figures of single tokens are missing."""
ONE_STEP = "growth needs two steps of decode: ask for three or more output tokens"
"""Why a request with a single step of decode has no growth."""


@dataclass(frozen=True)
class Figure:
    """A metric's value, not yet assigned to a test and run; ``None`` if not measured, and ``reason`` says why."""

    metric: str
    value: float | str | None
    reason: str = ""
    count: int = 1
    mean_log: float | None = None
    mad_log: float | None = None


MIB = 1024**2


def _timed(  # noqa: PLR0913  # the fields of a definition
    name: str,
    title: str,
    definition: str,
    *,
    unit: str = "ms",
    better: Better = Better.SMALLER,
    floor: float = 0.0,
    gates: bool = False,
) -> Metric:
    return Metric(
        name=name,
        unit=unit,
        title=title,
        definition=definition,
        kind=Kind.TIMED,
        better=better,
        tolerate=0.02,
        catch=0.05,
        floor=floor,
        gates=gates,
    )


def _counted(  # noqa: PLR0913  # the fields of a definition
    name: str,
    title: str,
    definition: str,
    *,
    gates: bool,
    unit: str = "",
    depends_on: frozenset[str] | None = COUNTED,
) -> Metric:
    return Metric(
        name=name, unit=unit, title=title, definition=definition, kind=Kind.EXACT, gates=gates, depends_on=depends_on
    )


def _of_dynamo(name: str, title: str, definition: str) -> Metric:
    """Define a count of dynamo, which reads Python's bytecode and gives way to what traces it."""
    return _counted(name, title, definition, gates=True, depends_on=COUNTED | {"python", "tracing"})


_UNTIMED = "from one untimed request; from two with different prompts that agree, where the work depends on the data"


def _work(name: str, title: str, definition: str, *, unit: str = "", gates: bool = False) -> tuple[Metric, ...]:
    """Counted work per token of decode, and of the prefill."""
    return (
        _counted(
            f"{name}_per_token",
            f"{title} / token",
            f"{definition} during decode / (output tokens - 1), {_UNTIMED}",
            unit=unit,
            gates=gates,
        ),
        _counted(f"prefill_{name}", f"prefill {title}", f"{definition} until the first token", unit=unit, gates=gates),
    )


def _growth(name: str, title: str, *, unit: str = "") -> Metric:
    return _counted(
        f"{name}_growth",
        f"{title} growth",
        f"{title} of the last step of decode, less those of the first, / (steps - 1)",
        unit=unit,
        gates=False,
    )


def _explaining_ms(name: str, title: str, definition: str) -> Metric:
    return Metric(name=name, unit="ms", title=title, definition=definition, kind=Kind.INFORMATIVE)


def _assistance(name: str, title: str, definition: str, *, unit: str = "") -> Metric:
    return Metric(
        name=name,
        unit=unit,
        title=title,
        definition=definition,
        kind=Kind.EXACT,
        better=Better.LARGER,
        tolerate=0.01,
        catch=0.03,
        gates=True,
    )


def _memory(name: str, title: str, definition: str, *, gates: bool, depends_on: frozenset[str] | None = None) -> Metric:
    return Metric(
        name=name,
        unit="bytes",
        title=title,
        definition=definition,
        kind=Kind.EXACT,
        tolerate=0.01,
        catch=0.03,
        floor=16 * MIB,
        gates=gates,
        depends_on=depends_on,
    )


def _held(name: str, title: str, definition: str) -> Metric:
    """Define the bytes of tensors that a model holds: they follow from its shapes, on any machine."""
    return _memory(name, title, definition, gates=True, depends_on=COUNTED)


def _itl_percentile(q: int) -> Metric:
    return Metric(
        name=f"itl_p{q}",
        unit="ms",
        title=f"ITL p{q}",
        definition=f"{q}th percentile of the gaps between consecutive tokens, over all measured requests",
        kind=Kind.INFORMATIVE,
    )


def _phase_memory(phase: str) -> tuple[Metric, ...]:
    return (
        _memory(
            f"{phase}_peak_allocated",
            f"{phase} peak allocated",
            f"largest number of tensor bytes alive at once on the device during {phase}",
            gates=True,
        ),
        _memory(
            f"{phase}_peak_reserved",
            f"{phase} peak reserved",
            f"largest number of bytes that the device's caching allocator held during {phase}",
            gates=False,
        ),
        # RSS depends on what the process did before this test, so it gates only on request.
        _memory(
            f"{phase}_peak_rss",
            f"{phase} peak RSS",
            f"largest resident set of the process on the host during {phase}",
            gates=False,
        ),
    )


_DEFINITIONS: tuple[Metric, ...] = (
    _timed(
        "tpot",
        "TPOT",
        "(last token - first token) / (output tokens - 1), per request; where several tokens come at a time, / tokens "
        "after those that came first",
        floor=0.05,
        gates=True,
    ),
    _timed("ttft", "TTFT", "request in to first output token available, per request", floor=0.2),
    _timed("e2e", "end to end", "request in to last output token available, per request"),
    _timed(
        "prefill",
        "prefill rate",
        "batch size x input tokens / TTFT",
        unit="tokens_per_s",
        better=Better.LARGER,
    ),
    _timed(
        "decode",
        "decode rate",
        "batch size / TPOT",
        unit="tokens_per_s",
        better=Better.LARGER,
    ),
    _timed(
        "output",
        "output rate",
        "output tokens of all requests / (last token - first arrival)",
        unit="tokens_per_s",
        better=Better.LARGER,
        gates=True,
    ),
    _timed(
        "total",
        "total rate",
        "input and output tokens of all requests / (last token - first arrival)",
        unit="tokens_per_s",
        better=Better.LARGER,
    ),
    _timed(
        "speedup",
        "speed-up",
        "how many times as fast a workload was as another in the same run, by the figure it is measured for",
        unit="ratio",
        better=Better.LARGER,
        gates=True,
    ),
    _timed(
        "call",
        "call",
        "one call of a callable: median over replays of a CUDA graph, over eager calls where there is none",
        gates=True,
    ),
    _timed("eager_call", "eager call", "one eager call of a callable that a CUDA graph was made of as well"),
    *(_itl_percentile(q) for q in (10, 25, 50, 75, 90, 95, 99)),
    _explaining_ms(
        "e2e_wall",
        "end to end, wall",
        "the same request by the host's clock, the device synchronized before and after",
    ),
    _explaining_ms("load", "load time", "from_pretrained until every weight is on the device; once per model and run"),
    _explaining_ms(
        "compile", "compile time", "the first request of a compiled decode, less the first one that compiled nothing"
    ),
    _explaining_ms("cold_ttft", "cold TTFT", "TTFT of the first request of a compiled decode"),
    _explaining_ms("capture", "capture time", "capturing and first replaying all CUDA graphs of decode"),
    _explaining_ms("lateness", "lateness", "from when a request was due to when it was sent, per request"),
    _held("weights", "weights", "bytes of parameters, buffers and quantization state, as measured"),
    _held("assistant_weights", "assistant's weights", "the same of the draft model of assisted decoding"),
    _held("kv_cache", "KV cache", "bytes of keys, values and recurrent states after the last token"),
    *(metric for phase in ("load", "prefill", "decode", "serving") for metric in _phase_memory(phase)),
    _memory(
        "graph_memory",
        "graph memory",
        "bytes that the device's caching allocator holds more after capturing the CUDA graphs of decode than before",
        gates=True,
    ),
    Metric(
        name="graph_device_memory",
        unit="bytes",
        title="graph memory, driver",
        definition="bytes of the device that are free before capturing the CUDA graphs of decode and not after, by the "
        "driver: what it keeps of them beside the allocator, and what other processes took meanwhile",
        kind=Kind.INFORMATIVE,
    ),
    *_work("operators", "operators", "operators dispatched", gates=True),
    *_work(
        "flops",
        "FLOPs",
        "floating-point operations of matrix products, convolutions and attention, two for a multiplication and its "
        "addition, where operators that work number by number count 0,",
        unit="flops",
        gates=True,
    ),
    *_work(
        "moved_bytes",
        "bytes moved",
        "bytes of each argument that an operator reads and of each result that it writes, where views move nothing and "
        "a gather reads what it returns,",
        unit="bytes",
        gates=True,
    ),
    *_work("allocations", "allocations", "storages allocated for the operators' results"),
    *_work("allocated_bytes", "allocated", "bytes of the storages allocated for the operators' results", unit="bytes"),
    _growth("operators", "operators"),
    _growth("flops", "FLOPs", unit="flops"),
    _growth("moved_bytes", "bytes moved", unit="bytes"),
    Metric(
        name="intensity",
        unit="",
        title="intensity",
        definition="FLOPs of decode / bytes moved during decode",
        kind=Kind.INFORMATIVE,
        better=Better.LARGER,
    ),
    _of_dynamo("graph_breaks", "graph breaks", "places at which dynamo had to split what it compiles"),
    _of_dynamo("unique_graphs", "graphs", "graphs that dynamo handed to the compiler"),
    _of_dynamo("recompilations", "recompilations", "frames that dynamo compiled once more, for other inputs"),
    Metric(
        name="graphs_from_cache",
        unit="",
        title="graphs from cache",
        definition="of the graphs, how many the compiler found on disk, compiled by an earlier process",
        kind=Kind.INFORMATIVE,
        better=Better.LARGER,
    ),
    _counted(
        "kernel_launches_per_token",
        "kernels / token",
        "kernels that ran on the device during decode / (output tokens - 1), from two profiled requests that agree",
        gates=True,
        depends_on=None,  # libraries choose their kernels by the device and their version
    ),
    _counted(
        "syncs_per_token",
        "synchronizations / token",
        "calls during decode by which the host waits for the device / (output tokens - 1), profiled as well",
        gates=True,
        depends_on=COUNTED | {"runtime"},
    ),
    _assistance(
        "acceptance",
        "acceptance rate",
        "assisted decoding: proposed tokens that the model accepted / proposed tokens, from one untimed request",
        unit="share",
    ),
    _assistance("tokens_per_step", "tokens / step", "assisted decoding: output tokens / forwards of the main model"),
    Metric(
        name="host",
        unit="share",
        title="host share",
        definition="1 - time that the device works on a token (profiled) / TPOT: how much of a step waits for the host",
        kind=Kind.INFORMATIVE,
    ),
    Metric(
        name="bandwidth",
        unit="share",
        title="bandwidth",
        definition="bytes that a step of decode must read / TPOT / copy bandwidth of the device",
        kind=Kind.INFORMATIVE,
        better=Better.LARGER,
    ),
    _explaining_ms(
        "roofline_ttft",
        "roofline TTFT",
        "least time of the prefill's counted work: the larger of FLOPs / peak rate and bytes / bandwidth, with "
        "measured rates of matrix products and of a copy, or with those of a fake device's data sheet",
    ),
    _explaining_ms("roofline_tpot", "roofline TPOT", "the same of a token of decode"),
    Metric(
        name="memory",
        unit="share",
        title="memory share",
        definition="largest number of bytes of live tensors, from loading to the last token / memory of the GPU that a "
        "fake device stands for",
        kind=Kind.INFORMATIVE,
    ),
    Metric(
        name="prefix_hit",
        unit="share",
        title="prefix hits",
        definition="prompt tokens that the engine took from its prefix cache / prompt tokens, over the timed passes",
        kind=Kind.INFORMATIVE,
        better=Better.LARGER,
    ),
    Metric(
        name="energy",
        unit="mj_per_token",
        title="energy / token",
        definition="energy of the device from the first timed request to the last / output tokens of all sequences",
        kind=Kind.INFORMATIVE,
    ),
    # Other kernels round differently: this explains other changes and gates only on request.
    _counted(
        "tokens_unlike_loop",
        "tokens unlike loop's",
        "output tokens that differ from the bare loop's; of assisted decoding, from those of plain generate",
        gates=False,
        depends_on=None,  # the processor rounds
    ),
    # Shows that the work changed, not that it became slower or larger. Gates only on request.
    Metric(
        name="token_digest",
        unit="",
        title="token digest",
        definition="SHA-256 of the generated token ids, first 16 hexadecimal digits",
        kind=Kind.IDENTITY,
    ),
)

METRICS: Mapping[str, Metric] = {metric.key: metric for metric in _DEFINITIONS}
"""All metrics by key, the primary one first."""

PRIMARY = METRICS["tpot_ms"]

PRIMARIES = (
    *(METRICS["output_tokens_per_s"], PRIMARY, METRICS["speedup_ratio"], METRICS["call_ms"]),
    METRICS["operators_per_token"],
)
"""Primary metrics: the first of these that a workload has. The last one is that of runs without times."""


def is_counted(key: str) -> bool:
    """Whether the metric of this key is known and does not depend on the machine."""
    return key in METRICS and METRICS[key].depends_on is not None


def primary_metric(keys: Iterable[str]) -> Metric:
    """The primary metric of a workload with cells of these metrics."""
    found = set(keys)
    return next((metric for metric in PRIMARIES if metric.key in found), PRIMARY)


_BY_NAME = {metric.name: metric for metric in _DEFINITIONS}


def find_metric(name: str) -> Metric:
    """Find a metric by key (``tpot_ms``) or name (``tpot``).

    Raises:
        UsageError: the metric is unknown; the message suggests the closest name.
    """
    metric = METRICS.get(name) or _BY_NAME.get(name)
    if metric is None:
        near = difflib.get_close_matches(name, _BY_NAME, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise UsageError(f"unknown metric {name!r}{hint}: expected one of {', '.join(sorted(_BY_NAME))}")
    return metric
