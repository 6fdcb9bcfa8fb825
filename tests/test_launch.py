"""The launchers: what they print is what they do, and every word arrives at the hosts' shells as it was given."""

import itertools
import json
import os
import pathlib
import re
import shlex
import shutil
import string
import subprocess
import sys
import sysconfig

import pytest
import yaml

from small import ROOT

LAUNCH = ROOT / "experiments" / "launch"
SCRIPTS = ("tpu.sh", "slurm.sbatch")
NEEDED = {"NAME": "grafit", "ZONE": "us-central2-b"}
FLAGS = ["--config=configs/imagenet.py:method=grafit,preset=short", "--workdir=/mnt/shared/runs/imagenet"]
# What shells make something else of.
AWKWARD = [
    "--config=my configs/it's.py:method=grafit,preset=short",
    '--workdir=/mnt/shared/"a" $HOME `date` \\ *; exit 3 & {a,b} ~',
    "--config.views.mean=(0.5, 0.5)",
    "",
    "--config.x=two\nlines",
]


def shell(*command, env=(), path=(), cwd=ROOT, fds=()):
    """A finished process; `path` comes before the PATH, and of the environment only `env` is added."""
    kept = {k: os.environ[k] for k in ("HOME", "PATH", "TMPDIR") if k in os.environ}
    environ = kept | dict(env) | {"PATH": os.pathsep.join([*map(str, path), os.environ["PATH"]])}
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env=environ, cwd=cwd, pass_fds=fds, timeout=60
    )


def tpu(*arguments, **variables):
    done = shell("bash", LAUNCH / "tpu.sh", "--dry-run", *arguments, env=NEEDED | variables)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout


