"""The launch scripts, run against fakes of gcloud, a host and SLURM; the JobSet by the rules of Kubernetes."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import yaml

from helpers.command_lines import ROOT

LAUNCH = ROOT / "experiments" / "launch"
NEEDED = {"NAME": "grafit", "ZONE": "us-central2-b"}
FLAGS = ["--config=configs/imagenet.py:method=grafit,preset=short", "--workdir=/mnt/shared/runs/imagenet"]
AWKWARD = [  # for shells
    "--config=my configs/it's.py:method=grafit,preset=short", "--config.views.mean=(0.5, 0.5)", "", "--x=two\nlines",
    '--workdir=/mnt/shared/"a" $HOME `date` \\ *; exit 3 & {a,b} ~',
]  # fmt: skip


def shell(*command, path=(), cwd=ROOT, fds=(), **variables):
    """Runs a command in a minimal environment with `variables`; `path` comes before PATH. Returns the process."""
    kept = {k: os.environ[k] for k in ("HOME", "TMPDIR") if k in os.environ}
    env = kept | variables | {"PATH": os.pathsep.join([*map(str, path), os.environ["PATH"]])}
    command = list(map(str, command))
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=cwd, pass_fds=fds, timeout=60)


def program(path, text, by=f"{sys.executable} -IS\nimport json, os, pathlib, signal, subprocess, sys"):
    """Writes an executable to `path`, by default in Python without site-packages, which starts faster."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{by}\n{text}")
    path.chmod(0o755)


def recorders(folder, *names, then=""):
    """Writes programs that record their arguments and JAX_LOCAL_DEVICE_IDS, for `calls` to read."""
    recorded = "[os.path.basename(sys.argv[0]), *sys.argv[1:]], os.environ.get('JAX_LOCAL_DEVICE_IDS')"
    for name in names:
        program(folder / name, f"open({str(folder / 'calls')!r}, 'a').write(json.dumps([{recorded}]) + '\\n')\n{then}")


def calls(folder):
    path = folder / "calls"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.parametrize("name", ["tpu.sh", "slurm.sbatch"])
def test_a_script_passes_bash_and_shellcheck(name):
    assert shell("bash", "-n", LAUNCH / name).returncode == 0
    where = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    shellcheck = shutil.which("shellcheck", path=where) or pytest.skip("needs shellcheck: pip install -e '.[test]'")
    assert shell(shellcheck, LAUNCH / name).returncode == 0


@pytest.mark.parametrize(
    ("script", "arguments", "variables", "said"),
    [
        (
            "tpu.sh",
            [],
            {},
            "found command ''; expected create, install, run, resume, logs, stop or delete; see --help.",
        ),
        ("tpu.sh", ["crate"], {}, "found command 'crate'; expected create, "),
        ("tpu.sh", ["delete"], {"NAME": ""}, "found no NAME, the name of the slice; use NAME=grafit "),
        ("tpu.sh", ["delete"], {"ZONE": ""}, "found no ZONE, the zone of the slice; use ZONE=us-central2-b "),
        ("tpu.sh", ["create"], {}, "found no TYPE, the type of the slice; use TYPE=v4-32 "),
        ("tpu.sh", ["create"], {"TYPE": "h100"}, "found TYPE=h100; expected v2-N, v3-N"),
        (
            "tpu.sh",
            ["run", FLAGS[0]],
            {},
            "found no --workdir among the flags; use --workdir=DIR, a folder that all hosts share.",
        ),
        (
            "tpu.sh",
            ["run", FLAGS[1], "--config.seed=1"],
            {},
            "found no --config among the flags; use --config=FILE.py.",
        ),
        (
            "slurm.sbatch",
            FLAGS[:1],
            {},
            "found no --workdir among the flags; use --workdir=DIR, a folder that all nodes share.",
        ),
        ("slurm.sbatch", FLAGS[1:], {}, "found no --config among the flags; use --config=FILE.py."),
        (
            "slurm.sbatch",
            FLAGS,
            {},
            "found no experiments/train.py in {cwd}; call sbatch in the root of the repository.",
        ),
    ],
)
def test_a_mistake_prints_one_line_with_the_remedy_and_runs_nothing(tmp_path, script, arguments, variables, said):
    recorders(tmp_path, "gcloud", "srun")
    done = shell("bash", LAUNCH / script, *arguments, path=[tmp_path], cwd=tmp_path, **NEEDED | variables)
    assert done.returncode == 2 and not done.stdout and not calls(tmp_path)
    assert done.stderr.startswith(f"error: {said.format(cwd=tmp_path)}") and done.stderr.count("\n") == 1


