"""Serves a page to search with: drop a photo, see its nearest images, tick the right ones, download their labels.

python experiments/app.py --gallery=photos.parquet
python experiments/app.py --model=saved --gallery=trunk.parquet --gallery=projector.parquet

`grafit app` of the installed package is the same command. It needs the extra `app` (Gradio).

--gallery: a file of embeddings of image files, written by embed.py; several files of the same images, of other layers,
make the layer a choice. The model that made it embeds the photos; --workdir or --model say where it is now.

The page is served to this machine only; --host=0.0.0.0 serves it to the network.
"""

import contextlib
import socket
from collections.abc import Iterator

from absl import flags

import grafit_jax
from grafit_jax import parallel
from grafit_jax.commands import cli, models
from grafit_jax.errors import UserError
from grafit_jax.report import app

_GALLERY = flags.DEFINE_multi_string("gallery", None, "file of embeddings; may be repeated", required=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "workdir of a run (default: the model that made --gallery)")
_MODEL = flags.DEFINE_string("model", None, "folder of a saved model, or hf:owner/name, instead of --workdir")
_K = flags.DEFINE_integer("k", 12, "number of neighbours at first", lower_bound=1)
_HOST = flags.DEFINE_string("host", "127.0.0.1", "address to serve the page at")
_PORT = flags.DEFINE_integer("port", 7860, "port to serve the page at", lower_bound=1, upper_bound=65535)


def main(argv):
    where = models.given(_WORKDIR.value, _MODEL.value)
    host, port = _HOST.value.strip("[]"), _PORT.value
    with _serving(host, port):  # at once; Gradio would say that the port is in use, whatever is wrong
        ((family, *_), *_) = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        socket.create_server((host, port), family=family).close()
    parallel.warn_of_unseen()
    galleries: dict[str, grafit_jax.Gallery] = {}
    for name in _GALLERY.value:
        gallery = grafit_jax.Gallery.load(name)
        first = next(iter(galleries.values()), gallery)
        models.files(gallery, name)
        if gallery.layer in galleries or gallery.features.id.tolist() != first.features.id.tolist():
            raise UserError(f"{name}: found a layer twice, or other images; expected another layer of the same images.")
        model = first.model or models.of_gallery(gallery, where, name)
        galleries[gallery.layer] = grafit_jax.Gallery(gallery.features, model)
    page = app.build(galleries, k=_K.value)
    with _serving(host, port):
        name = f"[{host}]" if ":" in host else host
        page.launch(server_name=name, server_port=port, prevent_thread_lock=True, **app.LAUNCH)
    print(f"page: {page.local_url} (Ctrl-C ends it)")
    page.block_thread()


@contextlib.contextmanager
def _serving(host: str, port: int) -> Iterator[None]:
    """Raises a UserError for an address that cannot be served at."""
    try:
        yield
    except OSError as error:
        why = (error.strerror or str(error)).partition(" (")[0]
        raise UserError(f"cannot serve at {host}:{port}: {why}; use another --port or --host.") from error


if __name__ == "__main__":
    cli.run(main)
