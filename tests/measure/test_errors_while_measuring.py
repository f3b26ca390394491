"""Whatever a model's code raises while it is measured ends in one line that names the phase."""

from __future__ import annotations

import pytest

from pytest_llmperf import ModelSpec
from pytest_llmperf.errors import MeasurementError, UsageError
from pytest_llmperf.measure.bench import Bench
from pytest_llmperf.measure.generation import Plan

PLAN = Plan(batch_size=1, input_tokens=2, output_tokens=2, execution="loop", requests=1, warmup_cap=0)


@pytest.fixture(scope="module")
def bench(model_cache):
    return Bench("cpu", frozenset())


@pytest.fixture
def measure(bench):
    """Measures a model whose forward raises an error."""
    loaded = bench.models.get(ModelSpec("synthetic:tiny", "fp32"))
    handles = []

    def run(error):
        def fail(_module, _args):
            raise error

        handles.append(loaded.model.register_forward_pre_hook(fail))
        return bench.measure(loaded, PLAN, test="test", run_id="run")

    yield run
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize(
    "error",
    [
        AssertionError("N must be divisible"), AttributeError("no attribute 'past_key_values'"), ImportError("quanto"),
        IndexError("out of range"), KeyError("a key"), RuntimeError("first\nsecond"), TypeError("missing"),
        ValueError("rejected"), ZeroDivisionError(),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_an_error_of_the_model_is_one_line(measure, error):
    """The original error is its cause, for whoever debugs the model."""
    with pytest.raises(MeasurementError) as caught:
        measure(error)
    line = f"measuring synthetic:tiny-fp32 failed: {type(error).__name__} in phase 'setting up'"
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)
    assert str(error).partition("\n")[0] in str(caught.value)
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [UsageError("mine"), MeasurementError("mine")])
def test_our_own_errors_stay_what_they_are(measure, error):
    with pytest.raises(type(error), match=r"^mine$"):
        measure(error)


@pytest.mark.parametrize("outcome", [pytest.skip, pytest.fail])
def test_outcomes_of_pytest_stay_what_they_are(measure, outcome):
    """A model's code may skip its test."""
    with pytest.raises(outcome.Exception, match="mine"):
        measure(outcome.Exception("mine"))


def test_the_user_sees_the_line(project):
    """The test is an error, and others go on."""
    project.write("""
        import pytest

        @pytest.mark.parametrize("llm", ["fp32"], indirect=True)
        def test_broken(llm, llmperf):
            handle = llm.model.register_forward_pre_hook(lambda _module, _args: [].pop())
            try:
                llmperf.generate(llm)
            finally:
                handle.remove()

        @pytest.mark.parametrize("llm", ["fp32"], indirect=True)
        def test_whole(llm, llmperf):
            llmperf.generate(llm)
    """)
    result = project.run()
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["*measuring synthetic:tiny-fp32 failed: IndexError in phase *: pop from empty list*"])
    result.stdout.no_fnmatch_line("*Traceback*")
