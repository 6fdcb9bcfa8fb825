"""Multi-process runs over loopback; each process has its own CPU devices."""

import socket
import subprocess

from helpers.command_lines import ROOT, a_moment, command, shell_environment

SMALL = [
    f"--config={ROOT}/configs/digits.py:method=grafit", "--config.model.trunk=resnet8", "--config.model.stem=patch2",
    "--config.model.head_hidden_dim=32", "--config.model.embed_dim=16",
    "--config.train.batch_size=96", "--config.train.epochs=3",
    "--config.optimizer.learning_rate=0.002", "--config.checkpoint.every_steps=5",
]  # fmt: skip


def start(workdir, count, devices, *extra, logs, folders=None):
    """Starts `count` processes with `devices` CPU devices each.

    Process I runs in folders[I], by default in the repository, and logs to logs/I.log.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = shell_environment() | {"JAX_NUM_CPU_DEVICES": str(devices)}
    processes = []
    for i in range(count):
        joined = [f"--coordinator=127.0.0.1:{port}", f"--num_processes={count}", f"--process_id={i}"]
        with open(logs / f"{i}.log", "w") as log:
            processes.append(
                subprocess.Popen(
                    command("train", *SMALL, f"--workdir={workdir}", "--heartbeat_seconds=20", *joined, *extra),
                    stdout=log, stderr=subprocess.STDOUT, env=environment,
                    cwd=folders[i] if folders else ROOT,
                )
            )  # fmt: skip
    return processes


def finish(processes, seconds=600):
    """Returns the exit statuses; kills processes that run longer than the timeout."""
    try:
        return [process.wait(seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()


def wait_for_step(workdir, processes, step):
    """Waits for a checkpoint of this or a later step."""
    folder = workdir / "checkpoints"
    while all(process.poll() is None for process in processes):
        done = [int(p.name) for p in folder.iterdir() if p.name.isdigit()] if folder.is_dir() else []
        if done and max(done) >= step:
            return
        a_moment(processes[0])
    raise AssertionError("a process has ended")
