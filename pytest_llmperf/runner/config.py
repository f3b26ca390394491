"""Resolved options of a run: a marker overrides the command line, which overrides the ini file."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pytest_llmperf.engines.engine_registry import SERVER, TRANSFORMERS, check_engine_name
from pytest_llmperf.errors import UsageError
from pytest_llmperf.hardware.device import is_fake
from pytest_llmperf.measure.injection import FORMS, Injection, parse_injection
from pytest_llmperf.measure.prompt import Prompt
from pytest_llmperf.measure.serving_plan import SCHEDULERS
from pytest_llmperf.metrics import Kind, Limit, Metric, find_metric
from pytest_llmperf.models.attention import check_attention
from pytest_llmperf.models.quantization import DEFAULTS, STORED
from pytest_llmperf.models.source import stored_config
from pytest_llmperf.models.spec import ADAPTER_MODES, ModelSpec
from pytest_llmperf.runner.options import LIMIT_RULES_INI, SETTINGS, Option
from pytest_llmperf.system.paths import USERS_FOLDER_VARIABLE
from pytest_llmperf.text import first_line
from pytest_llmperf.verdict.model import Outcome

if TYPE_CHECKING:
    import pytest

    from pytest_llmperf.engines.executions.assisted import Assisted
    from pytest_llmperf.engines.executions.execution import Execution
    from pytest_llmperf.engines.executions.torch_compile import Compile
    from pytest_llmperf.hardware.data_sheet import DataSheet
    from pytest_llmperf.storage.requests_by_test import RequestCounts

ALL_METRICS = "*"

JUDGING = frozenset(
    {"baselines", "anchor", "baseline-ref", "fail-on", "confirm", "gate", "tolerate", "catch", "explain"}
)
"""Settings that do not change what is measured."""

_ALWAYS_OR_NEVER_FAILING = (Outcome.REGRESSED, Outcome.ERROR, Outcome.UNCHANGED)

_Share = TypeVar("_Share", float, float | None)


@dataclass(frozen=True)
class Factor:
    """A factor on the values of one metric."""

    metric: Metric
    factor: float

    def __str__(self) -> str:
        return f"{self.metric.name}:{100 * (self.factor - 1):+g}%"

    @classmethod
    def parse(cls, text: str) -> Factor:
        """Parse ``tpot:+50%``.

        Raises:
            UsageError: it has another form, is -100% or less, or the metric is not a number.
        """
        found = re.fullmatch(r"([\w.-]+):([+-]\d+(?:\.\d+)?)%", text.strip())
        if not found:
            raise UsageError(
                f"--llmperf-inject {text!r}: expected METRIC:+N% or METRIC:-N%, such as tpot:+50%, or {FORMS}"
            )
        metric = find_metric(found[1])
        factor = 1 + float(found[2]) / 100
        if metric.kind is Kind.IDENTITY or factor <= 0:
            raise UsageError(f"--llmperf-inject {text!r}: expected a numeric metric and a change above -100%")
        return cls(metric, factor)


@dataclass(frozen=True, kw_only=True)
class LimitLayer:
    """Limits from one source: gating metrics, and tolerances by metric name (``*`` for all timed ones)."""

    gate: frozenset[str] | None = None
    tolerate: Mapping[str, float] = field(default_factory=dict)
    catch: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class LimitRule:
    """Limits for the tests whose key matches a pattern."""

    pattern: re.Pattern[str]
    layer: LimitLayer

    @classmethod
    def parse(cls, line: str) -> LimitRule:
        """Parse ``REGEX => gate=tpot tolerate=tpot:3% catch=8%``.

        Raises:
            UsageError: it has another form.
        """
        pattern, arrow, settings = line.partition("=>")
        words = dict(word.partition("=")[::2] for word in settings.split())
        if not arrow or not words or not set(words) <= {"gate", "tolerate", "catch"}:
            raise UsageError(f"{LIMIT_RULES_INI}: {line!r}: expected REGEX => gate=... tolerate=... catch=...")
        try:
            compiled = re.compile(pattern.strip())
        except re.error as error:
            raise UsageError(f"{LIMIT_RULES_INI}: {pattern.strip()!r} is not a regular expression: {error}") from error
        return cls(pattern=compiled, layer=parse_layer(**words))


@dataclass(frozen=True, kw_only=True)
class Options:
    """The resolved settings of a run: the command line overrides the ini file."""

    device: str
    model: str | None
    revision: str | None
    adapter: str | None
    trust_remote_code: bool
    """Whether code that comes with ``model`` may run."""
    quantization: tuple[str, ...]
    attentions: tuple[str, ...]
    """Empty: the library's default."""
    batch_sizes: tuple[int, ...]
    input_lengths: tuple[int, ...]
    """Prompt lengths; several are an axis of the ready-made suite."""
    output_tokens: int
    prompt: Prompt
    executions: tuple[str, ...]
    compile: Compile
    """The execution that ``compile`` names."""
    assisted: Assisted | None
    """The execution that ``assisted`` names, if there is a draft model."""
    sheet: DataSheet | None
    """The GPU that a fake CUDA device stands for; ``None`` for other devices."""
    engine: str
    base_url: str | None
    schedulers: tuple[str, ...]
    serve_requests: int
    max_batch_size: int
    shared_prefix: int
    rate: float | None
    throughput_sequences: int | None
    throughput_lengths: tuple[int, int] | None
    requests: int
    warmup: int
    guards: frozenset[str]
    baselines: Path
    anchor: str | None
    update: str
    """``all``, ``new`` or empty."""
    force_update: bool
    injections: tuple[Factor | Injection, ...]
    json_folder: Path | None
    journal: Path | None
    profile: Path | None
    """Folder of the traces of profiled requests; ``None`` if the run does not profile."""
    explain: bool
    only: frozenset[str]
    isolate: bool
    tell: Path | None
    confirm: int
    screen: bool
    timeout_s: float | None
    """Time limit of loading a model and of a test's body, in s; 0 for none, ``None`` to derive it from the baseline."""
    fail_on: frozenset[Outcome]
    baseline_ref: str | None
    verdicts: Path | None
    report: Path | None
    measure_only: bool
    requests_by_test: Mapping[str, RequestCounts]
    """Numbers of requests of some tests, whatever they ask for themselves."""
    times_only: bool
    """Whether only times are measured: no counted work and no memory."""
    counted: bool
    """Whether work is counted and no times are measured."""
    ini_layer: LimitLayer
    rules: tuple[LimitRule, ...]
    command_line_layer: LimitLayer

    @property
    def specs(self) -> list[ModelSpec]:
        """Models of ``llm`` in tests that do not parametrize it: every quantization with every attention."""
        return [ModelSpec(quantization=q, attention=a) for q in self.quantization for a in self.attentions or (None,)]

    @property
    def loads_models(self) -> bool:
        """Whether the ``engine`` fixture serves models that are loaded here, like ``llm``."""
        return self.engine == TRANSFORMERS

    @property
    def served(self) -> Sequence[ModelSpec | str]:
        """Parameters of ``engine`` in tests that do not parametrize it: ``specs``, or the engine's own model."""
        return self.specs if self.loads_models else [self.model or self.engine]

    @property
    def attention(self) -> str | None:
        """The attention implementation of models whose test names none.

        Raises:
            UsageError: several were named, so such a test's attention is ambiguous.
        """
        if len(self.attentions) > 1:
            raise UsageError(
                f"--llmperf-attention {','.join(self.attentions)}: ambiguous for a test that parametrizes llm without "
                "an attention; expected one name: or set ModelSpec(attention=...) in the test"
            )
        return next(iter(self.attentions), None)

    @property
    def input_tokens(self) -> int:
        """The prompt length of a test that sets none.

        Raises:
            UsageError: several were given, so such a test's length is ambiguous.
        """
        if len(self.input_lengths) > 1:
            raise UsageError(
                f"--llmperf-input-tokens {self._lengths}: several lengths are for the ready-made suite, and this test "
                "sets none: give one length, or pass input_tokens= in the test"
            )
        return self.input_lengths[0]

    @property
    def shapes(self) -> dict[str, tuple[int, int | None]]:
        """Batch size and prompt length of the ready-made suite's tests, by test id.

        The length is ``None`` where the run has only one, which then is no part of the id.
        """
        lengths = self.input_lengths if len(self.input_lengths) > 1 else (None,)
        return {
            f"b{size}" if length is None else f"b{size}-in{length}": (size, length)
            for size in self.batch_sizes
            for length in lengths
        }

    @property
    def factors(self) -> list[Factor]:
        """Injections that multiply measured values."""
        return [injection for injection in self.injections if isinstance(injection, Factor)]

    @property
    def request_injections(self) -> list[Injection]:
        """Injections that change the model's requests: delays, held memory, smaller batches."""
        return [injection for injection in self.injections if not isinstance(injection, Factor)]

    @property
    def updates(self) -> bool:
        """Whether this run is appended to the baseline."""
        return bool(self.update)

    @property
    def confirms(self) -> bool:
        """Whether possible regressions are measured again before they may fail."""
        return self.confirm > 0 and not self.measure_only and not self.screen

    @classmethod
    def from_config(cls, config: pytest.Config) -> Options:
        """Resolve and check every option.

        Raises:
            UsageError: a value is invalid, or two options contradict each other.
        """
        from pytest_llmperf.measure.guards import parse_guards  # heavy; this module checks markers in every run

        value = {option.name: _resolve(config, option) for option in SETTINGS}
        device = given_device(config)
        fake = is_fake(device)
        counted = fake or bool(config.getoption("llmperf_counted") or config.getini("llmperf_counted"))
        options = cls(
            device=device,
            model=_model(config, value["model"], engine=value["engine"]) or None,
            revision=value["revision"] or None,
            adapter=_adapter(value["adapter"]) if value["adapter"] else None,
            trust_remote_code=config.getoption("llmperf_trust_remote_code"),
            quantization=_quantizations(value),
            attentions=_names("--llmperf-attention", value["attention"]) if value["attention"] else (),
            batch_sizes=_wholes("--llmperf-batch-sizes", value["batch-sizes"]),
            input_lengths=_wholes("--llmperf-input-tokens", value["input-tokens"]),
            output_tokens=_whole("--llmperf-output-tokens", value["output-tokens"] or (8 if fake else 64)),
            prompt=Prompt.parse(value["prompt"]),
            executions=_names("--llmperf-execution", value["execution"] or ("loop" if fake else "generate")),
            compile=_compile(value["compile-mode"], value["dynamo"]),
            assisted=_assisted(value["assistant"]),
            sheet=_sheet(config, device, value["fake"]),
            engine=check_engine_name(value["engine"]),
            base_url=value["base-url"] or None,
            schedulers=_schedulers(value["schedulers"]),
            serve_requests=_whole("--llmperf-serve-requests", value["serve-requests"]),
            max_batch_size=_whole("--llmperf-max-batch-size", value["max-batch-size"]),
            shared_prefix=_whole("--llmperf-shared-prefix", value["shared-prefix"], at_least=0),
            rate=_rate(value["rate"]) if value["rate"] else None,
            throughput_sequences=(
                _whole("--llmperf-throughput-sequences", value["throughput-sequences"])
                if value["throughput-sequences"]
                else None
            ),
            throughput_lengths=_lengths(value["throughput-lengths"]) if value["throughput-lengths"] else None,
            requests=_whole("--llmperf-requests", value["requests"]),
            warmup=_whole("--llmperf-warmup", value["warmup"], at_least=0),
            guards=parse_guards(value["guards"]),
            baselines=_baselines(config),
            anchor=value["anchor"] or None,
            update=_update(config.getoption("llmperf_update")),
            force_update=config.getoption("llmperf_force_update"),
            injections=tuple(
                parse_injection(text) or Factor.parse(text) for text in config.getoption("llmperf_inject")
            ),
            json_folder=_given_path(config, "llmperf_json"),
            journal=_given_path(config, "llmperf_journal"),
            profile=_given_path(config, "llmperf_profile"),
            explain=_switch("--llmperf-explain", value["explain"]) and not counted,
            only=frozenset(config.getoption("llmperf_only")),
            isolate=config.getoption("llmperf_isolate") and not config.getoption("llmperf_tell"),
            tell=_given_path(config, "llmperf_tell"),
            confirm=_whole("--llmperf-confirm", value["confirm"], at_least=0),
            screen=config.getoption("llmperf_screen"),
            timeout_s=_seconds("--llmperf-timeout", value["timeout"]) if value["timeout"] else None,
            fail_on=failing_outcomes(value["fail-on"], strict=config.getoption("llmperf_strict")),
            baseline_ref=value["baseline-ref"] or None,
            verdicts=_given_path(config, "llmperf_verdicts"),
            report=_given_path(config, "llmperf_report"),
            measure_only=config.getoption("llmperf_measure_only"),
            requests_by_test=_requests_by_test(config.getoption("llmperf_requests_by_test")),
            times_only=config.getoption("llmperf_times_only"),
            counted=counted,
            ini_layer=_layer(config.getini),
            rules=tuple(LimitRule.parse(line) for line in config.getini(LIMIT_RULES_INI)),
            command_line_layer=_layer(config.getoption),
        )
        options._refuse_contradictions()
        _refuse_misled_root(config, value["model"])
        for spec in options.specs:
            check_attention(replace(spec, trust_remote_code=options.trust_remote_code))
        for name in options.executions:
            options.execution(name)
        return options

    def execution(self, given: str | Execution) -> Execution:
        """Return the execution of that name with this run's settings, or the one given.

        Raises:
            UsageError: no execution has that name, or it needs a draft model.
        """
        from pytest_llmperf.engines.executions.execution_registry import find_execution

        own = {one.name: one for one in (self.compile, self.assisted) if one}
        return own.get(given) or find_execution(given) if isinstance(given, str) else given

    def limits(self, test: str, marker: LimitLayer) -> Callable[[Metric], Limit]:
        """Return each metric's limit for a test: marker over command line over ini rules over ini over definition."""
        rules = [rule.layer for rule in self.rules if rule.pattern.search(test)]
        layers = [self.ini_layer, *rules, self.command_line_layer, marker]
        return lambda metric: _limit(metric, layers)

    @property
    def _lengths(self) -> str:
        return ",".join(map(str, self.input_lengths))

    def _refuse_contradictions(self) -> None:
        contradictions = {
            f"--llmperf-input-tokens {self._lengths} with a prompt that has its own length: leave out one": (
                len(self.input_lengths) > 1 and not self.prompt.is_random
            ),
            "--llmperf-inject: a baseline must not contain injected regressions: leave out --llmperf-update": (
                self.updates and self.injections
            ),
            "--llmperf-inject with --llmperf-measure-only: a run that compares nothing cannot fail: leave out one": (
                self.measure_only and self.injections and not self.journal
            ),
            "--llmperf-baseline-ref: the baseline of another revision is read-only: leave out "
            "--llmperf-update": self.updates and self.baseline_ref and not self.measure_only,
            "--llmperf-force-update needs --llmperf-update": self.force_update and not self.updates,
            "--llmperf-counted with --llmperf-profile: a run that only counts has no times: leave out one": (
                self.counted and self.profile
            ),
            "--llmperf-counted with --llmperf-times-only: nothing is left to measure: leave out one": (
                self.counted and self.times_only
            ),
            "--llmperf-times-only: a baseline needs counted work and memory: add --llmperf-measure-only, and leave out "
            "--llmperf-update": self.times_only and (self.updates or not self.measure_only),
            "--llmperf-profile: times of a profiled run cannot be compared: add --llmperf-measure-only, and leave out "
            "--llmperf-update": self.profile and (self.updates or not self.measure_only),
            f"--llmperf-base-url {self.base_url}: engine {self.engine!r} does not use a server: choose one that "
            "does with --llmperf-engine": self.base_url and self.loads_models,
            f"--llmperf-engine {self.engine} on device {self.device!r}: an engine loads weights: leave it out": (
                is_fake(self.device) and not self.loads_models
            ),
            f"--llmperf-adapter {self.adapter}: engine {self.engine!r} loads no adapters: leave it out": (
                self.adapter and not self.loads_models
            ),
        }
        for message, found in contradictions.items():
            if found:
                raise UsageError(message)


