"""Fuzz tests of configs and files of a run: each input gives a valid value or a one-line UserError."""

import json
import pathlib
import shutil

import pytest
from hypothesis import strategies as st
from study import layout, render

from grafit_jax import config as config_lib
from grafit_jax import config_checks, config_files, methods
from grafit_jax.data import sources
from grafit_jax.errors import UserError
from grafit_jax.runs import clusterfit, results, workdir
from helpers import fuzzing
from helpers.command_lines import ROOT
from helpers.runs import small_config

TYPED = {"seed": 0, "size": 224, "w": 0.5, "e": True, "method": "grafit"}
KNOWN = config_lib.flatten(config_lib.default())
WHOLE = config_lib.to_json(small_config())
WORDS = st.sampled_from(
    (
        "seed=", "size=", "w=", "e=", "method=", "preset=", "dataset=", "level=", "init=", ",", "=", "cpu", "grafit",
        "0", "-1", "1e999", "9" * 400, "9" * 5000, "nan", "True", "0x", "1_0", "b''", "{[]:1}", "[" * 3000,
        "-" * 9000 + "1", "1if 1else 2", "\0", "\ud800", "\n", "'", "1" + "+1" * 3000, "__import__('os').getcwd()",
    )
)  # fmt: skip
ARGS = st.lists(WORDS | st.text(max_size=5), max_size=6).map("".join)
PAIRS = st.tuples(st.sampled_from([*TYPED]), WORDS | st.text(max_size=8)).map("=".join)


def test_arguments_have_their_types_or_are_refused(times):
    def check(arg):
        parsed = fuzzing.outcome(config_files.parse_arg, arg, **TYPED)
        if not isinstance(parsed, UserError):
            assert {key: type(value) for key, value in parsed.items()} == {k: type(v) for k, v in TYPED.items()}

    for arg in ("w=" + "9" * 400, "seed={[]:1}", "seed=" + "-" * 9000 + "1", "seed=\n", "e=" + "(" * 300, "w=\0"):
        with pytest.raises(UserError, match="expected a value of type"):
            config_files.parse_arg(arg, **TYPED)
        check(arg)
    fuzzing.hold(check, ARGS | PAIRS, 60 * times)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda path: path.stem)
def test_a_config_file_accepts_an_argument_or_refuses_it(path, times):
    def check(arg):
        config = fuzzing.outcome(config_files.load_file, path, arg)
        if not isinstance(config, UserError):
            fuzzing.outcome(config_checks.validate, config, num_devices=8)

    fuzzing.hold(check, ARGS | PAIRS, 10 * times)


def kind(value):
    return {int: "number", float: "number"}.get(type(value), type(value).__name__)


def test_a_key_has_a_value_of_its_type_or_is_refused(times):
    def check(drawn):
        key, value, method = drawn
        config = small_config(method)
        with config.ignore_type():
            try:
                config.update_from_flattened_dict({key: value})
            except OverflowError:  # ml_collections converts the value of a float
                return
        if fuzzing.outcome(config_checks.validate, config, num_devices=8) is None:
            found, like = config_lib.flatten(config)[key], KNOWN[key]
            assert kind(found) == kind(like), f"{key} = {found!r}"
            assert "nan" not in repr(found) and "inf" not in repr(found), f"{key} = {found!r}"
            # It survives a round trip through JSON.
            assert config_lib.from_json(config_lib.to_json(config)).to_dict() == config.to_dict()

    values = st.sampled_from(
        (*fuzzing.VALUES, 1j, b"x", (), (1,), (0.5,), ("x",), (2, 1), (None,), ((1,),), (float("nan"),))
    )
    strange = values | st.integers() | st.floats() | st.text(max_size=5)
    for key, like in KNOWN.items():  # a value of another type for each
        config = small_config()
        with config.ignore_type():
            config.update_from_flattened_dict({key: None if isinstance(like, str | tuple) else "x"})
        expected = "one of" if key.endswith(".autoaugment") else "a"
        with pytest.raises(UserError, match=rf"{key} = (None|'x'); expected {expected} "):
            config_checks.validate(config, num_devices=8)
    fuzzing.hold(check, st.tuples(st.sampled_from([*KNOWN]), strange, st.sampled_from([*methods.METHODS])), 150 * times)


def test_a_damaged_config_is_read_or_refused(times, tmp_path):
    def check(text):
        (tmp_path / "config.json").write_bytes(text)
        config = fuzzing.outcome(workdir.read_config, tmp_path)
        if not isinstance(config, UserError):
            config.data.data_dir = "elsewhere"  # as evaluation sets it
            fuzzing.outcome(config_checks.validate, config, num_devices=8)

    for text in (b"null", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"model": 5}', b'{"a": 1}', b'{"seed": "x"}'):
        (tmp_path / "config.json").write_bytes(text)
        with pytest.raises(UserError, match=r"config\.json: found no config that this version can read \(.+\)"):
            workdir.read_config(tmp_path)
    bytes_or_values = fuzzing.damaged([WHOLE.encode()]) | fuzzing.altered(json.loads(WHOLE)).map(as_json)
    fuzzing.hold(check, bytes_or_values, 40 * times)