def test_help_names_every_command_and_variable():
    said = shell("bash", LAUNCH / "tpu.sh", "--help").stdout
    script = (LAUNCH / "tpu.sh").read_text()
    commands = re.search(r"^  (create \|.*)\) shift", script, re.MULTILINE)[1].split(" | ")
    variables = {a or b for a, b in re.findall(r"\$\{([A-Z]+)|need ([A-Z]+)", script)} - {"TMPDIR"}
    for name in [*commands, *variables, "--dry-run"]:
        assert re.search(rf"^  {name}\b", said, re.MULTILINE), name


@pytest.mark.parametrize("command", ["create", "install", "run", "logs", "stop", "delete"])
def test_a_dry_run_prints_the_commands_without_running_them(tmp_path, command):
    recorders(tmp_path, "gcloud", "git")
    words = [command, *(AWKWARD if command in ("run", "logs") else ())]
    settings = NEEDED | {"TYPE": "v4-8", "PROJECT": "my project", "NFS": "10.0.0.2:/a share", "TMPDIR": "/my tmp"}
    printed = shell("bash", LAUNCH / "tpu.sh", "--dry-run", *words, path=[tmp_path], **settings)
    assert printed.returncode == 0 and not calls(tmp_path)
    assert shell("bash", "-e", "-c", printed.stdout, path=[tmp_path]).returncode == 0
    expected = calls(tmp_path)
    assert shell("bash", LAUNCH / "tpu.sh", *words, path=[tmp_path], **settings).returncode == 0
    assert calls(tmp_path) == 2 * expected != []


PYTHON = "grafit_jax/.venv/bin/python"  # on a host
# Keeps the slices of a project and zone in files, and runs commands on the two hosts of a slice.
GCLOUD = """
resource, verb, *words = sys.argv[3:]
flags = dict(word[2:].partition("=")[::2] for word in words if word[:2] == "--")
names = [word for word in words if word[:2] != "--"]
cloud = pathlib.Path(__file__).parents[1]
slice = cloud / f"{flags.pop('project', None)}:{flags.pop('zone')}:{names[-1].partition(':')[0]}"
if verb == "create":
    slice.write_text(json.dumps([resource, flags]))
kind, _ = json.loads(slice.read_text())  # fails where there is no such slice
if verb == "delete":
    assert resource == kind and "quiet" in flags, "without --quiet it asks before it deletes"
    slice.unlink()
for host in sorted(cloud.glob("host" + flags.get("worker", "").replace("all", "*"))):
    if verb == "scp":
        (host / names[1].partition(":")[2]).write_bytes(pathlib.Path(names[0]).read_bytes())
    if verb == "ssh":
        env = os.environ | {"HOME": str(host)}
        subprocess.run(["bash", "-c", flags["command"]], cwd=host, env=env, close_fds=False, check=True)
"""


@pytest.fixture
def cloud(tmp_path):
    """A folder with gcloud in bin/, the homes of two hosts, and the slices that are created."""
    program(tmp_path / "bin" / "gcloud", GCLOUD)
    for number in (0, 1):
        (tmp_path / f"host{number}").mkdir()
    return tmp_path


def tpu(cloud, *arguments, script=LAUNCH / "tpu.sh", fds=(), **variables):
    done = shell("bash", script, *arguments, path=[cloud / "bin"], fds=fds, **NEEDED | variables)
    assert done.returncode == 0, done.stderr
    return done.stdout