@dataclass(frozen=True, kw_only=True)
class TestSettings:
    """Keywords of ``@pytest.mark.llmperf(...)``; ``None`` uses the run's setting."""

    __test__ = False  # pytest would collect a class of this name

    gate: str | tuple[str, ...] | list[str] | None = None
    """Metrics that may fail the test: names, comma-separated or in a list; ``"none"`` for none."""
    tolerate: float | str | Mapping[str, float | str] | None = None
    """Accepted slowdown or growth: ``0.03`` or ``"3%"``, or a mapping from metric to either."""
    catch: float | str | Mapping[str, float | str] | None = None
    """Slowdown or growth that must be detected, in the same forms."""
    requests: int | None = None
    """Number of timed requests."""
    warmup: int | None = None
    """Maximum number of warm-up requests."""
    timeout: float | None = None
    """Time limit of the test's body, in seconds; 0 for none."""

    @classmethod
    def from_markers(cls, markers: list[pytest.Mark]) -> TestSettings:
        """Merge markers, given the nearest first; the nearest wins.

        Raises:
            UsageError: positional arguments, an unknown keyword, or a value of the wrong kind.
        """
        settings = cls()
        if not markers:
            return settings
        known = {one.name for one in fields(cls)}
        for marker in reversed(markers):
            unknown = sorted(set(marker.kwargs) - known)
            if marker.args or unknown:
                found = f"keyword {unknown[0]!r}" if unknown else f"positional {marker.args[0]!r}"
                raise UsageError(
                    f"@pytest.mark.llmperf: unexpected {found}; expected keywords {', '.join(sorted(known))}"
                )
            settings = replace(settings, **marker.kwargs)
        settings.layer()  # checks the limits now, while the test's name is known
        for name, at_least in (("requests", 1), ("warmup", 0)):
            value = getattr(settings, name)
            if value is not None:
                _whole(f"@pytest.mark.llmperf: {name}", value, at_least=at_least)
        if settings.timeout is not None:
            _seconds("@pytest.mark.llmperf: timeout", settings.timeout)
        return settings

    def layer(self) -> LimitLayer:
        """Return the marker's limits."""
        gate = self.gate if self.gate is None or isinstance(self.gate, str) else ",".join(map(str, self.gate))
        return LimitLayer(
            gate=_gate(gate) if gate is not None else None,
            tolerate=_shares("tolerate", self.tolerate),
            catch=_shares("catch", self.catch),
        )


