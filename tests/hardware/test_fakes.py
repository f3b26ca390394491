"""Fakes have only names and signatures of the real torch and pynvml, and so does the package."""

from __future__ import annotations

import ast
import inspect
from functools import reduce
from pathlib import Path

import pynvml
import pytest
import torch
from fake_accelerators import FakeMps, FakeMpsEvent, FakeXpu, FakeXpuEvent
from fake_cuda import FakeCuda, FakeGenerator, FakeGraph
from fake_nvml import FakeNvml
from recording_cuda import RecordedGraph, RecordingCuda

import pytest_llmperf

CUDA_CONTROLS = {
    "launch", "read_back", "fail_if_capturing", "end_allocate", "release_pool", "is_as_before", "multiply",
    "clear_workspaces",
}  # fmt: skip
FAKES = [
    (FakeCuda, torch.cuda, CUDA_CONTROLS),
    (RecordingCuda, torch.cuda, CUDA_CONTROLS),
    (FakeGraph, torch.cuda.CUDAGraph, set()),
    (RecordedGraph, torch.cuda.CUDAGraph, set()),
    (FakeGenerator, torch.Generator, set()),
    (FakeXpu, torch.xpu, {"sleep", "work", "allocate"}),
    (FakeXpuEvent, torch.xpu.Event, set()),
    (FakeMps, torch.mps, {"sleep", "work"}),
    (FakeMpsEvent, torch.mps.event.Event, set()),
    (FakeNvml, pynvml, {"handle", "answer"}),
]
"""What each stands for, and by which names of their own tests drive it: every other public name is one of the real."""

MODULES = {"torch": torch, "pynvml": pynvml}
VARIABLES = {
    "_C": "torch._C",
    "nvml": "pynvml",
    "self._nvml": "pynvml",
    "cuda": "torch.cuda",
    "self._cuda": "torch.cuda",
}
"""What else the package calls these modules."""
ONE_OF = [
    {"torch._C._cuda_endAllocateToPool", "torch._C._cuda_endAllocateCurrentStreamToPool"},  # the second before 2.8
]
"""Names of one function in versions of torch: one of them must be there."""
CUDA_BUILD = torch.version.cuda is not None


def misfit(fake, real) -> str:
    """Return why calls of a fake's method do not fit the real function; empty if they do, or without a signature."""
    real = inspect.unwrap(real)  # torch 2.6 caches some
    try:
        signature = inspect.signature(real)
    except ValueError:  # of functions written in C
        return ""
    own_self = inspect.ismethoddescriptor(real) or "self" in signature.parameters
    parameters = [one for one in inspect.signature(fake).parameters.values() if one.name != "self"]
    required = [one for one in parameters if one.default is one.empty]
    try:
        for given in (required, parameters):
            _check_call(signature, given, ["self"] * own_self)
    except TypeError as error:
        return f"{fake.__qualname__}{inspect.signature(fake)} for {signature}: {error}"
    return ""


def _check_call(signature, given, positional) -> None:
    """Bind each parameter by position; keyword parameters must have the same name in the real function."""
    by_name = {one.name: one.name for one in given if one.kind is one.KEYWORD_ONLY}
    bound = signature.bind(*positional, *(one.name for one in given if one.name not in by_name), **by_name).arguments
    for one in given:
        if one.kind is not one.POSITIONAL_ONLY and not one.name.startswith("_") and bound.get(one.name) != one.name:
            raise TypeError(f"there is no {one.name!r} in its place")


def public(fake, controls):
    return [name for name in dir(fake) if not name.startswith("_") and name not in controls]


STOOD_FOR = [
    pytest.param(fake, real, name, id=f"{fake.__name__}.{name}")
    for fake, real, controls in FAKES
    for name in public(fake, controls)
]