def as_json(content):
    return json.dumps(content).encode()


def test_intact_lines_of_a_damaged_log_are_kept(times, tmp_path):
    lines = [as_json({"step": step, "loss": 0.5 + step, "seconds": 1.0}) for step in range(6)]

    def check(text):
        (tmp_path / "metrics.jsonl").write_bytes(text)
        kept = workdir.cut_log(tmp_path, 3)
        assert all(entry["step"] <= 3 for entry in kept)
        assert all(isinstance(value, int | float) for entry in kept for value in entry.values())
        untouched = [json.loads(line) for line in text.split(b"\n") if line in lines[:4]]
        left = iter(kept)  # in order; damage may leave others, such as a line with a repeated key
        assert all(entry in left for entry in untouched)
        assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == json.loads(
            json.dumps(kept)
        )

    strange = b'5\n[]\n"step"\n{}\n{"step": "a"}\n{"step": null}\n{"step": 1, "loss": "x"}\n\xff\xfe\n' + b"[" * 100_000
    check(b"\n".join([*lines[:2], strange, lines[2], lines[5], lines[3][:9]]))
    fuzzing.hold(
        check, fuzzing.damaged([b"\n".join(lines) + b"\n"], [p for p in fuzzing.PIECES if p != b"NaN"]), 40 * times
    )


def test_damaged_files_of_a_run_are_named(times, tmp_path):
    metrics = {"map": 0.5, "recall@1": 0.75, "step": 30}
    facts = {"train_seconds": 3.5, "views_per_image": 2, "train_images": 9}
    whole = {
        "metrics.json": metrics,
        "run.json": facts,
        "data.json": {"train": "ab", "test": "cd"},
    }

    digits = sources.load(source="digits")

    def read():
        result = results.collect(tmp_path)
        layout.markdown_table([result], ["method"], lambda each: [each["method"]], {"map": "mAP"})
        workdir.check_data(tmp_path, whole["data.json"])

    def check(drawn):
        name, text = drawn
        (tmp_path / "config.json").write_text(WHOLE)
        for file, content in whole.items():
            (tmp_path / file).write_bytes(text if file == name else as_json(content))
        other = fuzzing.outcome(clusterfit.check_source, tmp_path, digits, 2)
        assert name != "data.json" or "data.json" in str(other) or "other images or labels" in str(other)
        error = fuzzing.outcome(read)
        if error is not None:
            assert name in str(error) or str(tmp_path) in str(error)
        return error

    for name in whole:
        for text in (b"", b"\xff", b"5", b"[]", b"[" * 100_000, b"{"):
            assert name in str(check((name, text)))
    assert "found 'a' as map; expected the file of experiments/train" in str(check(("metrics.json", b'{"map": "a"}')))
    assert "found 'None' as train_seconds" in str(check(("run.json", b'{"train_seconds": null}')))
    assert check(("run.json", as_json(whole["run.json"]))) is None
    damage = [
        st.tuples(st.just(name), fuzzing.damaged([as_json(content)]) | fuzzing.altered(content).map(as_json))
        for name, content in whole.items()
    ]
    fuzzing.hold(check, st.one_of(damage), 60 * times)


def test_damaged_results_are_named(times, tmp_path):
    names = ("quickstart", "benchmark_train", "maskcon_cpu")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    folder = tmp_path / "experiments" / "results"
    folder.mkdir(parents=True)
    recorded = {name: ROOT / "experiments" / "results" / f"{name}.jsonl" for name in names}
    whole = {name: [json.loads(line) for line in path.read_text().splitlines()] for name, path in recorded.items()}
    whole = {name: [first, *lines[-2:]] for name, (first, *lines) in whole.items()}

    def as_lines(content):
        return b"\n".join(map(as_json, content if isinstance(content, list) else [content]))

    def check(drawn):
        name, text = drawn
        shutil.rmtree(folder)
        folder.mkdir()
        (folder / f"{name}.jsonl").write_bytes(text)
        found = fuzzing.outcome(render.blocks, tmp_path)
        if isinstance(found, UserError):
            assert f"{name}.jsonl" in str(found)
        return found

    for name in names:
        for text in (b"", b"{}", b"\xff", b"[5]", b'[{"method": 1}]', b"[" * 100_000):
            assert "record it again" in str(check((name, text)))
        assert isinstance(check((name, as_lines(whole[name]))), dict)
    damage = [
        st.tuples(st.just(name), fuzzing.damaged([as_lines(content)]) | fuzzing.altered(content).map(as_lines))
        for name, content in whole.items()
    ]
    fuzzing.hold(check, st.one_of(damage), 40 * times)


def test_no_argument_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = "__import__('pathlib').Path('canary').touch()"
    for key in TYPED:
        fuzzing.outcome(config_files.parse_arg, f"{key}={code}", **TYPED)
    (tmp_path / "config.json").write_text(json.dumps({"seed": code}))
    fuzzing.outcome(workdir.read_config, tmp_path)
    assert not pathlib.Path("canary").exists()
    eval(code)
    assert pathlib.Path("canary").exists()