def parse_layer(*, gate: str = "", tolerate: str = "", catch: str = "") -> LimitLayer:
    """Parse limits from text of the command line or the ini file; empty text sets none.

    Raises:
        UsageError: a metric is unknown, or a limit is not a share.
    """
    return LimitLayer(
        gate=_gate(gate) if gate else None,
        tolerate=_shares("tolerate", tolerate or None),
        catch=_shares("catch", catch or None),
    )


def baselines_arguments(config: pytest.Config, folder: Path) -> tuple[str, ...]:
    """Return the arguments that ``llmperf`` needs to find that folder from where pytest was started."""
    path = os.path.relpath(folder, config.invocation_params.dir)
    return () if path == "baselines" else ("--baselines", path)


def measuring_arguments(config: pytest.Config) -> tuple[str, ...]:
    """Return the given command-line options that affect what is measured, not how it is judged."""
    given = {option.flag: config.getoption(option.ini) for option in SETTINGS if option.name not in JUDGING}
    given["--llmperf-device"] = config.getoption("llmperf_device") or config.getoption("llmperf_short_device", None)
    flags = [flag for flag in ("trust-remote-code", "counted") if config.getoption(f"llmperf_{flag.replace('-', '_')}")]
    return (
        *(f"{flag}={value}" for flag, value in given.items() if value is not None),
        *(f"--llmperf-{flag}" for flag in flags),
    )


