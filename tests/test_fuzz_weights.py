"""Damaged and hostile weight files: they give tensors or a UserError of one line, and their code is not run."""

import builtins
import io
import json
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
import safetensors.numpy

from grafit_jax.errors import UserError
from grafit_jax.models import weights
from helpers import fuzzing, state_dicts

TENSORS = {"conv1.weight": np.ones((2, 3, 1, 1), np.float32), "bn1.bias": np.arange(3.0), "n": np.array(3)}
# Opcodes, names and numbers of pickles, and magic bytes of zip archives.
PICKLED = (
    b"cos\nsystem\n", b"cbuiltins\neval\n", b"ctorch\nFloatStorage\n", b"ctorch._utils\n_rebuild_sparse_tensor\n", b"R",
    b".", b"(", b"t", b"q\0", b"h\0", b"K\1", b"M\xff\xff", b"J\xff\xff\xff\x7f", b"\x8a\x08" + b"\xff" * 8, b"cuda:0",
    b"meta", b"\x80\x02}q\0.", b"PK\3\4", b"PK\1\2", b"PK\5\6",
)  # fmt: skip
HEADER = (
    b"F32", b"F64", b"BF16", b"F8_E4M3", b"F4", b"C64", b"BOOL", b"U8", b"I64", b"9" * 20, b"-1", b"0", b"[0,24]",
    b"[24,0]", b"4294967296", b"[" * 3000, b"null", b"{}", b'"',
)  # fmt: skip


def checked(path, data):
    path.write_bytes(data)
    found = fuzzing.outcome(weights.read, path)
    if not isinstance(found, UserError):
        assert all(isinstance(key, str) and isinstance(value, np.ndarray) for key, value in found.items())
        # A network accepts only its own tensors.
        assert isinstance(fuzzing.outcome(weights.convert, "resnet18", found), UserError)
    return found


def saved(torch, content, **options):
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def rewritten(data, method=zipfile.ZIP_STORED, change=lambda pickled: pickled):
    source, target = zipfile.ZipFile(io.BytesIO(data)), io.BytesIO()
    with zipfile.ZipFile(target, "w", method) as archive:
        for name in source.namelist():
            archive.writestr(name, change(source.read(name)) if name.endswith(".pkl") else source.read(name))
    return target.getvalue()


def framed(header, body=b"\0" * 16):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def test_damaged_safetensors_give_tensors_or_an_error(times, tmp_path):
    path, whole = tmp_path / "w.safetensors", safetensors.numpy.save(TENSORS)
    assert isinstance(checked(path, whole), dict)
    of = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    for data in (
        b"", whole[:7], whole[:-1], struct.pack("<Q", 2**63) + b"{}", struct.pack("<Q", 10**9) + b"{}", framed(b"[]"),
        framed({"a": of, "b": of | {"data_offsets": [4, 12]}}), framed({"a": of | {"shape": [2**62, 2**62]}}),
        framed({"a": of | {"shape": [-2]}}), framed({"a": of | {"data_offsets": [0, 99]}}),
        framed({"a": of | {"data_offsets": [8, 0]}}), framed({"a": of | {"dtype": "F4"}}),
        framed({"a": {"dtype": "F8_E8M0", "shape": [16], "data_offsets": [0, 16]}}),
    ):  # fmt: skip
        assert isinstance(checked(path, data), UserError)
    length = struct.unpack("<Q", whole[:8])[0]
    fuzzing.hold(lambda data: checked(path, data), fuzzing.damaged([whole], fuzzing.PIECES + HEADER), 10 * times)
    header = fuzzing.damaged([whole[8 : 8 + length]], HEADER)
    fuzzing.hold(lambda text: checked(path, framed(text, whole[8 + length :])), header, 10 * times)


@pytest.mark.parametrize("legacy", [False, True])
def test_damaged_state_dicts_give_tensors_or_an_error(times, tmp_path, legacy, torch):
    path = tmp_path / "w.pth"
    content = {key: torch.from_numpy(np.array(value)) for key, value in TENSORS.items()}
    whole = saved(torch, content, _use_new_zipfile_serialization=not legacy)
    assert isinstance(checked(path, whole), dict)
    fuzzing.hold(lambda data: checked(path, data), fuzzing.damaged([whole], fuzzing.PIECES + PICKLED), 10 * times)
    if not legacy:
        pickled = zipfile.ZipFile(io.BytesIO(whole)).read("archive/data.pkl")
        damage = fuzzing.damaged([pickled], fuzzing.PIECES + PICKLED)
        fuzzing.hold(lambda data: checked(path, rewritten(whole, change=lambda _: data)), damage, 10 * times)


