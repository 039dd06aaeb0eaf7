"""One forward pass under monitors: reads come first, edits touch only their rows, a silent hook fails."""

import pytest
import torch
from torch import nn

from monitors.bank import Bank
from monitors.base import Monitor
from monitors.hook_points import Blocks, HookPointError
from monitors.linear import Linear
from monitors.runtime import RowSpan, Runtime
from monitors.steering import Direction, Edit, SteeringVector
from monitors.types import HookKind, HookPoint

D = 8
P0, P1, P2 = HookPoint(0), HookPoint(1), HookPoint(2, HookKind.RESID_PRE)


class Block(nn.Module):
    def __init__(self, seed):
        super().__init__()
        self.register_buffer("W", torch.randn(D, D, generator=torch.Generator().manual_seed(seed)) / 4)

    def forward(self, hidden_states):
        return hidden_states + torch.tanh(hidden_states @ self.W)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Block(seed) for seed in range(3))

    def forward(self, x, skip=()):
        for index, layer in enumerate(self.layers):
            x = x if index in skip else layer(x)
        return x


def randn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def bank_of(*points):
    probes = [
        Monitor(f"at_{p.layer}", Linear((p,), randn(1, D, seed=p.layer), torch.zeros(1))) for p in points
    ]
    return Bank(probes, "cpu")


PUSH = SteeringVector(
    "push", "add", (Direction(P0, randn(D, seed=50)), Direction(P2, randn(D, seed=51))), 9.0
)
ABLATE = SteeringVector("ablate", "ablate", (Direction(P0, randn(D, seed=52)),), 9.0)
VECTORS = {vector.name: vector for vector in (PUSH, ABLATE)}


@pytest.fixture
def model():
    return Model()


@pytest.fixture
def runtime(model):
    runtime = Runtime(Blocks(tuple(model.layers), D, "layers"), bank_of(P0, P1, P2), VECTORS)
    yield runtime
    runtime.close()
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in model.layers)


def forward(runtime, model, x, spans, **kwargs):
    runtime.begin(spans)
    out = model(x, **kwargs)
    return out, runtime.end()


@pytest.mark.parametrize("shape", [(6, D), (2, 3, D), (1, 6, D), (6, 1, D)])
def test_values_are_the_probes_of_each_row(model, runtime, shape):
    x = randn(*shape, seed=1)
    _, values = forward(runtime, model, x, [RowSpan(2), RowSpan(4)])
    h0 = model.layers[0](x)
    h1 = model.layers[1](h0)
    states = {0: h0, 1: h1, 2: h1}  # the input of block 2 is the output of block 1
    for column, monitor in enumerate(runtime.bank.monitors):
        weight = monitor.transform.weight[0]
        torch.testing.assert_close(
            values[:, column], (states[monitor.transform.hook_points[0].layer] @ weight).reshape(-1)
        )


def test_a_hook_that_does_not_fire_gives_nan(model, runtime):
    _, values = forward(runtime, model, randn(2, D, seed=1), [RowSpan(2)], skip={1})
    missing = [monitor.name == "at_1" for monitor in runtime.bank.monitors]
    assert values.isnan().all(dim=0).tolist() == values.isnan().any(dim=0).tolist() == missing


def test_a_forward_outside_of_a_pass_is_left_alone(model, runtime):
    x = randn(2, D, seed=1)
    expected = model(x)
    _, values = forward(runtime, model, x, [RowSpan(2)])
    model(randn(5, D, seed=2))
    assert torch.equal(model(x), expected)
    assert torch.equal(forward(runtime, model, x, [RowSpan(2)])[1], values)


def test_nothing_steered_changes_nothing(model, runtime):
    x = randn(4, D, seed=1)
    out, _ = forward(runtime, model, x, [RowSpan(4)])
    runtime.close()
    assert torch.equal(out, model(x))


@pytest.mark.parametrize("shape", [(6, D), (6, 1, D)])
def test_steering_touches_its_own_rows_only(model, runtime, shape):
    x = randn(*shape, seed=1)
    edits = (Edit(PUSH, 0.5),)
    spans = [
        RowSpan(1),
        RowSpan(2, edits),
        RowSpan(2),
        RowSpan(1, (Edit(PUSH, -2.0), Edit(ABLATE, 1.0))),
    ]
    out, _ = forward(runtime, model, x, spans)
    expected = model(x)
    rows, plain = out.reshape(6, D), expected.reshape(6, D)
    assert torch.equal(rows[[0, 3, 4]], plain[[0, 3, 4]])
    assert not torch.isclose(rows[[1, 2, 5]], plain[[1, 2, 5]]).all(dim=1).any()