def _limit(metric: Metric, layers: list[LimitLayer]) -> Limit:
    gates, tolerate, catch = metric.gates, metric.tolerate, None
    for layer in layers:
        gates = metric.key in layer.gate if layer.gate is not None else gates
        tolerate = _share_of(metric, layer.tolerate, tolerate)
        catch = _share_of(metric, layer.catch, catch)
    if catch is None:
        # A wider tolerance raises the default of catch by as much.
        catch = tolerate + metric.catch - metric.tolerate
    if catch < tolerate:
        raise UsageError(f"{metric.name}: catch={catch:g} is less than tolerate={tolerate:g}: expected at least that")
    return Limit(tolerate=tolerate, catch=catch, floor=metric.floor, gates=gates)


def _share_of(metric: Metric, shares: Mapping[str, float], default: _Share) -> float | _Share:
    for_all = shares.get(ALL_METRICS) if metric.kind is Kind.TIMED else None
    return shares.get(metric.key, default if for_all is None else for_all)


def failing_outcomes(text: str, *, strict: bool, option: str = "--llmperf-fail-on") -> frozenset[Outcome]:
    """Return the outcomes that fail a test in addition to those that always do.

    Args:
        text: their names, comma-separated; may be empty.
        strict: whether every undecided outcome fails.
        option: the option that the text is from.

    Raises:
        UsageError: an outcome is unknown, or always or never fails.
    """
    choices = {str(outcome): outcome for outcome in Outcome if outcome not in _ALWAYS_OR_NEVER_FAILING}
    named = _names(option, text) if text else ()
    for name in named:
        if name not in choices:
            raise UsageError(f"{option} {name!r}: expected some of {', '.join(choices)}")
    undecided = {outcome for outcome in choices.values() if not outcome.decided}
    return frozenset(choices[name] for name in named) | (undecided if strict else frozenset())