# Software versions as in cloud.google.com/tpu/docs/runtimes.
@pytest.mark.parametrize(
    ("variables", "resource", "accelerator", "flags"),
    [
        ({"TYPE": "v3-8"}, "tpu-vm", "v3-8", {"version": "tpu-ubuntu2204-base"}),
        ({"TYPE": "v5e-256", "PROJECT": "my project"}, "tpu-vm", "v5litepod-256", {"version": "v2-alpha-tpuv5-lite"}),
        ({"TYPE": "v5p-8", "SPOT": "1"}, "tpu-vm", "v5p-8", {"version": "v2-alpha-tpuv5", "spot": ""}),
        ({"TYPE": "v6e-4", "QUEUED": "1"}, "queued-resources", "v6e-4", {"runtime-version": "v2-alpha-tpuv6e"}),
        ({"TYPE": "v4-32", "RUNTIME": "other"}, "tpu-vm", "v4-32", {"version": "other"}),
    ],
)
def test_a_slice_is_created_with_the_given_settings_and_deleted(cloud, variables, resource, accelerator, flags):
    tpu(cloud, "create", **variables)
    path = cloud / f"{variables.get('PROJECT')}:us-central2-b:grafit"
    node = {"node-id": "grafit"} if "QUEUED" in variables else {}
    assert json.loads(path.read_text()) == [resource, flags | node | {"accelerator-type": accelerator}]
    tpu(cloud, "delete", **variables)
    assert not path.exists()


def start(cloud, command, code, *flags):
    """Starts `code` as the run on both hosts; returns the read end of a pipe that closes when both have ended."""
    mine, theirs = os.pipe()
    for host in cloud.glob("host*"):
        program(host / PYTHON, f"pipe = {theirs}\n{code}")
    tpu(cloud, command, *flags, fds=(theirs,))
    os.close(theirs)
    return open(mine, "rb", buffering=0)


def test_flags_reach_every_host_and_the_run_outlives_the_connection(cloud):
    tpu(cloud, "create", TYPE="v4-16")
    # A closed connection sends SIGHUP to its processes.
    code = "signal.raise_signal(signal.SIGHUP)\nprint(json.dumps(sys.argv[1:]), sys.stdin.read() == '')"
    with start(cloud, "run", code, *AWKWARD) as run:
        assert run.read(1) == b""
    said = json.dumps(["experiments/train.py", *AWKWARD, "--distributed"]) + " True\nexit status 0\n"
    (cloud / "host0" / "grafit_train.log").open("a").write("0\n")
    assert tpu(cloud, "logs", WORKER="1") == said and tpu(cloud, "logs", "-n", "1") == "0\n"


@pytest.mark.slow
def test_stop_sends_sigterm_to_the_run_on_every_host_and_resume_starts_it_again(cloud):
    tpu(cloud, "create", TYPE="v4-16")
    code = "s = {signal.SIGTERM}\nsignal.pthread_sigmask(signal.SIG_BLOCK, s)\nos.write(pipe, b'!')\n"
    with start(cloud, "run", f"{code}sys.exit(75 if signal.sigtimedwait(s, 20) else 1)", *FLAGS) as run:
        assert run.read(1) + run.read(1) == b"!!"
        tpu(cloud, "stop")
        assert run.read(1) == b""
    with start(cloud, "resume", "print(*sys.argv[1:])", *FLAGS) as run:
        assert run.read(1) == b""
    resumed = f"experiments/train.py {' '.join(FLAGS)} --distributed\nexit status 0\n"
    assert [tpu(cloud, "logs", WORKER=n) for n in "01"] == 2 * [f"exit status 75\n{resumed}"]


# Fakes pip and uv as far as `install` uses them: the python of a virtual environment holds the names of its packages.
PYTHON3 = f"""
python, (_, tool, *words) = pathlib.Path.home() / {PYTHON!r}, sys.argv[1:]
if tool == "uv" and words[0] == "venv" and ("--allow-existing" in words or not python.exists()):
    pathlib.Path(words[-1], "bin").mkdir(parents=True, exist_ok=True)
    pathlib.Path(words[-1], "bin", "python").touch()
elif tool == "uv" and python.samefile(words[words.index("--python") + 1]):
    python.write_text(" ".join(words[words.index("--editable") + 1 :]))
elif [tool, words[0], words[-1]] != ["pip", "install", "uv"]:
    sys.exit(f"cannot do {{sys.argv}}")
"""


