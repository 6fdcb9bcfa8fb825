"""Saves the model of a run as a folder that works on its own, or uploads it to the Hugging Face hub.

python experiments/export.py --workdir=runs/photos --out=saved
python experiments/export.py --workdir=runs/photos --hub=owner/name [--private]

`grafit export` of the installed package is the same command.

The folder holds model.safetensors, config.json and README.md, a model card made from what the run has recorded.
`grafit_jax.load`, embed.py and search.py read it.
"""

from absl import flags

import grafit_jax
from grafit_jax.commands import cli
from grafit_jax.errors import UserError

_WORKDIR = flags.DEFINE_string("workdir", None, "workdir of a run, or the folder of a saved model", required=True)
_CHECKPOINT = flags.DEFINE_string("checkpoint", "newest", "newest, or the step of a checkpoint")
_OUT = flags.DEFINE_string("out", None, "folder to write")
_HUB = flags.DEFINE_string("hub", None, "owner/name of a model on the Hugging Face hub; created if needed")
_PRIVATE = flags.DEFINE_bool("private", False, "make a new model on the hub private")


def main(argv):
    if _OUT.value is None and _HUB.value is None:
        raise UserError("found neither --out=FOLDER nor --hub=OWNER/NAME; expected one or both.")
    model = grafit_jax.load(_WORKDIR.value, checkpoint=cli.checkpoint(_CHECKPOINT.value))
    if _OUT.value is not None:
        model.save(_OUT.value)
        print(f"{_OUT.value}: step {model.step}, digest {model.digest}")
    if _HUB.value is not None:
        print(model.push_to_hub(_HUB.value, private=_PRIVATE.value))


if __name__ == "__main__":
    cli.run(main)