def _gate(text: str) -> frozenset[str]:
    """Return the keys of the metrics that may fail a test."""
    if text.strip() == "none":
        return frozenset()
    return frozenset(_gating_metric(name).key for name in _names("gate", text))


def _gating_metric(name: str) -> Metric:
    metric = find_metric(name)
    if metric.kind is Kind.INFORMATIVE:
        raise UsageError(f"gate: {metric.name} is informative and never judged; choose another metric")
    return metric


def _shares(name: str, given: float | str | Mapping[str, float | str] | None) -> dict[str, float]:
    if given is None:
        return {}
    if isinstance(given, str) and ":" in given:
        given = dict(part.partition(":")[::2] for part in given.split(","))
    if isinstance(given, Mapping):
        return {find_metric(metric.strip()).key: _share(name, share) for metric, share in given.items()}
    return {ALL_METRICS: _share(name, given)}


def _share(name: str, given: object) -> float:
    """Parse a relative change: ``0.03``, ``"0.03"`` or ``"3%"``."""
    text = given.strip() if isinstance(given, str) else ""
    share = _amount(text[:-1]) / 100 if text.endswith("%") else _amount(given)
    if math.isnan(share):
        raise UsageError(f"{name}={given!r}: expected a share such as 3% or 0.03")
    return share