@pytest.mark.slow
def test_install_copies_the_commit_and_packages_and_mounts_the_share_on_every_host_and_can_be_repeated(cloud):
    repository, share = cloud / "a repository", "10.0.0.2:/a share"
    script = shutil.copytree(LAUNCH, repository / "experiments" / "launch") / "tpu.sh"
    git = "git", "-c", "user.name=a", "-c", "user.email=a@b", "-C"
    shell(*git, repository, "init", "--quiet")
    program(cloud / "bin" / "python3", PYTHON3)
    program(cloud / "bin" / "sudo", 'printf "<%s>" "$@" >> ~/sudo', by="/bin/sh")
    program(cloud / "bin" / "mountpoint", "grep -q '<mount>' ~/sudo", by="/bin/sh")
    tpu(cloud, "create", TYPE="v4-16")
    for content in ("first", "second"):
        (repository / "file").write_text(content)
        shell(*git, repository, "add", "--all")
        shell(*git, repository, "commit", "--quiet", "--message", content)
        (repository / "file").write_text("not committed")
        tpu(cloud, "install", script=script, TMPDIR=str(cloud / "bin"), NFS=share)
        for host in cloud.glob("host*"):
            assert (host / "grafit_jax" / "file").read_text() == content
            assert (host / PYTHON).read_text() == ".[hub,tfds,tpu]"
            assert (host / "sudo").read_text().count(f"<mount><-t><nfs><{share}></mnt/shared>") == 1
    revisions = {shell(*git, at, "rev-parse", "HEAD").stdout for at in (repository, cloud / "host1" / "grafit_jax")}
    assert len(revisions) == 1 and len(revisions.pop()) == 41


# SLURM


def slurm(folder, *arguments, status=0, **variables):
    """Runs the job with an srun that exits with `status`; returns the job's status and output."""
    recorders(folder, "srun", then=f"sys.exit({status})")
    recorders(folder, "scontrol")
    variables |= {"SLURM_JOB_ID": "17", "PYTHON": "my python"}
    done = shell("bash", LAUNCH / "slurm.sbatch", *arguments, path=[folder], **variables)
    return done.returncode, done.stdout


def test_the_sbatch_options_make_a_job_save_itself_and_allow_requeueing():
    # SLURM stops reading options at the first line that is not a comment.
    head = re.match(r"(#.*\n)*", (LAUNCH / "slurm.sbatch").read_text())[0]
    found = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", head, re.MULTILINE))
    assert found["ntasks-per-node"] == "1" and "requeue" in found and found["open-mode"] == "append"
    assert re.fullmatch(r"TERM@[1-9]\d\d", found["signal"])  # the prefix "B:" would signal only the shell


def test_a_dry_run_prints_the_srun_command_and_every_argument_is_passed_on(tmp_path):
    status, printed = slurm(tmp_path, *AWKWARD, DRY_RUN="1")
    assert status == 0 and not calls(tmp_path)
    assert shell("bash", "-c", printed, path=[tmp_path]).returncode == slurm(tmp_path, *AWKWARD)[0] == 0
    of_printed, (words, _) = calls(tmp_path)
    assert of_printed[0] == words and words[-8:] == ["my python", "experiments/train.py", *AWKWARD, "--distributed"]
    # One process per node, with all of its cores; when one ends the others are not killed, since they may be saving.
    assert {*words[1:-8]} == {"--ntasks-per-node=1", "--cpu-bind=none", "--kill-on-bad-exit=0"}