@pytest.mark.parametrize("legacy", [False, True])
def test_long_names_and_compressed_tensors_are_errors_at_once(tmp_path, legacy, torch):
    whole = saved(torch, {"a": torch.ones(2)}, _use_new_zipfile_serialization=not legacy)
    name = b"_rebuild_tensor_v2"
    # With longer names torch.load takes minutes.
    long = whole.replace(name, name * 60) if legacy else rewritten(whole, change=lambda p: p.replace(name, name * 60))
    assert "a name of 1093 characters" in str(checked(tmp_path / "w.pth", long))
    if not legacy:
        assert "found compressed tensors" in str(checked(tmp_path / "w.pth", rewritten(whole, zipfile.ZIP_DEFLATED)))


def test_unusual_tensors(tmp_path, torch):
    ones = torch.ones(2)
    for content in (
        {"a": ones.expand(10**6, 2)}, {"a": torch.ones(1, dtype=torch.bfloat16).expand(10**5, 10**6)},
        {"a": ones.to_sparse()}, {"a": torch.ones(2, device="meta")}, {"a": ones.cfloat().conj()},
        {"a": torch.quantize_per_tensor(ones, 0.1, 0, torch.qint8)}, {"a": [ones]}, [ones], ones, None,
    ):  # fmt: skip
        assert isinstance(checked(tmp_path / "w.pth", saved(torch, content)), UserError)
    for content in ({"a": torch.nn.Parameter(ones)}, {1: ones}, {"a": ones.to(torch.float8_e4m3fn)}):
        assert [v.tolist() for v in checked(tmp_path / "w.pth", saved(torch, content)).values()] == [[1.0, 1.0]]


HOSTILE = {
    "touch": lambda path: fuzzing.Canary(path),
    "os.system": lambda path: fuzzing.Canary(path, os.system, f"touch {path}"),
    "builtins.eval": lambda path: fuzzing.Canary(path, builtins.eval, f"open({str(path)!r}, 'w')"),
    "builtins.exec": lambda path: fuzzing.Canary(path, builtins.exec, f"open({str(path)!r}, 'w')"),
    "open": lambda path: fuzzing.Canary(path, _write, str(path)),
}


def _write(path):
    open(path, "w").close()


@pytest.mark.parametrize("hostile", HOSTILE)
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_a_pickle_that_would_run_code_is_an_error_and_not_run(tmp_path, hostile, form, torch):
    canary, path = tmp_path / "canary", tmp_path / "w.pth"
    content = {"conv1.weight": HOSTILE[hostile](canary), "fc.bias": torch.ones(2)}
    if form == "pickle":
        path.write_bytes(pickle.dumps({"conv1.weight": HOSTILE[hostile](canary)}))
    else:
        path.write_bytes(saved(torch, content, _use_new_zipfile_serialization=form == "zip"))
    for wrong in ("w.pth", "w.pt", "w.safetensors"):
        path.rename(path := tmp_path / wrong)
        assert "cannot be read" in str(fuzzing.outcome(weights.read, path))
    assert not canary.exists()
    pickle.loads(pickle.dumps(HOSTILE[hostile](canary)))
    assert canary.exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.full(64, np.nan, np.float32), r"found NaN or infinite values in tensor bn1\.bias"),
        (np.full(64, 1e300), r"found NaN or infinite values in tensor bn1\.bias"),
        (np.zeros(64, np.int64), r"bn1\.bias of dtype int64; expected floating point"),
        (np.zeros(64, np.complex64), r"bn1\.bias of dtype complex64; expected floating point"),
        (np.zeros((64, 1), np.float32), r"bn1\.bias of shape \[64, 1\]"),
        (np.float32(1), r"bn1\.bias of shape \[\]"),
    ],
)
def test_invalid_values_are_errors(value, message):
    with pytest.raises(UserError, match=message):
        weights.convert("resnet18", state_dicts.state_dict("resnet18") | {"bn1.bias": value})


def test_a_classifier_without_classes_is_an_error():
    with pytest.raises(UserError, match=r"fc\.bias of shape \[\]"):
        weights.convert("resnet18", state_dicts.state_dict("resnet18") | {"fc.bias": np.float32(1)})