def _update(text: str) -> str:
    """Check the value of ``--llmperf-update``, which may be a path that follows the bare option."""
    if text not in ("", "all", "new"):
        raise UsageError(f"--llmperf-update {text}: expected all or new: write --llmperf-update=all {text}")
    return text


def _whole(name: str, given: object, *, at_least: int = 1) -> int:
    try:
        number = int(given)  # type: ignore[call-overload]  # int's errors are caught below
    except (TypeError, ValueError):
        number = None
    if number is None or isinstance(given, bool | float) or number < at_least:
        raise UsageError(f"{name} {given!r}: expected a whole number of at least {at_least}")
    return int(number)


def _wholes(name: str, text: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(_whole(name, part) for part in _names(name, text)))


def _switch(name: str, given: str) -> bool:
    if given not in ("on", "off"):
        raise UsageError(f"{name} {given!r}: expected on or off")
    return given == "on"


def _seconds(name: str, given: object) -> float:
    seconds = _amount(given)
    if math.isnan(seconds):
        raise UsageError(f"{name} {given!r}: expected a number of seconds, or 0 for no limit")
    return seconds


def _schedulers(text: str) -> tuple[str, ...]:
    names = _names("--llmperf-schedulers", text)
    for name in names:
        if name not in SCHEDULERS:
            raise UsageError(f"--llmperf-schedulers {name!r}: expected some of {', '.join(SCHEDULERS)}")
    return names


def _rate(text: str) -> float:
    rate = _amount(text)
    if not rate > 0:
        raise UsageError(f"--llmperf-rate {text!r}: expected requests per second, above 0")
    return rate


def _lengths(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)-(\d+)", text.strip())
    low, high = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 0 < low <= high:
        raise UsageError(f"--llmperf-throughput-lengths {text!r}: expected LOW-HIGH in tokens, such as 100-1024")
    return low, high


def _amount(given: object) -> float:
    """Return a finite number of at least 0, given as number or text; NaN for anything else."""
    try:
        number = float(given)  # type: ignore[arg-type]  # float's errors are caught below
    except (TypeError, ValueError):
        return math.nan
    return number if not isinstance(given, bool) and 0 <= number < math.inf else math.nan


