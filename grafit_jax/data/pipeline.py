"""Input pipelines: a training set resident on the devices, or one streamed from its files.

Both yield `inputs` for the pmapped step, with `in_axes` for pmap. Inside the step, `batch_of(inputs, step)` returns the
device's part of the batch.
"""

import collections
import itertools
import time
from collections.abc import Iterator

import jax
import numpy as np
from jax import Array

from grafit_jax import parallel
from grafit_jax.data.records import Records
from grafit_jax.views.crops import Crops

# Folded into the seed's key for the order of an epoch; views fold in the step, memory.init another constant.
_ORDER_KEY = 0x6F7264
# The number of batches prefetched to the devices.
_PREFETCH = 2
# The maximum length of a scan on accelerators: preemption is checked between two scans.
_MAX_STEPS_PER_CALL = 100

Batch = dict[str, Array]


class Resident:
    """A training set replicated on every device, with a new order each epoch.

    Attributes:
      steps_per_call: the number of steps in the scan of a call; the last call of an epoch may be shorter.
      in_axes: the data are replicated, the order is sharded.
      waited: seconds that the host has waited for data: 0.0.
    """

    in_axes = (None, 0)
    waited = 0.0

    def __init__(self, records: Records, *, seed: int, batch_size: int, steps_per_call: int):
        """Replicates the data on the devices; `steps_per_call` = 0 chooses a number for the device."""
        self.steps_per_call = _steps_per_call(steps_per_call, len(records) // batch_size)
        self._records, self._seed, self._batch_size = records, seed, batch_size
        self._data = parallel.replicate({"image": records.image, "label": records.train_label})

    def epoch(self, epoch: int, first: int = 0) -> Iterator[tuple[Batch, Array]]:
        """Yields the same inputs for every call of an epoch, starting at step `first`; `batch_of` indexes by step."""
        steps = len(self._records) // self._batch_size
        order = epoch_order(self._seed, epoch, len(self._records), steps, self._batch_size)
        return itertools.repeat((self._data, order), -(-(steps - first) // self.steps_per_call))

    @staticmethod
    def batch_of(inputs: tuple[Batch, Array], step: Array) -> Batch:
        """Returns this device's part of the batch of `step`."""
        data, order = inputs
        ids = order[step % len(order)]
        return {name: x[ids] for name, x in data.items()} | {"id": ids}


class Streamed:
    """A training set streamed from its files (`records.InFiles`), one step per call.

    Attributes:
      waited: seconds that the host has waited for batches in this epoch.
    """

    in_axes = 0
    steps_per_call = 1

    def __init__(
        self, records: Records, *, seed: int, batch_size: int, shuffle_buffer: int, crops: Crops | None = None
    ):
        """With `crops`, batches hold crops [B, T, S, S, C] instead of images."""
        self._records, self._seed, self._batch_size = records, seed, batch_size
        self._shuffle_buffer, self._crops = shuffle_buffer, crops
        self.waited = 0.0

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Yields the batches of an epoch, starting at step `first`, prefetched to the devices."""
        self.waited = 0.0
        ahead: collections.deque[Batch] = collections.deque()
        batches = self._from_files(epoch, first)
        while True:
            began = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - began
            if batch is None:
                break
            ahead.append(parallel.shard(batch))
            if len(ahead) > _PREFETCH:
                yield ahead.popleft()
        yield from ahead

    def _from_files(self, epoch: int, first: int) -> Iterator[dict[str, np.ndarray]]:
        """Yields this host's part of each batch, [local devices, B / devices, ...]."""
        # SeedSequence decorrelates neighbouring seeds and epochs.
        seed = int(np.random.SeedSequence([self._seed, epoch]).generate_state(1)[0] >> 1)
        devices, hosts = parallel.num_devices(), jax.process_count()
        batches = self._records.image.shuffled(
            self._batch_size // hosts, seed=seed, buffer_size=self._shuffle_buffer, shard=(jax.process_index(), hosts),
            crops=self._crops, first=first,
        )  # fmt: skip
        # All hosts take the same number of steps, even if their shards differ in size.
        for ids, images in itertools.islice(batches, len(self._records) // self._batch_size - first):
            batch = {"image": images, "label": self._records.train_label[ids], "id": ids}
            yield {name: x.reshape(devices, -1, *x.shape[1:]) for name, x in batch.items()}

    @staticmethod
    def batch_of(inputs: Batch, step: Array) -> Batch:
        """Returns `inputs`, which pmap has already split by device."""
        return inputs


def epoch_order(seed: int, epoch: int, num_examples: int, steps: int, batch_size: int) -> Array:
    """Returns a permutation of the ids, int32 [local devices, steps, B / devices], sharded over the devices.

    It depends only on the seed and the epoch. The ids past the last full batch are dropped for this epoch.
    """
    key = jax.random.fold_in(jax.random.fold_in(jax.random.PRNGKey(seed), _ORDER_KEY), epoch)
    ids = jax.random.permutation(key, num_examples)[: steps * batch_size]
    return parallel.shard(parallel.own(ids.reshape(steps, parallel.num_all_devices(), -1).swapaxes(0, 1)))


def _steps_per_call(requested: int, steps: int) -> int:
    """Returns the number of steps per call in an epoch of `steps`; `requested` = 0 chooses one for the device."""
    if requested:
        return min(requested, steps)
    # On CPU a step is long compared with the overhead of a call, and XLA's convolutions are slow inside a loop.
    if jax.default_backend() == "cpu":
        return 1
    # A divisor of `steps` compiles one scan length only; fall back to a shorter last call where divisors are small.
    divisor = max(n for n in range(1, min(_MAX_STEPS_PER_CALL, steps) + 1) if steps % n == 0)
    return divisor if 2 * divisor >= min(_MAX_STEPS_PER_CALL, steps) else -(-steps // -(-steps // _MAX_STEPS_PER_CALL))
