"""Vectors of other projects, from files written here byte by byte."""

import contextlib
import json
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from monitors.imports.base import ImportFileError
from monitors.imports.conditions import import_condition
from monitors.imports.gguf import read_gguf
from monitors.imports.svec import read_svec
from monitors.imports.vectors import import_vector
from monitors.types import HookKind, HookPoint

D = 6


def values(seed):
    return torch.randn(D, generator=torch.Generator().manual_seed(seed)).tolist()


def text(value):
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def gguf(tensors, *, version=3, architecture="controlvector", kind=0, dimensions=1, keys=b"", num_keys=3):
    """As repeng writes it with gguf.GGUFWriter."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), num_keys)
    head += text("general.architecture") + struct.pack("<I", 8) + text(architecture)
    head += text("controlvector.model_hint") + struct.pack("<I", 8) + text("llama")
    head += text("controlvector.layer_count") + struct.pack("<II", 4, len(tensors)) + keys
    body, offset = b"", 0
    for name, numbers in tensors.items():
        sizes = [len(numbers), *[1] * (dimensions - 1)]
        head += text(name) + struct.pack(f"<I{len(sizes)}Q", dimensions, *sizes)
        head += struct.pack("<IQ", kind, offset)
        data = struct.pack(f"<{len(numbers)}f", *numbers)
        padded = data + b"\0" * (-len(data) % 32)
        body, offset = body + padded, offset + len(padded)
    return head + b"\0" * (-len(head) % 32) + body


def write(folder, data, name="v.gguf"):
    path = folder / name
    path.write_bytes(data)
    return path


def test_repeng_gguf(tmp_path):
    path = write(tmp_path, gguf({"direction.1": values(1), "direction.3": values(3)}))
    found = read_gguf(path)
    assert found.model_hint == "llama"
    assert sorted(found.directions) == [1, 3]
    torch.testing.assert_close(found.directions[3], torch.tensor(values(3)))
    vector = import_vector(path, name="calm", d_model=D, num_layers=4)
    assert [d.hook_point for d in vector.directions] == [HookPoint(1), HookPoint(3)]
    assert (vector.operation, vector.verdict) == ("add", None)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (gguf({"direction.0": values(1)}), "layer 0 is refused"),
        (gguf({"direction.1": values(1)}, architecture="llama"), "not 'controlvector'"),
        (gguf({"direction.1": values(1)}, kind=1), r"type 1; needs 0 \(float32\)"),
        (gguf({"direction.1": values(1)}, dimensions=2), "2 dimensions; needs 1"),
        (gguf({"direction.1": values(1)}, version=1), "version 1; known: 2, 3"),
        (gguf({"token_embd.weight": values(1)}), "has direction.<layer> only"),
        (gguf({"direction.1": values(1)})[:-40], "ends beyond the file"),
        (gguf({"direction.1": values(1)})[:60], "ends too early"),
        (
            gguf({"direction.1": values(1)}, keys=text("x") + struct.pack("<I", 9), num_keys=4),
            "key 'x' has type 9",
        ),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "tensors; at most"),
        (gguf({"direction.1": []}), "no values"),
        (b"PK\x03\x04", "does not begin with GGUF"),
    ],
)
def test_gguf_that_is_no_control_vector_is_refused(tmp_path, data, message):
    with pytest.raises(ImportFileError, match=message):
        read_gguf(write(tmp_path, data))


@given(st.data())
def test_a_damaged_gguf_is_read_or_refused_and_nothing_else(tmp_path_factory, data):
    whole = bytearray(gguf({"direction.1": values(1), "direction.2": values(2)}))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = write(tmp_path_factory.mktemp("gguf"), bytes(whole[: data.draw(st.integers(0, len(whole)))]))
    with contextlib.suppress(ImportFileError):
        read_gguf(path)


def test_a_cast_behaviour(tmp_path):
    svec = {"model_type": "llama", "directions": {"2": values(2)}, "explained_variances": {"2": 0.7}}
    path = write(tmp_path, json.dumps(svec).encode(), "refusal.svec")
    torch.testing.assert_close(read_svec(path)[2], torch.tensor(values(2)))
    (direction,) = import_vector(path, name="refusal", d_model=D, num_layers=4).directions
    assert direction.hook_point == HookPoint(2)


@pytest.mark.parametrize(
    "svec",
    [{"model_type": "llama"}, {"model_type": "llama", "directions": {}}, [], {"directions": {"a": [1]}}],
)
def test_json_that_is_no_svec_is_refused(tmp_path, svec):
    with pytest.raises(ImportFileError, match=r"not a \.svec"):
        read_svec(write(tmp_path, json.dumps(svec).encode(), "x.svec"))


def test_layers_of_steering_vectors(tmp_path):
    path = tmp_path / "v.safetensors"
    save_file({"layer.0": torch.tensor(values(1)), "layer.3": torch.tensor(values(2)).half()}, path)
    vector = import_vector(path, name="v", d_model=D, num_layers=4)
    assert [d.hook_point.layer for d in vector.directions] == [0, 3]
    assert all(d.vector.dtype == torch.float32 for d in vector.directions)
    save_file({"weight": torch.ones(D)}, path)
    with pytest.raises(ImportFileError, match=r"needs layer\.<number> only"):
        import_vector(path, name="v", d_model=D, num_layers=4)


@pytest.mark.parametrize(
    ("d_model", "num_layers", "message"),
    [(D + 1, 4, "d_model is 7"), (D, 3, "layers 0 to 2: it is for another model")],
)
def test_a_vector_for_another_model_is_refused(tmp_path, d_model, num_layers, message):
    path = write(tmp_path, gguf({"direction.3": values(1)}))
    with pytest.raises(ImportFileError, match=message):
        import_vector(path, name="v", d_model=d_model, num_layers=num_layers)


def test_what_is_not_finite_or_not_known_is_refused(tmp_path):
    path = write(tmp_path, gguf({"direction.1": [float("nan")] * D}))
    with pytest.raises(ImportFileError, match="NaN"):
        import_vector(path, name="v", d_model=D, num_layers=4)
    with pytest.raises(ImportFileError, match="pickle can execute code"):
        import_vector(write(tmp_path, b"", "v.pt"), name="v", d_model=D, num_layers=4)
    with pytest.raises(ImportFileError, match=r"known: \.gguf, \.svec, \.safetensors"):
        import_vector(write(tmp_path, b"", "v.yaml"), name="v", d_model=D, num_layers=4)


def write_svec(tmp_path, directions):
    content = {"model_type": "llama", "directions": directions, "explained_variances": {}}
    return write(tmp_path, json.dumps(content).encode(), "c.svec")


@pytest.mark.parametrize(("pooling", "kind"), [("mean", "condition_mean"), ("last", "condition")])
@pytest.mark.parametrize(("threshold_is", "sign"), [("smaller", 1), ("larger", -1)])
def test_a_condition_becomes_a_monitor_of_the_input_of_its_block(tmp_path, pooling, kind, threshold_is, sign):
    path = write_svec(tmp_path, {"0": values(0), "2": values(2)})
    monitor = import_condition(
        path, name="hate", layer=2, pooling=pooling, threshold_is=threshold_is, d_model=D, num_layers=4
    )
    assert monitor.hook_points == (HookPoint(2, HookKind.RESID_PRE),)
    assert (monitor.transform.kind, monitor.aggregator.kind) == (kind, pooling)
    assert monitor.transform.sign == sign
    torch.testing.assert_close(monitor.transform.direction, torch.tensor(values(2)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer": 1}, "has no layer 1; it has 0, 2"),
        ({"d_model": 7}, "this model's d_model is 7"),
        ({"num_layers": 2}, "has layer 2; this model has layers 0 to 1: it is for another model"),
    ],
)
def test_a_condition_that_does_not_fit_is_refused(tmp_path, changes, message):
    path = write_svec(tmp_path, {"0": values(0), "2": values(2)})
    settings = {"layer": 2, "d_model": D, "num_layers": 4} | changes
    with pytest.raises(ImportFileError, match=message):
        import_condition(path, name="hate", **settings)


def test_a_condition_is_no_control_vector(tmp_path):
    path = write(tmp_path, gguf({"direction.1": values(1)}))
    with pytest.raises(ImportFileError, match=r"a condition is a \.svec of activation-steering"):
        import_condition(path, name="hate", layer=1, d_model=D, num_layers=4)