@pytest.mark.parametrize(
    ("status", "requeued", "gpus", "ids"),
    [(0, [], "8", "0,1,2,3,4,5,6,7"), (1, [], "1", "0"), (75, ["requeue 17"], "0", None), (137, [], "", None)],
)
def test_a_job_gets_the_gpus_of_its_node_and_is_requeued_on_status_75_only(tmp_path, status, requeued, gpus, ids):
    assert slurm(tmp_path, *FLAGS, status=status, SLURM_GPUS_ON_NODE=gpus)[0] == status
    (_, device_ids), *others = calls(tmp_path)
    assert device_ids == ids and [" ".join(words[1:]) for words, _ in others] == requeued


# GKE

VALUES = {
    "NAME": "grafit", "IMAGE": "europe-docker.pkg.dev/p/r/grafit:1", "ACCELERATOR": "tpu-v5-lite-podslice",
    "TOPOLOGY": "16x16", "HOSTS": "64", "CHIPS": "4", "CLAIM": "grafit", "CONFIG": "it's: my.py",
    "WORKDIR": AWKWARD[-1] + " #1", "DATA_DIR": "- my: data",
}  # fmt: skip


@pytest.fixture
def gke():
    """The failure policy and the job of the JobSet, after envsubst."""
    text = (LAUNCH / "jobset.yaml").read_text()
    assert set(re.findall(r"\$\{?(\w+)", text)) == VALUES.keys()  # in comments too
    spec = yaml.safe_load(re.sub(r"\$\{(\w+)\}", lambda match: VALUES[match[1]], text))["spec"]
    return spec["failurePolicy"], spec["replicatedJobs"][0]["template"]["spec"]


def test_a_job_set_has_a_pod_per_host_with_all_chips_and_the_unchanged_values(gke):
    job, pod = gke[1], gke[1]["template"]["spec"]
    # JAX takes the index of a process from that of its pod.
    assert (job["parallelism"], job["completions"], job["completionMode"]) == (64, 64, "Indexed")
    (container,), (volume,) = pod["containers"], pod["volumes"]
    assert [*container["command"], *container["args"]] == [
        "python", "experiments/train.py", "--distributed", f"--config={VALUES['CONFIG']}",
        f"--workdir={VALUES['WORKDIR']}", f"--config.data.data_dir={VALUES['DATA_DIR']}",
    ]  # fmt: skip
    assert container["resources"]["limits"]["google.com/tpu"] * 64 == 16 * 16
    assert container["volumeMounts"] == [{"name": volume["name"], "mountPath": "/mnt/shared"}]
    assert (volume["persistentVolumeClaim"]["claimName"], container["image"]) == (VALUES["CLAIM"], VALUES["IMAGE"])
    assert sorted(pod["nodeSelector"].values()) == ["16x16", "tpu-v5-lite-podslice"]


def test_a_preempted_job_set_restarts_without_limit_and_a_failed_one_three_times(gke):
    (policy, job), pod = gke, gke[1]["template"]["spec"]
    # A podFailurePolicy requires "Never"; and a pod restarted without the others would wait for them in vain.
    assert pod["restartPolicy"] == "Never" and job["backoffLimit"] == 0 and pod["terminationGracePeriodSeconds"] >= 120

    def after(status=None, condition=None):
        """Returns the action on the JobSet when a pod fails, by batch/v1 and jobset.x-k8s.io/v1alpha2."""
        reason = "BackoffLimitExceeded"
        for rule in job["podFailurePolicy"]["rules"]:
            codes = rule.get("onExitCodes", {"containerName": "train", "operator": "In", "values": []})
            assert codes["containerName"] == pod["containers"][0]["name"] and codes["operator"] == "In"
            conditions = [c["type"] for c in rule.get("onPodConditions", ()) if c["status"] == "True"]
            if status in codes["values"] or condition in conditions:
                reason = {"FailJob": "PodFailurePolicy"}[rule["action"]]
        return next((r["action"] for r in policy["rules"] if reason in r["onJobFailureReasons"]), "RestartJobSet")

    assert after(75) == after(condition="DisruptionTarget") == "RestartJobSetAndIgnoreMaxRestarts"
    assert {after(status) for status in (1, 2, 137)} == {"RestartJobSet"} and policy["maxRestarts"] == 3