def test_a_steered_row_is_exact_and_does_not_depend_on_its_neighbours(model, runtime):
    x = randn(3, D, seed=1)
    both = (Edit(PUSH, 0.5), Edit(ABLATE, 1.0))
    out, _ = forward(runtime, model, x, [RowSpan(1, both), RowSpan(1, both[::-1]), RowSpan(1)])

    h = model.layers[0](x[:1])
    ablated = ABLATE.directions[0].vector / ABLATE.directions[0].vector.norm()
    h = h - (h @ ablated) * ablated  # in the order of names: ablate, push
    h = h + 0.5 * PUSH.directions[0].vector
    h = model.layers[1](h) + 0.5 * PUSH.directions[1].vector
    torch.testing.assert_close(out[:1], model.layers[2](h))

    other_order, _ = forward(runtime, model, x[1:2], [RowSpan(1, both)])
    torch.testing.assert_close(out[1:2], other_order)


def test_monitors_read_before_the_edit_at_their_own_hook_point_and_after_it_below(model, runtime):
    x = randn(1, D, seed=1)
    _, plain = forward(runtime, model, x, [RowSpan(1)])
    _, steered = forward(runtime, model, x, [RowSpan(1, (Edit(PUSH, 1.0),))])
    changed = {
        m.name: not torch.equal(a, b)
        for m, a, b in zip(runtime.bank.monitors, plain.T, steered.T, strict=True)
    }
    assert changed == {"at_0": False, "at_1": True, "at_2": True}


def test_dropped_edits_are_counted(model, runtime):
    x = randn(2, D, seed=1)
    out, _ = forward(runtime, model, x, [RowSpan(1, (Edit(PUSH, float("nan")),)), RowSpan(1)])
    assert runtime.dropped_edits() == 2  # one row at two hook points
    assert torch.equal(out, model(x))


def test_install_exchanges_bank_and_hooks(model, runtime):
    runtime.install(bank_of(P1), {})
    _, values = forward(runtime, model, randn(2, D, seed=1), [RowSpan(2)])
    assert values.shape == (2, 1)
    assert [len(layer._forward_hooks) for layer in model.layers] == [0, 1, 0]


def test_an_install_that_fails_changes_nothing(model, runtime):
    before = runtime.bank
    with pytest.raises(HookPointError, match=r"blocks.7"):
        runtime.install(bank_of(P1, HookPoint(7)), {})
    assert runtime.bank is before
    _, values = forward(runtime, model, randn(2, D, seed=1), [RowSpan(2)])
    assert values.isfinite().all()


def test_rows_that_do_not_match_are_an_error_and_the_next_pass_works(model, runtime):
    with pytest.raises(HookPointError, match=r"3 rows, but begin\(\) announced 2"):
        forward(runtime, model, randn(3, D, seed=1), [RowSpan(2)])
    _, values = forward(runtime, model, randn(3, D, seed=1), [RowSpan(3)])
    assert values.isfinite().all()


def test_a_second_forward_in_one_pass_is_an_error(model, runtime):
    runtime.begin([RowSpan(2)])
    model(randn(2, D, seed=1))
    with pytest.raises(HookPointError, match="fired twice"):
        model(randn(2, D, seed=1))


def test_misuse_is_an_error(runtime):
    with pytest.raises(RuntimeError, match="without begin"):
        runtime.end()
    with pytest.raises(KeyError, match="unknown"):
        runtime.begin([RowSpan(1, (Edit(SteeringVector("unknown", "add", PUSH.directions), 1.0),))])


class Broken:
    """A reader of a hook point that raises half-way."""

    def __init__(self, reader, error):
        self._reader, self._error, self.columns = reader, error, reader.columns

    def read(self, x, buffer):
        self._reader.read(x, buffer)
        raise self._error


def break_reader(runtime, point, error):
    (reader,) = runtime.bank._readers[point]
    runtime.bank._readers[point] = (Broken(reader, error),)


def test_monitors_that_raise_have_no_value_and_harm_nobody_else(model):
    told = []
    runtime = Runtime(
        Blocks(tuple(model.layers), D, "layers"),
        bank_of(P0, P1, P2),
        VECTORS,
        on_failed_read=lambda point, error: told.append((point, type(error))),
    )
    x = randn(2, D, seed=1)
    out, values = forward(runtime, model, x, [RowSpan(2)])
    break_reader(runtime, P1, ZeroDivisionError())
    for _ in range(2):
        again, found = forward(runtime, model, x, [RowSpan(2)])
        assert torch.equal(again, out)
        assert torch.isnan(found[:, 1]).all()
        assert torch.equal(found[:, [0, 2]], values[:, [0, 2]])
    assert told == [(P1, ZeroDivisionError)]  # once
    runtime.close()


def test_running_out_of_memory_while_reading_gives_the_pass_up(runtime, model):
    """It may be tried again with fewer rows, so the monitors have not failed."""
    break_reader(runtime, P1, torch.OutOfMemoryError())
    runtime.begin([RowSpan(1)])
    with pytest.raises(torch.OutOfMemoryError):
        model(randn(1, D, seed=1))