def _names(name: str, text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not names:
        raise UsageError(f"{name} {text!r}: expected at least one name, comma-separated")
    return names


def _quantizations(value: Mapping[str, str]) -> tuple[str, ...]:
    """The quantizations that were named; else that of a quantized checkpoint, or the default ones."""
    if value["quantization"]:
        return _names("--llmperf-quantization", value["quantization"])
    return (STORED,) if value["model"] and stored_config(value["model"], value["revision"] or None) else DEFAULTS


def _resolve(config: pytest.Config, option: Option) -> str:
    given = config.getoption(option.ini)
    return str(given if given is not None else config.getini(option.ini))


def given_device(config: pytest.Config) -> str:
    """Return the device or devices to measure on, as named; in an xdist worker the assigned one.

    Raises:
        UsageError: the two options contradict each other.
    """
    if pinned := getattr(config, "workerinput", {}).get("llmperf_device"):
        return str(pinned)
    long, short = config.getoption("llmperf_device"), config.getoption("llmperf_short_device", None)
    if long and short and long != short:
        raise UsageError(f"--device {short} and --llmperf-device {long} contradict each other: give one")
    return str(long or short or config.getini("llmperf_device"))


def _model(config: pytest.Config, given: str, *, engine: str) -> str:
    """Return the model; a folder is looked up where pytest was started, or beside the ini file that names it.

    In a side of ``llmperf ab``, a folder that its checkout lacks is the user's: git ignores it, or it is outside.
    """
    if not given or engine == SERVER:  # a server has names of its own
        return given
    here = config.invocation_params.dir
    beside = here if config.getoption("llmperf_model") else _ini_folder(config)
    places = [beside]
    if users := os.environ.get(USERS_FOLDER_VARIABLE):
        places.append(Path(users, os.path.relpath(beside, here)))
    found = (place / given for place in places)
    return next((os.path.normpath(folder) for folder in found if folder.is_dir()), given)


def _sheet(config: pytest.Config, device: str, name: str) -> DataSheet | None:
    """The data sheet of the GPU that a fake CUDA device stands for."""
    if device == "fake-cuda":
        from pytest_llmperf.hardware.data_sheet import find_data_sheet

        return find_data_sheet(name)
    if config.getoption("llmperf_fake"):
        raise UsageError(f"--llmperf-fake {name}: device {device!r} stands for no GPU: expected --device fake-cuda")
    return None


def _adapter(given: str) -> str:
    if given not in ADAPTER_MODES:
        raise UsageError(f"--llmperf-adapter {given!r}: expected {' or '.join(ADAPTER_MODES)}")
    return given


def _compile(mode: str, dynamo: str) -> Compile:
    from pytest_llmperf.engines.executions.dynamo import parse_settings
    from pytest_llmperf.engines.executions.torch_compile import Compile

    return Compile(mode=mode, dynamo=parse_settings(dynamo))


def _assisted(assistant: str) -> Assisted | None:
    if not assistant:
        return None
    from pytest_llmperf.engines.executions.assisted import Assisted

    return Assisted(assistant)


def _refuse_misled_root(config: pytest.Config, model: str) -> None:
    """Reject a model path that pytest, before it knew our options, parsed as a test path and took its rootdir from."""
    here = config.invocation_params.dir
    if model not in config.invocation_params.args or not Path(model).is_dir() or config.inipath:
        return
    if not Path(model).resolve().is_relative_to(here):
        raise UsageError(
            f"pytest parsed {model} as a test path, and took {config.rootpath} as the root of the project: use "
            f"--llmperf-model={model}"
        )


def _requests_by_test(file: str | None) -> Mapping[str, RequestCounts]:
    if file is None:
        return {}
    from pytest_llmperf.storage.requests_by_test import read_requests_by_test

    try:
        return read_requests_by_test(Path(file))
    except (OSError, ValueError) as error:
        expected = 'expected a JSON object by test, such as {"test_a.py::test_b": {"timed": 3, "warmup": 1}}'
        raise UsageError(f"--llmperf-requests-by-test {file}: {first_line(error)}: {expected}") from error


def _given_path(config: pytest.Config, option: str) -> Path | None:
    given = config.getoption(option)
    return config.invocation_params.dir / str(given) if given else None


def _baselines(config: pytest.Config) -> Path:
    given = config.getoption("llmperf_baselines")
    if given:
        return config.invocation_params.dir / str(given)
    return _ini_folder(config) / str(config.getini("llmperf_baselines"))


def _ini_folder(config: pytest.Config) -> Path:
    return config.inipath.parent if config.inipath else config.rootpath


def _layer(source: Callable[[str], Any]) -> LimitLayer:
    return parse_layer(**{name: source(f"llmperf_{name}") or "" for name in ("gate", "tolerate", "catch")})
