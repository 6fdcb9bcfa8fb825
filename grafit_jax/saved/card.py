"""The model card of a saved model: README.md with what its run has recorded."""

from collections.abc import Mapping

from grafit_jax.runs import results
from grafit_jax.runs.tables import markdown
from grafit_jax.saved.description import Description
from grafit_jax.saved.folder import Stored

_CARD = """---
library_name: grafit_jax
pipeline_tag: image-feature-extraction
tags: [grafit, image-retrieval, fine-grained, jax]
---

# {title}

An image embedding network for retrieval, trained with grafit_jax by the method `{method}` {trained}. The library
implements Grafit ([arXiv 2011.12982](https://arxiv.org/abs/2011.12982)) and its baselines.

## Use

```python
import grafit_jax

model = grafit_jax.load("FOLDER")  # this folder, or hf:owner/name
embeddings = model.embed(["a.jpg", "b.jpg"])  # float32 [2, D], unit length
gallery = grafit_jax.Gallery.build(model, "photos/")
gallery.search("query.jpg", k=10)
```

## Network

| | |
|---|---|
| trunk | {trunk} |
| layers | {layers} |
| input | {height} x {width} pixels, {colour}, any image is resized to it |
| trained | {trained}{classes} |
| training | {epochs} epochs, {step} steps, batch {batch} |
| digest | {digest} |

## Metrics

{metrics}

## Limits

Similarities mean little for images unlike those of the training. The licence of the training images applies.
"""


def text(stored: Stored, title: str) -> str:
    """Returns the model card in Markdown."""
    described = stored.description
    config, names = described.config, described.classes
    height, width, channels = described.image_shape
    return _CARD.format(
        title=title,
        method=config.method,
        trunk=config.model.trunk,
        layers=", ".join(f"{name} (default)" if name == described.headline else name for name in described.layers),
        height=height,
        width=width,
        colour="RGB" if channels == 3 else "greyscale",
        trained=_labels(described),
        classes="".join(f"; {len(of_level)} {level} classes" for level, of_level in names.items()),
        epochs=config.train.epochs,
        step=stored.step,
        batch=config.train.batch_size,
        digest=described.digest(stored.variables),
        metrics=_table(stored.metrics, config.eval.layers[0], [*names][-1] if names else "fine"),
    )


def _labels(described: Description) -> str:
    """Returns what the method was trained on, as in "on labels of level coarse"."""
    if described.method.uses_clusters:
        return "on clusters of its images"
    if described.method.supervised is None:
        return "without labels"
    return f"on labels of level {described.train_level}" if described.train_level else "on labels"


def _table(metrics: Mapping[str, float], layer: str, finest: str) -> str:
    """Returns a table with a row per layer and level, in percent."""
    values = results.by_layer_and_level(metrics, layer, finest)
    if not values:
        return "None were recorded for this checkpoint."
    columns = results.summary_columns(values.values())
    rows = [
        [*row, *(f"{100 * of_row[key]:.1f}" if key in of_row else "" for key in columns)]
        for row, of_row in values.items()
    ]
    table = markdown(["layer", "level", *columns.values()], rows)
    return f"In percent, on the test images of the training:\n\n{table}"
