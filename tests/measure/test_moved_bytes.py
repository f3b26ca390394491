"""Bytes that single operators read and write, each rule counted by hand."""

from __future__ import annotations

import pytest
import torch

from pytest_llmperf.measure.work import count_work


def moved(make, operate):
    """Bytes by dtype of one operation on arguments that were made outside."""
    arguments = make()
    with torch.inference_mode(), count_work() as count:
        operate(*arguments)
    return dict(count.current.bytes)


def floats(*shape):
    return torch.ones(shape)


def table_and(*index, dtype=torch.int64):
    return lambda: (floats(100, 8), torch.tensor(index, dtype=dtype))


ROW, F, LONG = 8 * 4, 4, 8  # a row of eight numbers; bytes of float32 and int64


@pytest.mark.parametrize(
    ("make", "operate", "expected"),
    [
        # read each argument, write the result
        (lambda: (floats(6, 8), floats(6, 8)), torch.add, {"float32": 3 * 6 * ROW}),
        (lambda: (floats(6, 8), floats(8)), torch.mul, {"float32": (6 + 1 + 6) * ROW}),
        (lambda: (floats(6, 8),), lambda x: x * x, {"float32": 3 * 6 * ROW}),
        (lambda: (floats(6, 8), floats(8, 3)), torch.mm, {"float32": F * (48 + 24 + 18)}),
        (lambda: (floats(6, 8),), lambda x: x.sum(), {"float32": 6 * ROW + F}),
        (lambda: (floats(6, 8), floats(2, 8)), lambda *parts: torch.cat(parts), {"float32": 2 * 8 * ROW}),
        (lambda: (floats(6, 8),), lambda x: x.max(-1), {"float32": 6 * ROW + 6 * F, "int64": 6 * LONG}),
        # a copy reads and writes
        (lambda: (floats(6, 8),), torch.clone, {"float32": 2 * 6 * ROW}),
        (lambda: (floats(6, 8),), lambda x: x.t().contiguous(), {"float32": 2 * 6 * ROW}),
        (lambda: (floats(6, 8),), lambda x: x.t().reshape(-1), {"float32": 2 * 6 * ROW}),
        (lambda: (floats(6, 8),), lambda x: x.double(), {"float32": 6 * ROW, "float64": 2 * 6 * ROW}),
        (lambda: (floats(6, 8), floats(6, 8)), lambda x, y: x.copy_(y), {"float32": 2 * 6 * ROW}),
        (lambda: (floats(6, 8), floats(8)), lambda x, y: x.copy_(y), {"float32": 7 * ROW}),
        # views move nothing
        (lambda: (floats(6, 8),), lambda x: x.view(-1)[3:].reshape(5, 9).t().unsqueeze(0), {}),
        (lambda: (floats(6, 8),), lambda x: x.float().contiguous().detach().expand(4, 6, 8), {}),
        (lambda: (floats(6, 8),), lambda x: x.split(2), {}),
        (lambda: (floats(6, 8),), lambda x: x.unsqueeze_(0).transpose_(0, 1), {}),
        # a broadcast reads its own numbers
        (lambda: (floats(1, 8).expand(100, 8),), torch.neg, {"float32": 101 * ROW}),
        (lambda: (floats(1).expand(6, 8),), lambda x: x.sum(), {"float32": 2 * F}),
        (lambda: (floats(10).as_strided((9, 2), (1, 1)),), torch.neg, {"float32": F * (10 + 18)}),
        (lambda: (floats(0, 8),), torch.neg, {}),
        # in place: read and written, once each
        (lambda: (floats(6, 8), floats(6, 8)), lambda x, y: x.add_(y), {"float32": 3 * 6 * ROW}),
        (lambda: (floats(6, 8),), lambda x: x[2:4].mul_(2), {"float32": 2 * 2 * ROW}),
        (lambda: (floats(6, 8),), lambda x: x.zero_(), {"float32": 6 * ROW}),
        (lambda: (floats(6, 8),), lambda x: x.fill_(2), {"float32": 6 * ROW}),
        (lambda: (floats(6, 8),), lambda x: x.normal_(), {"float32": 6 * ROW}),
        (lambda: (floats(6, 8), floats(6, 8)), lambda x, y: torch.neg(x, out=y), {"float32": 2 * 6 * ROW}),
        # a gather reads its indices and what it returns
        (table_and(3, 5, 5), lambda t, i: torch.nn.functional.embedding(i, t), {"float32": 6 * ROW, "int64": 3 * LONG}),
        (table_and(3, 5), lambda t, i: t.index_select(0, i), {"float32": 4 * ROW, "int64": 2 * LONG}),
        (table_and(3, 5), lambda t, i: t[i], {"float32": 4 * ROW, "int64": 2 * LONG}),
        (table_and([3], [5]), lambda t, i: t.gather(1, i), {"float32": 4 * F, "int64": 2 * LONG}),
        (table_and(3, 5), lambda t, i: t.take(i), {"float32": 4 * F, "int64": 2 * LONG}),
        (table_and(*[0] * 200), lambda t, i: t[i], {"float32": 300 * ROW, "int64": 200 * LONG}),  # the table once
        # a scatter writes what it is given; it also reads that much if it adds
        (table_and(3, 5), lambda t, i: t.index_copy_(0, i, floats(2, 8)), {"float32": 6 * ROW, "int64": 2 * LONG}),
        (table_and(3, 5), lambda t, i: t.index_add_(0, i, floats(2, 8)), {"float32": 8 * ROW, "int64": 2 * LONG}),
        (table_and(3, 5), lambda t, i: t.index_fill_(0, i, 0), {"float32": 2 * ROW, "int64": 2 * LONG}),
        (table_and([3], [5]), lambda t, i: t.scatter_(1, i, 7.0), {"float32": 2 * F, "int64": 2 * LONG}),
        (table_and([3], [5]), lambda t, i: t.scatter_add_(1, i, floats(2, 1)), {"float32": 8 * F, "int64": 2 * LONG}),
        (table_and(3, 5), lambda t, i: t.index_put_((i,), floats(8)), {"float32": 4 * ROW, "int64": 2 * LONG}),
        (
            table_and(3, 5),
            lambda t, i: t.index_put_((i,), floats(8), accumulate=True),
            {"float32": 6 * ROW, "int64": 2 * LONG},
        ),
        (table_and(3, 5), lambda t, i: torch.ops.aten.index_put_(t, [None, i], floats(100, 2)), {
            "float32": F * (200 + 200 + 200), "int64": 2 * LONG}),
        (table_and(*[False] * 99, True, dtype=torch.bool), lambda t, i: t.index_put_((i,), floats(8)), {
            "float32": ROW * (1 + 1 + 100), "bool": 100}),
        # factories write; empty does not
        (tuple, lambda: torch.zeros(6, 8), {"float32": 6 * ROW}),
        (tuple, lambda: torch.arange(6), {"int64": 6 * LONG}),
        (tuple, lambda: torch.empty(6, 8), {}),
        (lambda: (floats(6, 8),), torch.zeros_like, {"float32": 6 * ROW}),
        (lambda: (floats(6, 8),), lambda x: x.new_full((2, 8), 1), {"float32": 2 * ROW}),
        (lambda: (floats(6, 8),), torch.empty_like, {}),
        # numbers that reach the host were read
        (lambda: (floats(1),), lambda x: x.item(), {"float32": F}),
        (lambda: (floats(6, 8), floats(6, 8)), torch.equal, {"float32": 2 * 6 * ROW}),
        (lambda: (floats(6, 8), floats(6, 8)), lambda x, y: x.is_same_size(y), {}),
    ],
)  # fmt: skip
def test_each_operator_moves_what_a_hand_counts(make, operate, expected):
    """``floats`` inside an operation are factories: they write."""
    assert moved(make, operate) == expected


