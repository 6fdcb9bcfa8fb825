"""The command lines as a user meets them: a mistake is one line on stderr, status 2, nothing on stdout, no workdir."""

import subprocess

from small import ROOT, command, run, shell_environment

# Script and flags -> what its one line says.
MISTAKES = {
    "train --config=configs/nope.py": "found no config file configs/nope.py: want --config=FILE.py[:key=value,…].",
    "train --config=configs/digits.py:method=grafitt": "unknown method 'grafitt' (did you mean 'grafit'?)",
    "train --config=configs/digits.py --config.optimizer.lerning_rate=1": (
        "unknown config key 'lerning_rate' (did you mean 'learning_rate'?)."
    ),
    "train --config=configs/cifar100.py:preset=cpu --config.data.data_dir={tmp}/empty": (
        "tfds:cifar100 is not prepared in {tmp}/empty: run `tfds build cifar100 --data_dir={tmp}/empty`"
    ),
    "train --config=configs/digits.py stray": "found 'stray' where a flag should be: want --name=value.",
    "evaluate": "holds no run (no config.json): give the --workdir of experiments/train.py.",
    "reproduce --rows=gaussian": "the table has no gaussian: its rows are raw_pixels, baseline,",
    "reproduce --again": "found --again without --record: want both",
    "reproduce --all --table=omniglot": "found --all and --table=omniglot: want one of them",
    "reproduce --seeds=0,0": "want numbers, as 0,1,2, none twice",
    "sweep --config=configs/digits.py:method=byol": "that agrees with the command line, {{method=byol}}",
    "reproduce --table=cifar100_cpuu": "unknown table 'cifar100_cpuu' (did you mean 'cifar100_cpu'?)",
    "reproduce --table=omniglot --scale=paper": "found --scale=paper: want one of cpu, at which",
    "reproduce --seeds=0,x": "want numbers, as 0,1,2",
}


def test_mistakes_are_one_line_each(tmp_path):
    running = []
    for number, (line, wanted) in enumerate(MISTAKES.items()):
        script, *arguments = line.format(tmp=tmp_path).split()
        target = tmp_path / f"run{number}"
        process = subprocess.Popen(
            command(script, f"--workdir={target}", *arguments),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=shell_environment(), cwd=ROOT,
        )  # fmt: skip
        running.append((line, wanted.format(tmp=tmp_path), target, process))
        if number % 2:  # two at a time
            for *_, started in running[-2:]:
                started.wait()
    # A mistake in the code of a config file is no user's mistake of the flags: it keeps its traceback.
    (tmp_path / "broken.py").write_text("def get_config(arg=None):\n    return {}['trunk']\n")
    broken = subprocess.run(
        command("train", f"--config={tmp_path}/broken.py", f"--workdir={tmp_path}/broken"),
        capture_output=True, text=True, env=shell_environment(), cwd=ROOT,
    )  # fmt: skip
    assert broken.returncode == 1 and "return {}['trunk']" in broken.stderr and "KeyError: 'trunk'" in broken.stderr
    for line, wanted, target, process in running:
        out, err = process.communicate()
        lines = [text for text in err.splitlines() if text.startswith("error: ")]
        assert (process.returncode, out) == (2, ""), (line, err[-2000:])
        assert len(lines) == 1 and wanted in lines[0] and "Traceback" not in err, (line, err[-2000:])
        assert not target.exists(), line


def test_a_table_with_a_row_that_fails_is_told_at_the_end(tmp_path):
    (tmp_path / "grafit").mkdir()
    (tmp_path / "grafit" / "thesis.tex").touch()
    done = run("reproduce", "--table=quickstart", "--rows=grafit", f"--workdir={tmp_path}")
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        f"failed: {tmp_path}/grafit: " in done.stderr and "holds files of something else (thesis.tex, …)" in done.stderr
    )