def program(path, text):
    """An executable at `path`, in Python with its standard library alone, which starts faster."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{sys.executable} -IS\nimport json, os, pathlib, subprocess, sys\n{text}")
    path.chmod(0o755)


# Of the files


@pytest.mark.parametrize("name", SCRIPTS)
def test_bash_can_read_it(name):
    done = shell("bash", "-n", LAUNCH / name)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", SCRIPTS)
def test_shellcheck_finds_nothing(name):
    where = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    shellcheck = shutil.which("shellcheck", path=where)
    if shellcheck is None:
        pytest.skip("shellcheck is not installed: pip install -e '.[test]'")
    done = shell(shellcheck, LAUNCH / name)
    assert done.returncode == 0, done.stdout


# A Cloud TPU slice

GCLOUD = "gcloud compute tpus"
ON_ALL = f"{GCLOUD} tpu-vm ssh grafit --worker=all "
STARTED = (
    "cd grafit_jax || exit; { trap '' HUP; .venv/bin/python experiments/train.py %s --distributed"
    ' & echo $! > ~/grafit_train.pid; wait $!; echo "exit status $?"; } >> ~/grafit_train.log 2>&1 < /dev/null &'
)
INSTALLED = (
    "git init --quiet grafit_jax && cd grafit_jax && git fetch --quiet ../grafit_jax.bundle HEAD && "
    "git checkout --quiet FETCH_HEAD && python3 -m pip install --quiet --user uv && "
    "python3 -m uv venv --quiet --allow-existing --python 3.12 .venv && "
    "python3 -m uv pip install --quiet --python .venv/bin/python --editable . 'jax[tpu]'"
)
MOUNTED = (
    " && sudo apt-get install --quiet --yes nfs-common && sudo mkdir -p /mnt/shared && "
    "{ mountpoint -q /mnt/shared || sudo mount -t nfs 10.0.0.2:/share /mnt/shared; }"
)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"TYPE": "v3-8"}, "tpu-vm create grafit --accelerator-type=v3-8 --version=tpu-ubuntu2204-base"),
        ({"TYPE": "v4-32"}, "tpu-vm create grafit --accelerator-type=v4-32 --version=tpu-ubuntu2204-base"),
        ({"TYPE": "v5e-256"}, "tpu-vm create grafit --accelerator-type=v5litepod-256 --version=v2-alpha-tpuv5-lite"),
        ({"TYPE": "v5p-8"}, "tpu-vm create grafit --accelerator-type=v5p-8 --version=v2-alpha-tpuv5"),
        (
            {"TYPE": "v4-32", "SPOT": "1", "RUNTIME": "other"},
            "tpu-vm create grafit --accelerator-type=v4-32 --version=other --spot",
        ),
        (
            {"TYPE": "v5litepod-16", "SPOT": "1", "QUEUED": "1"},
            "queued-resources create grafit --node-id=grafit --accelerator-type=v5litepod-16 "
            "--runtime-version=v2-alpha-tpuv5-lite --spot",
        ),
    ],
)
def test_create(variables, expected):
    assert tpu("create", **variables) == f"{GCLOUD} {expected} --zone=us-central2-b\n"


@pytest.mark.parametrize(
    ("arguments", "variables", "expected"),
    [
        (["stop"], {}, ON_ALL + shlex.quote('--command=kill -TERM "$(cat ~/grafit_train.pid)"')),
        (["delete"], {}, f"{GCLOUD} tpu-vm delete grafit --quiet"),
        (["delete"], {"QUEUED": "1"}, f"{GCLOUD} queued-resources delete grafit --force --quiet"),
        (
            ["logs"],
            {},
            f"{GCLOUD} tpu-vm ssh grafit --worker=0 '--command=tail -n 50 grafit_train.log'",
        ),
        (
            ["logs", "-f"],
            {"WORKER": "3"},
            f"{GCLOUD} tpu-vm ssh grafit --worker=3 '--command=tail -f grafit_train.log'",
        ),
        (["run", *FLAGS], {}, ON_ALL + shlex.quote("--command=" + STARTED % " ".join(FLAGS))),
        (["resume", *FLAGS], {}, ON_ALL + shlex.quote("--command=" + STARTED % " ".join(FLAGS))),
        (["run", *AWKWARD], {}, ON_ALL + shlex.quote("--command=" + STARTED % shlex.join(AWKWARD))),
    ],
)
def test_commands_on_a_slice(arguments, variables, expected):
    assert tpu(*arguments, **variables) == f"{expected} --zone=us-central2-b\n"
    ours = tpu(*arguments, PROJECT="my project", **variables)
    assert ours == f"{expected} --zone=us-central2-b '--project=my project'\n"


@pytest.mark.parametrize(("variables", "mounted"), [({}, ""), ({"NFS": "10.0.0.2:/share"}, MOUNTED)])
def test_install(variables, mounted):
    bundle, copied, installed = tpu("install", TMPDIR="/my tmp", **variables).splitlines()
    file = "'/my tmp/grafit_jax.bundle'"
    assert bundle == f"git -C {shlex.quote(str(ROOT))} bundle create {file} HEAD"
    assert copied == f"{GCLOUD} tpu-vm scp {file} grafit:grafit_jax.bundle --worker=all --zone=us-central2-b"
    assert installed == ON_ALL + shlex.quote(f"--command={INSTALLED}{mounted}") + " --zone=us-central2-b"


@pytest.mark.parametrize(
    ("arguments", "variables", "said"),
    [
        ([], {}, "no command: want create, install, run, resume, logs, stop or delete; --help says more."),
        (["crate"], {}, "unknown command crate: want create, "),
        (["delete"], {"NAME": ""}, "NAME is not set: want the slice's name, as in NAME=grafit "),
        (["delete"], {"ZONE": ""}, "ZONE is not set: want its zone, as in ZONE=us-central2-b "),
        (["create"], {}, "TYPE is not set: want the slice's type, as in TYPE=v4-32 "),
        (["create"], {"TYPE": "h100"}, "no runtime is known for TYPE=h100: want v2-, v3-"),
        (["run", FLAGS[0]], {}, "no --workdir=DIR among the flags of the run: want one that all hosts share."),
        (["run", FLAGS[1], "--config.seed=1"], {}, "no --config=FILE.py among the flags of the run."),
    ],
)
def test_what_is_missing_is_told_in_one_line(tmp_path, arguments, variables, said):
    program(tmp_path / "gcloud", "sys.exit('called')")
    done = shell("bash", LAUNCH / "tpu.sh", *arguments, env=NEEDED | variables, path=[tmp_path])
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith(f"error: {said}") and done.stderr.count("\n") == 1


def test_help_names_every_command_and_variable():
    done = shell("bash", LAUNCH / "tpu.sh", "--help")
    assert done.returncode == 0
    script = (LAUNCH / "tpu.sh").read_text()
    commands = re.search(r"^  (create \|.*)\) shift", script, re.MULTILINE)[1].split(" | ")
    variables = set(re.findall(r"\$\{([A-Z]+)|need ([A-Z]+)", script))
    for name in [*commands, *filter(None, (n for pair in variables for n in pair)), "--dry-run"]:
        assert name == "TMPDIR" or re.search(rf"^  {name}\b", done.stdout, re.MULTILINE), name


@pytest.fixture
def host(tmp_path):
    """A host of a slice: its home, and a gcloud that does there what it would do on every host."""
    home = tmp_path / "home"
    home.mkdir()
    program(
        tmp_path / "bin" / "gcloud",
        f"""
