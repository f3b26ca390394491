"""The work of one request, counted exactly: operators by name, FLOPs, bytes moved and allocations, step by step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from pytest_llmperf.measure.flops import flops_of
from pytest_llmperf.measure.moved_bytes import moved_bytes
from pytest_llmperf.measure.operator_call import OperatorCall, signature_of
from pytest_llmperf.storage.schema import PhaseWork, StepCounts
from pytest_llmperf.system.tensors import tensors_of


@dataclass
class StepWork:
    """Work of one step, or of several that were added up."""

    operators: Counter[str] = field(default_factory=Counter)
    """Calls by operator."""
    flops: Counter[str] = field(default_factory=Counter)
    """By dtype."""
    bytes: Counter[str] = field(default_factory=Counter)
    """Bytes read and written, by dtype."""
    allocations: int = 0
    allocated_bytes: int = 0
    without_formula: set[str] = field(default_factory=set)
    """Operators that compute and whose FLOPs are not known."""

    def add(self, call: OperatorCall) -> bool:
        """Add a call that has run, all but its name; return whether it touched any numbers."""
        moved, sizes = moved_bytes(call), call.allocated_sizes()
        for dtype, size in moved.items():  # not `update`, which takes longer than all else here
            self.bytes[dtype] += size
        self.allocations += len(sizes)
        self.allocated_bytes += sum(sizes)
        if not call.only_views:
            self._add_flops(call)
        return bool(moved or sizes)

    def _add_flops(self, call: OperatorCall) -> None:
        flops = flops_of(call)
        if flops is None:
            self.without_formula.add(call.name)
        else:
            for dtype, count in flops.items():
                self.flops[dtype] += count

    def total(self) -> StepCounts:
        """The sums over names and dtypes."""
        return StepCounts(
            operators=self.operators.total(),
            flops=self.flops.total(),
            bytes=self.bytes.total(),
            allocations=self.allocations,
            allocated_bytes=self.allocated_bytes,
        )

    @classmethod
    def sum(cls, steps: Sequence[StepWork]) -> StepWork:
        """Add up several steps."""
        return cls(
            operators=sum((step.operators for step in steps), Counter()),
            flops=sum((step.flops for step in steps), Counter()),
            bytes=sum((step.bytes for step in steps), Counter()),
            allocations=sum(step.allocations for step in steps),
            allocated_bytes=sum(step.allocated_bytes for step in steps),
            without_formula=set().union(*(step.without_formula for step in steps)),
        )


class WorkCounter:
    """Work so far; if it is told of output tokens, also that of each step.

    The first step is the prefill. Each further call of `on_token` ends a step of decode.
    """

    def __init__(self) -> None:
        self.tokens: list[int] = []
        """Tokens that came at each call of `on_token`."""
        self.steps: list[StepWork] = []
        """Steps that have ended."""
        self.current = StepWork()
        self.is_paused = False

    def on_token(self, count: int = 1, /) -> None:
        """End a step, in which ``count`` more tokens of each sequence came."""
        self.tokens.append(count)
        self.steps.append(self.current)
        self.current = StepWork()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Count nothing in the block: it is not the model's work."""
        self.is_paused = True
        try:
            yield
        finally:
            self.is_paused = False

    @property
    def total(self) -> int:
        """Operators so far."""
        return sum(step.operators.total() for step in [*self.steps, self.current])

    @property
    def decode(self) -> StepWork | None:
        """Work after the first tokens, of all steps together; ``None`` if no tokens came later."""
        return StepWork.sum(self.steps[1:]) if self.later_tokens else None

    @property
    def later_tokens(self) -> int:
        """Tokens of each sequence that came after the first ones."""
        return sum(self.tokens[1:])

    @property
    def per_token(self) -> float | None:
        """Operators after the first tokens, per token that came later; ``None`` if none did."""
        return self.decode.operators.total() / self.later_tokens if self.decode else None

    def phases(self) -> dict[str, PhaseWork]:
        """The work by phase: ``prefill`` per request, and ``decode`` per token, if there is any."""
        found = {}
        if self.steps:
            found["prefill"] = _phase(self.steps[0], self.steps[:1], per=1)
        if decode := self.decode:
            found["decode"] = _phase(decode, self.steps[1:], per=self.later_tokens)
        return found


def _phase(work: StepWork, steps: Sequence[StepWork], *, per: int) -> PhaseWork:
    return PhaseWork(
        steps=len(steps),
        operators=_mean(work.operators, per),
        flops=_mean(work.flops, per),
        bytes=_mean(work.bytes, per),
        allocations=work.allocations / per,
        allocated_bytes=work.allocated_bytes / per,
        first=steps[0].total(),
        last=steps[-1].total(),
        without_formula=sorted(work.without_formula),
    )