@pytest.mark.parametrize(("rows", "matrices"), [(2, 2), (5, 4)])
def test_a_product_for_each_expert_reads_no_more_matrices_than_rows(rows, matrices):
    """A row belongs to one expert. Which one it is depends on the data, and is not asked."""

    def make():
        return floats(rows, 16), floats(4, 16, 8), torch.tensor([rows] * 4, dtype=torch.int32)

    numbers = rows * 16 + matrices * 16 * 8 + rows * 8
    assert moved(make, lambda x, w, ends: torch._grouped_mm(x, w, offs=ends)) == {"float32": F * numbers, "int32": 16}


def test_attention_reads_queries_keys_and_values():
    """It writes the result and a log-sum for each query; scores stay inside."""

    def make():
        return floats(2, 4, 3, 16), floats(2, 2, 7, 16), floats(2, 2, 7, 16)

    def attend(*qkv):
        torch.nn.functional.scaled_dot_product_attention(*qkv, enable_gqa=True)

    queries, keys = 2 * 4 * 3 * 16, 2 * 2 * 7 * 16
    assert moved(make, attend) == {"float32": F * (2 * queries + 2 * keys + 2 * 4 * 3)}


def test_several_tensors_at_once_count_each():
    assert moved(lambda: ([floats(8), floats(8)],), lambda xs: torch._foreach_mul_(xs, 2)) == {"float32": 4 * ROW}


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize(("convert", "indices"), [(torch.Tensor.to_sparse, 2 * 6), (torch.Tensor.to_sparse_csr, 7 + 6)])
def test_sparse_tensors_count_what_they_hold(convert, indices):
    """They have no single storage. Indices count with their values."""
    assert moved(lambda: (convert(torch.eye(6)),), torch.neg) == {"float32": 2 * (6 * F + indices * LONG)}