home = {str(home)!r}
verb, *rest = sys.argv[4:]
flags = dict(word.split("=", 1) for word in rest if word.startswith("--"))
if verb == "scp":
    source, target = [word for word in rest if not word.startswith("--")]
    pathlib.Path(home, target.partition(":")[2]).write_bytes(pathlib.Path(source).read_bytes())
else:
    command = ["bash", "-c", flags["--command"]]
    sys.exit(subprocess.run(command, cwd=home, env=os.environ | {{"HOME": home}}, close_fds=False).returncode)
""",
    )
    return home


def on_host(host, *arguments, script=LAUNCH / "tpu.sh", dry_run=False, fds=(), **variables):
    """Runs tpu.sh, or what it prints."""
    settings = {"env": NEEDED | variables, "path": [host.parent / "bin"], "fds": fds}
    if not dry_run:
        done = shell("bash", script, *arguments, **settings)
    else:
        printed = shell("bash", script, "--dry-run", *arguments, **settings)
        done = shell("bash", "-e", "-c", printed.stdout, **settings)
    assert done.returncode == 0, done.stderr
    return done.stdout


def read_until(end, text):
    """What comes out of a pipe up to `text`, or, for nothing, until no process holds it any more."""
    found = b""
    while not (text and found.endswith(text)) and (more := os.read(end, 1)):
        found += more
    return found


@pytest.mark.parametrize("dry_run", [False, True])
def test_flags_arrive_on_the_host_as_they_were_given_and_the_run_outlives_the_connection(host, dry_run):
    # What a hang-up of the connection would end, had it not been told to go on.
    program(
        host / "grafit_jax" / ".venv" / "bin" / "python",
        "import signal\nsignal.raise_signal(signal.SIGHUP)\n"
        "print(json.dumps(sys.argv[1:]), os.getpid(), sys.stdin.read() == '', sep='\\n', flush=True)",
    )
    mine, theirs = os.pipe()
    on_host(host, "run", *AWKWARD, dry_run=dry_run, fds=(theirs,))
    os.close(theirs)
    assert read_until(mine, b"") == b""  # ends when the last process of the run has
    os.close(mine)
    words, number, no_input, status = (host / "grafit_train.log").read_text().splitlines()
    assert json.loads(words) == ["experiments/train.py", *AWKWARD, "--distributed"]
    assert (host / "grafit_train.pid").read_text().strip() == number
    assert (no_input, status) == ("True", "exit status 0")
    assert on_host(host, "logs", "-n", "1") == "exit status 0\n"


def test_stop_is_a_sigterm_for_the_run_and_resume_starts_it_again(host):
    python = host / "grafit_jax" / ".venv" / "bin" / "python"
    mine, theirs = os.pipe()
    program(
        python,
        "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})\n"
        f"os.write({theirs}, b'ready')\nsignal.sigwait({{signal.SIGTERM}})\nsys.exit(75)",
    )
    on_host(host, "run", *FLAGS, fds=(theirs,))
    os.close(theirs)
    assert read_until(mine, b"ready") == b"ready"
    on_host(host, "stop")
    read_until(mine, b"")
    assert (host / "grafit_train.log").read_text() == "exit status 75\n"
    program(python, "print(*sys.argv[1:])")
    again, theirs = os.pipe()
    on_host(host, "resume", *FLAGS, fds=(theirs,))
    os.close(theirs)
    read_until(again, b"")
    os.close(mine)
    os.close(again)
    went_on = f"experiments/train.py {' '.join(FLAGS)} --distributed"
    assert (host / "grafit_train.log").read_text().splitlines() == ["exit status 75", went_on, "exit status 0"]


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_install_brings_the_committed_state_with_its_revision_and_again(host, tmp_path):
    repository = tmp_path / "a repository"
    script = repository / "experiments" / "launch" / "tpu.sh"
    script.parent.mkdir(parents=True)
    shutil.copy(LAUNCH / "tpu.sh", script)
    author = {f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    git = lambda *arguments, at=repository: shell("git", "-C", at, *arguments, env=author).stdout  # noqa: E731
    git("init", "--quiet")
    # On the host: pip and uv, and the share's commands, which only note that they were called.
    for name in ("python3", "sudo"):
        program(tmp_path / "bin" / name, f"print({name!r}, sys.argv[1:])")
    program(tmp_path / "bin" / "mountpoint", "sys.exit(1)")
    (tmp_path / "tmp").mkdir()
    for content in ("first", "second"):
        (repository / "file").write_text(content)
        git("add", "--all")
        git("commit", "--quiet", "--message", content)
        (repository / "file").write_text("not committed")
        said = on_host(host, "install", script=script, TMPDIR=str(tmp_path / "tmp"), NFS="10.0.0.2:/a share")
        assert (host / "grafit_jax" / "file").read_text() == content
        assert git("rev-parse", "HEAD", at=host / "grafit_jax") == git("rev-parse", "HEAD")
        assert said.splitlines()[-1] == "sudo ['mount', '-t', 'nfs', '10.0.0.2:/a share', '/mnt/shared']"


# SLURM


@pytest.fixture
def cluster(tmp_path):
    """srun and scontrol that note their words; srun also what JAX is told, and then ends as $STATUS says."""
    note = f"open({str(tmp_path / 'calls')!r}, 'a').write(json.dumps"
    told = "os.environ.get('JAX_LOCAL_DEVICE_IDS')"
    program(tmp_path / "srun", f"{note}([sys.argv, {told}]) + '\\n')\nsys.exit(int(os.environ.get('STATUS', 0)))")
    program(tmp_path / "scontrol", f"{note}([sys.argv, None]) + '\\n')")
    return tmp_path


def slurm(cluster, *arguments, cwd=ROOT, **variables):
    """The finished job, and what it called."""
    env = {"SLURM_JOB_ID": "17"} | variables
    done = shell("bash", LAUNCH / "slurm.sbatch", *arguments, env=env, path=[cluster], cwd=cwd)
    calls = cluster / "calls"
    lines = calls.read_text().splitlines() if calls.exists() else []
    return done, [([pathlib.Path(words[0]).name, *words[1:]], told) for words, told in map(json.loads, lines)]


SRUN = ["srun", "--ntasks-per-node=1", "--cpu-bind=none", "--kill-on-bad-exit=0"]
TRAIN = ["experiments/train.py"]


def test_a_job_is_one_process_a_node_and_is_told_of_its_end_in_time():
    options = re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", (LAUNCH / "slurm.sbatch").read_text(), re.MULTILINE)
    assert dict(options) == {
        "job-name": "grafit", "nodes": "2", "ntasks-per-node": "1", "exclusive": "", "requeue": "",
        "open-mode": "append", "signal": "TERM@300",
    }  # fmt: skip
    # SLURM stops looking for options at the first line that is no comment.
    comments = itertools.takewhile(lambda line: line.startswith("#"), (LAUNCH / "slurm.sbatch").open())
    assert sum(line.startswith("#SBATCH") for line in comments) == len(options)


@pytest.mark.parametrize("flags", [FLAGS, AWKWARD])
def test_what_slurm_would_be_told_is_printed_and_is_what_it_is_told(cluster, flags):
    done, calls = slurm(cluster, *flags, DRY_RUN="1", PYTHON="my python")
    assert done.returncode == 0 and not calls
    expected = [*SRUN, "my python", *TRAIN, *flags, "--distributed"]
    if flags is FLAGS:
        assert done.stdout == " ".join(f"'{word}'" for word in expected) + "\n"
    assert shell("bash", "-c", done.stdout, path=[cluster]).returncode == 0
    done, calls = slurm(cluster, *flags, PYTHON="my python")
    assert done.returncode == 0 and calls == 2 * [(expected, None)]


@pytest.mark.parametrize(("status", "queued_again"), [(0, False), (1, False), (75, True), (137, False)])
def test_a_job_is_queued_again_on_status_75_alone(cluster, status, queued_again):
    done, (first, *others) = slurm(cluster, *FLAGS, STATUS=str(status))
    assert done.returncode == status
    assert first == ([*SRUN, ".venv/bin/python", *TRAIN, *FLAGS, "--distributed"], None)
    assert others == ([(["scontrol", "requeue", "17"], None)] if queued_again else [])


@pytest.mark.parametrize(("gpus", "ids"), [("8", "0,1,2,3,4,5,6,7"), ("1", "0"), ("0", None)])
def test_a_process_has_all_gpus_of_its_node(cluster, gpus, ids):
    _, calls = slurm(cluster, *FLAGS, SLURM_GPUS_ON_NODE=gpus)
    assert [told for _, told in calls] == [ids]


def test_a_job_that_cannot_run_says_so_in_one_line(cluster):
    for flags, cwd, said in (
        (FLAGS[:1], ROOT, "no --workdir=DIR among the flags"),
        (FLAGS[1:], ROOT, "no --config=FILE.py among the flags"),
        (FLAGS, cluster, f"found no experiments/train.py in {cluster}: call sbatch in the repository's root."),
    ):
        done, calls = slurm(cluster, *flags, cwd=cwd)
        assert done.returncode == 2 and not calls and done.stderr.count("\n") == 1
        assert done.stderr.startswith(f"error: {said}")


# GKE

VALUES = {
    "NAME": "grafit", "IMAGE": "europe-docker.pkg.dev/p/r/grafit:1", "ACCELERATOR": "tpu-v5-lite-podslice",
    "TOPOLOGY": "16x16", "HOSTS": "64", "CHIPS": "4", "CLAIM": "grafit",
    "CONFIG": AWKWARD[0].partition("=")[2], "WORKDIR": AWKWARD[1].partition("=")[2] + " #1", "DATA_DIR": "my: data",
}  # fmt: skip

# The part of the APIs that is used: JobSet jobset.x-k8s.io/v1alpha2, Job batch/v1, Pod v1. Other keys are refused, as
# `kubectl apply` does.
ANY = {str: str}
CONTAINER = {
    "name": str, "image": str, "command": [str], "args": [str], "resources": {"limits": {"google.com/tpu": int}},
    "volumeMounts": [{"name": str, "mountPath": str}],
}  # fmt: skip
POD = {
    "restartPolicy": {"Never"}, "terminationGracePeriodSeconds": int, "nodeSelector": ANY, "containers": [CONTAINER],
    "volumes": [{"name": str, "persistentVolumeClaim": {"claimName": str}}],
}  # fmt: skip
POD_FAILURE = {
    "action": {"FailJob", "FailIndex", "Ignore", "Count"},
    "onExitCodes?": {"containerName": str, "operator": {"In", "NotIn"}, "values": [int]},
    "onPodConditions?": [{"type": str, "status": {"True", "False", "Unknown"}}],
}
JOB = {
    "parallelism": int, "completions": int, "completionMode": {"Indexed", "NonIndexed"}, "backoffLimit": int,
    "podFailurePolicy": {"rules": [POD_FAILURE]}, "template": {"spec": POD},
}  # fmt: skip
JOB_FAILURE = {
    "name": str, "action": {"FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"},
    "onJobFailureReasons": [{"BackoffLimitExceeded", "DeadlineExceeded", "PodFailurePolicy"}],
}  # fmt: skip
JOB_SET = {
    "apiVersion": {"jobset.x-k8s.io/v1alpha2"},
    "kind": {"JobSet"},
    "metadata": {"name": str, "annotations": ANY},
    "spec": {
        "failurePolicy": {"maxRestarts": int, "rules": [JOB_FAILURE]},
        "replicatedJobs": [{"name": str, "replicas": int, "template": {"spec": JOB}}],
    },
}


def check(value, schema, where="JobSet"):
    """Asserts that a value has the schema's shape: types, sets of allowed values, lists of one kind, dicts by key."""
    if isinstance(schema, type):
        assert type(value) is schema, f"{where}: {value!r}"
    elif isinstance(schema, set):
        assert value in schema, f"{where}: {value!r}"
    elif isinstance(schema, list):
        assert isinstance(value, list) and value, f"{where}: {value!r}"
        for i, item in enumerate(value):
            check(item, schema[0], f"{where}[{i}]")
    elif schema == ANY:
        assert all(type(x) is str for pair in value.items() for x in pair), f"{where}: {value!r}"
    else:
        known = {key.rstrip("?"): inner for key, inner in schema.items()}
        needed = {key for key in schema if not key.endswith("?")}
        assert needed <= value.keys() <= known.keys(), f"{where}: {sorted(value)}"
        for key, item in value.items():
            check(item, known[key], f"{where}.{key}")