def _mean(counts: Counter[str], per: int) -> dict[str, float]:
    return {name: counts[name] / per for name in sorted(counts)}


@contextmanager
def count_work() -> Iterator[WorkCounter]:
    """Count the work of the operators that torch dispatches in the block.

    An operator that torch composes of others counts as one. Its bytes, FLOPs and allocations are those of its parts,
    and if a single part does something, it has that part's name: ``aten::to`` is ``aten::_to_copy`` where it copies. An
    operator on wrapper tensors, such as those of torchao, is composed of those on the tensors inside. A custom operator
    counts as one, with the bytes of its arguments and results: what happens inside is not dispatched.

    No tensor is kept, so that memory is freed as it is without counting.
    """
    count = WorkCounter()
    with _counting_mode()(count):
        yield count


@cache
def _counting_mode() -> Any:
    """The mode's class; torch is imported only when it is needed."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counting(TorchDispatchMode):
        """Counts each operator of the outermost level, and the work of those that have no parts."""

        def __init__(self, count: WorkCounter) -> None:
            super().__init__()  # type: ignore[no-untyped-call]  # untyped in torch
            self._count = count
            self._names: list[str] | None = None
            """Parts of the running operator that do something; ``None`` between operators."""
            self._state: Any = None
            """Dispatch keys that are included and excluded while no operator runs."""

        def __enter__(self) -> Any:
            entered = super().__enter__()  # type: ignore[no-untyped-call]  # untyped in torch
            self._state = self._state or _dispatch_state()
            return entered

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if self._count.is_paused or _asks_a_fake(func, types):
                return func(*args, **kwargs)
            if self._names is not None:
                return self._run(func, types, args, kwargs)
            names: list[str] = []
            self._names = names
            try:
                return self._run(func, types, args, kwargs)
            finally:
                self._names = None
                self._count.current.operators[names[0] if len(names) == 1 else signature_of(func).name] += 1

        def _run(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
            """Run an operator by its parts, if it has any."""
            if types and (wrapper := _wrapper_type(types)):
                with self:
                    return wrapper.__torch_dispatch__(func, types, args, kwargs)
            if _can_be_composed(func) and not _has_kernel(func, _device_type(args, kwargs)):
                with self, _restored(self._state):
                    return func._op_dk(_composite_key(), *args, **kwargs)  # noqa: SLF001  # as torch's flop counter
            call = OperatorCall(func, args, kwargs)
            results = func(*args, **kwargs)
            call.ran(results)
            if self._count.current.add(call) and self._names is not None:
                self._names.append(call.name)
            return results

    return Counting


def _dispatch_state() -> tuple[Any, Any]:
    import torch

    return torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()  # noqa: SLF001  # only here


def _restored(state: tuple[Any, Any]) -> Any:
    """Dispatch as outside operators. Inside one, torch records of no view whose weight it is.

    `torch.matmul` asks for this: a product of three dimensions with a weight that requires gradients is a product of
    two, and otherwise one for each sequence, with a copy of the weight.
    """
    import torch

    return torch._C._ForceDispatchKeyGuard(*state)  # noqa: SLF001  # torch has no other way


def _asks_a_fake(operator: Any, types: Sequence[type]) -> bool:
    """Whether a fake tensor is asked for its device: of others, this is no operator."""
    return operator.namespace == "prim" and any(one.__name__ == "FakeTensor" for one in types)


def _wrapper_type(types: Sequence[type]) -> Any | None:
    """The first type of wrapper tensors, which run their operators on the tensors inside; ``None`` if there is none."""
    return next((one for one in types if hasattr(one, "__tensor_flatten__")), None)


def _device_type(args: Sequence[Any], kwargs: dict[str, Any]) -> str:
    return next((tensor.device.type for tensor in tensors_of([*args, *kwargs.values()])), "cpu")


def _composite_key() -> Any:
    import torch

    return torch._C.DispatchKey.CompositeImplicitAutograd  # noqa: SLF001  # as torch's flop counter


@cache
def _can_be_composed(operator: Any) -> bool:
    """Whether torch composes an operator of others on devices where it has no kernel of its own."""
    import torch

    if operator.namespace == "prim":  # these are not known to the dispatcher
        return False
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key  # noqa: SLF001  # torch has no other way to ask
    return bool(has_kernel(operator.name(), _composite_key()))


@cache
def _has_kernel(operator: Any, device_type: str) -> bool:
    """Whether an operator has a kernel of its own on a device."""
    import torch

    backend = torch._C.DispatchKey.__members__.get(device_type.upper())  # noqa: SLF001  # torch has no other way to ask
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key  # noqa: SLF001  # same
    return backend is not None and bool(has_kernel(operator.name(), backend))
