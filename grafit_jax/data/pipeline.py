"""From records to the batches of a step: a training set that lies on the devices, or one that streams from its files.

Either way an iteration of the host hands the pmapped step one value, `inputs`, out of which each device takes its own
part of a batch: by `batch_of`, traced, with `in_axes` for pmap.
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

# Folded into the seed's key for the order of an epoch; views fold in the step, memory.init its own number.
_ORDER_KEY = 0x6F7264
# Batches on their way to the devices, or there already, before the step that takes them.
_AHEAD = 2
# Of a scan on accelerators, at most: a run that is asked to stop does so between two of them.
_STEPS_PER_CALL = 100

Batch = dict[str, Array]


class Resident:
    """The training set on every device: the host hands over an order, made on the devices, once an epoch.

    Attributes:
      steps_per_call: batches that a step function takes out of one `inputs`, in a scan; of the last one, what is left.
      in_axes: the data are the same on all devices, the order is each one's own.
      waited: 0.0 seconds: the host is not in the way.
    """

    in_axes = (None, 0)
    waited = 0.0

    def __init__(self, records: Records, *, seed: int, batch_size: int, steps_per_call: int):
        """`steps_per_call`: 0 is what is best for the device."""
        self.steps_per_call = _steps_per_call(steps_per_call, len(records) // batch_size)
        self._records, self._seed, self._batch_size = records, seed, batch_size
        self._data = parallel.replicate({"image": records.image, "label": records.train_label})

    def epoch(self, epoch: int, first: int = 0) -> Iterator[tuple[Batch, Array]]:
        """What the calls of an epoch take from its step `first` on: the same for each, the state's step tells where."""
        steps = len(self._records) // self._batch_size
        order = epoch_order(self._seed, epoch, len(self._records), steps, self._batch_size)
        return itertools.repeat((self._data, order), -(-(steps - first) // self.steps_per_call))

    @staticmethod
    def batch_of(inputs: tuple[Batch, Array], step: Array) -> Batch:
        """The device's own part of the batch of a step."""
        data, order = inputs
        ids = order[step % len(order)]
        return {name: x[ids] for name, x in data.items()} | {"id": ids}


class Streamed:
    """A training set that stays in its files; see `records.InFiles`. One step a call.

    Attributes:
      waited: seconds that the host has waited for a batch to come from the files in this epoch so far.
    """

    in_axes = 0
    steps_per_call = 1

    def __init__(
        self, records: Records, *, seed: int, batch_size: int, shuffle_buffer: int, crops: Crops | None = None
    ):
        """`crops`: a batch has crops, [B, T, S, S, C], instead of images."""
        self._records, self._seed, self._batch_size = records, seed, batch_size
        self._shuffle_buffer, self._crops = shuffle_buffer, crops
        self.waited = 0.0

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from its step `first` on, on their devices, two ahead of the step that takes them."""
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
            if len(ahead) > _AHEAD:
                yield ahead.popleft()
        yield from ahead

    def _from_files(self, epoch: int, first: int) -> Iterator[dict[str, np.ndarray]]:
        """This process's parts of batches, [its devices, B/n, ...], on the host."""
        # One number out of two, which are far apart for neighbouring ones.
        seed = int(np.random.SeedSequence([self._seed, epoch]).generate_state(1)[0] >> 1)
        devices, hosts = parallel.num_devices(), jax.process_count()
        batches = self._records.image.shuffled(
            self._batch_size // hosts, seed=seed, buffer_size=self._shuffle_buffer, shard=(jax.process_index(), hosts),
            crops=self._crops, first=first,
        )  # fmt: skip
        # A host that has some images more than another takes as many steps.
        for ids, images in itertools.islice(batches, len(self._records) // self._batch_size - first):
            batch = {"image": images, "label": self._records.train_label[ids], "id": ids}
            yield {name: x.reshape(devices, -1, *x.shape[1:]) for name, x in batch.items()}

    @staticmethod
    def batch_of(inputs: Batch, step: Array) -> Batch:
        """The device's own part of the batch, which is all that it is given."""
        return inputs


def epoch_order(seed: int, epoch: int, num_examples: int, steps: int, batch_size: int) -> Array:
    """int32 [its devices, steps, B/n] on each process's devices: a permutation that seed and epoch alone decide.

    The ids past the last full batch sit this epoch out.
    """
    key = jax.random.fold_in(jax.random.fold_in(jax.random.PRNGKey(seed), _ORDER_KEY), epoch)
    ids = jax.random.permutation(key, num_examples)[: steps * batch_size]
    return parallel.shard(parallel.own(ids.reshape(steps, parallel.num_all_devices(), -1).swapaxes(0, 1)))


def _steps_per_call(wanted: int, steps: int) -> int:
    """How many of an epoch's `steps` a call takes: `wanted`, or what is best for the device, for 0."""
    if wanted:
        return min(wanted, steps)
    # On CPU a step takes long enough for a call of its own, and convolutions are slow inside of a loop.
    if jax.default_backend() == "cpu":
        return 1
    # Calls of one length are compiled once; but a prime number of steps makes no calls of one step.
    divisor = max(n for n in range(1, min(_STEPS_PER_CALL, steps) + 1) if steps % n == 0)
    return divisor if 2 * divisor >= min(_STEPS_PER_CALL, steps) else -(-steps // -(-steps // _STEPS_PER_CALL))