def job_set():
    text = (LAUNCH / "jobset.yaml").read_text()
    # envsubst replaces the same ${NAME}s, and in the comments there are none.
    assert set(re.findall(r"\$\{(\w+)\}", text)) == VALUES.keys() and "$" not in re.sub(r"\$\{\w+\}", "", text)
    return yaml.safe_load(string.Template(text).substitute(VALUES))


def test_the_job_set_is_one_whatever_the_values():
    rendered = job_set()
    check(rendered, JOB_SET)
    job = rendered["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["parallelism"] == job["completions"] == 64
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] == ["python", "experiments/train.py"]
    names = {"CONFIG": "config", "WORKDIR": "workdir", "DATA_DIR": "config.data.data_dir"}
    assert container["args"] == ["--distributed", *(f"--{flag}={VALUES[name]}" for name, flag in names.items())]
    assert container["resources"]["limits"]["google.com/tpu"] * 64 == 16 * 16
    assert {m["name"]: m["mountPath"] for m in container["volumeMounts"]} == {"shared": "/mnt/shared"}
    assert pod["volumes"] == [{"name": "shared", "persistentVolumeClaim": {"claimName": "grafit"}}]
    selected = {"accelerator": "tpu-v5-lite-podslice", "topology": "16x16"}
    assert pod["nodeSelector"] == {f"cloud.google.com/gke-tpu-{key}": value for key, value in selected.items()}


