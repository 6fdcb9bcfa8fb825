"""A Hugging Face hub for tests: files in the layout of its cache, a server on loopback, and configs that name them."""

import contextlib
import hashlib
import http.server
import json
import pathlib
import threading

import safetensors.numpy

from grafit_jax import config as config_lib
from grafit_jax import config_files, presets
from helpers import state_dicts
from helpers.command_lines import ROOT

OWN = ROOT / "configs" / "own.py"

COMMIT = "0123456789abcdef0123456789abcdef01234567"
HALVES = (0.5, 0.5, 0.5)


def own(arg="dir=photos", **values):
    """Returns the config of configs/own.py with keys changed; `a__b` stands for a.b."""
    config = config_files.load_file(OWN, arg)
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in values.items()})
    return config


def resolved(config, path="nowhere"):
    """Returns the flat config that a run in the workdir `path` starts with."""
    return config_lib.flatten(presets.resolve(config, pathlib.Path(path)))


def timm_config(architecture, *, size=160, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)):
    """The config.json of a model of timm, as bytes."""
    values = {"mean": mean, "std": std, "input_size": [3, size, size]}
    return json.dumps({"architecture": architecture, "num_classes": 10, "pretrained_cfg": values}).encode()


def model(architecture="resnet18", **values):
    """The files of a model of timm; random tensors if the architecture is one of `state_dicts`."""
    files = {"config.json": timm_config(architecture, **values)}
    if architecture in state_dicts.RESNETS:
        files["model.safetensors"] = safetensors.numpy.save(state_dicts.state_dict(architecture))
    return files


def write_cache(cache, name, files, *, commit=COMMIT, revisions=("main",)):
    """Writes a repository into the folder `cache` as huggingface_hub does."""
    repository = cache / f"models--{name.replace('/', '--')}"
    for folder in ("blobs", "refs", f"snapshots/{commit}"):
        (repository / folder).mkdir(parents=True, exist_ok=True)
    for revision in revisions:
        (repository / "refs" / revision).write_text(commit)
    for file, content in files.items():
        digest = hashlib.sha256(content).hexdigest()
        (repository / "blobs" / digest).write_bytes(content)
        (repository / "snapshots" / commit / file).symlink_to(f"../../blobs/{digest}")
    return repository


@contextlib.contextmanager
def serve(repositories, *, gated=(), commit=COMMIT):
    """Serves {"owner/name": {file: bytes}}, at revision main; yields the address and the list of requests."""
    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.do_GET(body=False)

        def do_GET(self, body=True):
            requests.append(f"{self.command} {self.path}")
            owner, name, _, revision, *file = self.path.strip("/").split("/")
            files = repositories.get(f"{owner}/{name}")
            if f"{owner}/{name}" in gated:
                return self.answer(403, {"X-Error-Code": "GatedRepo"})
            if files is None:
                return self.answer(401, {"X-Error-Code": "RepoNotFound"})
            if revision not in ("main", commit):
                return self.answer(404, {"X-Error-Code": "RevisionNotFound"})
            if (content := files.get("/".join(file))) is None:
                return self.answer(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            tag = f'"{hashlib.sha256(content).hexdigest()}"'
            self.answer(200, {"ETag": tag, "X-Repo-Commit": commit}, content, body=body)

        def answer(self, status, headers, content=b"", *, body=True):
            self.send_response(status)
            for key, value in {**headers, "Content-Length": len(content)}.items():
                self.send_header(key, str(value))
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