@pytest.mark.parametrize(("fake", "real", "name"), STOOD_FOR)
def test_a_fake_has_no_name_and_takes_no_call_that_the_real_one_does_not(fake, real, name):
    """Constants have the same value."""
    assert hasattr(real, name)
    made_up, found = getattr(fake, name), getattr(real, name)
    if inspect.isroutine(made_up):
        assert not misfit(made_up, found)
    elif not inspect.isclass(made_up):
        assert made_up == found


def test_a_control_is_a_name_of_the_fake_alone():
    """A control must not have the name of a real function."""
    for fake, real, controls in FAKES:
        assert controls <= set(dir(fake))
        assert not [name for name in controls if hasattr(real, name)]


def names_in(tree: ast.AST) -> set[str]:
    """Names of torch.cuda, torch._C and NVML that a file uses, whatever its variables are called."""
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    found = {f"torch._C.{text}" for text in texts if text.startswith("_cuda_")}
    found |= {_dotted(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return {name for name in found if name.startswith(("torch.cuda.", "torch._C.", "pynvml."))}


def _dotted(node: ast.AST) -> str:
    """The full name of a module's attribute; empty for the result of a call or an index."""
    text = ast.unparse(node)
    if text in VARIABLES:
        return VARIABLES[text]
    if isinstance(node, ast.Attribute) and (owner := _dotted(node.value)):
        return f"{owner}.{node.attr}"
    return text if isinstance(node, ast.Name) else ""


SOURCES = [path.read_text(encoding="utf-8") for path in Path(pytest_llmperf.__file__).parent.rglob("*.py")]
USED = sorted({name for text in SOURCES for name in names_in(ast.parse(text))})


@pytest.mark.parametrize("name", USED)
def test_what_the_package_uses_is_there(name):
    """In the installed versions."""
    if name.startswith("torch._C._cuda") and not CUDA_BUILD:
        pytest.skip(f"this torch ({torch.__version__}) is no CUDA build, which alone has {name}")
    assert any(map(exists, next((names for names in ONE_OF if name in names), {name})))


def exists(name: str) -> bool:
    first, *rest = name.split(".")
    try:
        reduce(getattr, rest, MODULES[first])
    except AttributeError:
        return False
    return True


def test_names_are_found_however_the_module_is_held():
    """As a module, a variable, an attribute or a string."""
    found = names_in(
        ast.parse("torch.cuda.a.b; nvml.c(); self._nvml.d; cuda.e; getattr(torch._C, '_cuda_f'); _C._cuda_h")
    )
    assert found == {
        "torch._C._cuda_h",
        "torch.cuda.a",
        "torch.cuda.a.b",
        "pynvml.c",
        "pynvml.d",
        "torch.cuda.e",
        "torch._C._cuda_f",
    }
    assert len(USED) > 30


@pytest.mark.parametrize(
    ("fake", "why"),
    [
        (lambda self, device, stream=None: ..., "there is no 'device' in its place"),
        (lambda self, stream, device: ..., ""),
        (lambda self, stream, other: ..., "there is no 'other' in its place"),
        (lambda self, stream, other, /: ..., ""),
        (lambda self, stream, _other: ..., ""),
        (lambda self, stream, device, more: ..., "too many positional arguments"),
        (lambda self: ..., "missing a required argument: 'stream'"),
        (lambda self, stream, *, device: ..., ""),
        (lambda self, stream, *, other: ..., "got an unexpected keyword argument 'other'"),
    ],
)
def test_a_call_that_does_not_fit_is_told(fake, why):
    """By position, by name, and with too few or too many arguments."""

    def real(stream, device=None): ...

    assert misfit(fake, real).endswith(why)
    assert bool(misfit(fake, real)) == bool(why)


def test_a_name_that_is_nowhere_is_told():
    """In torch, in pynvml, and below an existing name."""
    assert not any(map(exists, ["torch.cuda.nonsense", "pynvml.nvmlNonsense", "torch.cuda.Event.nonsense"]))
    assert exists("torch.cuda.Event.record")