def after(job_set, *, status=None, condition=None):
    """What becomes of the JobSet when a pod fails, by the rules of batch/v1 and jobset.x-k8s.io/v1alpha2."""
    job = job_set["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["backoffLimit"] == 0  # else a pod is made anew alone, while the others wait
    reason = "BackoffLimitExceeded"
    for rule in job["podFailurePolicy"]["rules"]:
        codes, conditions = rule.get("onExitCodes"), rule.get("onPodConditions", ())
        of_train = codes and codes["containerName"] == job["template"]["spec"]["containers"][0]["name"]
        if of_train and codes["operator"] == "In" and status in codes["values"]:
            reason = {"FailJob": "PodFailurePolicy"}[rule["action"]]
            break
        if condition in [c["type"] for c in conditions]:
            reason = {"FailJob": "PodFailurePolicy"}[rule["action"]]
            break
    policy = job_set["spec"]["failurePolicy"]
    return next((rule["action"] for rule in policy["rules"] if reason in rule["onJobFailureReasons"]), "RestartJobSet")


def test_a_preempted_job_set_starts_again_without_limit_and_others_three_times():
    rendered = job_set()
    for preempted in ({"status": 75}, {"condition": "DisruptionTarget"}):
        assert after(rendered, **preempted) == "RestartJobSetAndIgnoreMaxRestarts"
    for status in (1, 2, 137):
        assert after(rendered, status=status) == "RestartJobSet"
    assert rendered["spec"]["failurePolicy"]["maxRestarts"] == 3
