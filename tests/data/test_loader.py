import json
import os
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from huatuo_jax.data.loader import indices_of_devices, make_loader, rows_of_devices
from huatuo_jax.errors import ConfigError, DataError
from tests.support.counted_rows import LENGTH, CountedRows, sharding
from tests.support.environment import use_devices


def row_numbers(batches):
    return [np.asarray(batch["targets"])[:, 0].tolist() for batch in batches]


@pytest.mark.parametrize("mesh", [(1, 8, 1), (8, 1, 1), (2, 2, 2), (1, 1, 8), (1, 4, 2)])
def test_batches_are_consecutive_rows_on_every_mesh(mesh):
    batches = list(make_loader(CountedRows(), 8, sharding(*mesh)))
    assert row_numbers(batches) == [list(range(s * 8, s * 8 + 8)) for s in range(6)]
    assert batches[0]["tokens"].sharding == sharding(*mesh)
    assert np.asarray(batches[2]["tokens"])[3].tolist() == [190, 191, 192, 193, 194, 195]


def test_every_device_holds_its_rows():
    batch = next(make_loader(CountedRows(), 8, sharding(1, 8, 1)))
    assert [int(shard.data[0, 0]) for shard in batch["targets"].addressable_shards] == list(range(8))


def test_rows_that_fill_no_batch_are_dropped():
    rows = CountedRows(count=19)
    assert row_numbers(make_loader(rows, 8, sharding())) == [list(range(8)), list(range(8, 16))]
    assert not rows.read & {16, 17, 18}


@pytest.mark.parametrize("start", [0, 1, 5, 6])
def test_starting_at_a_step_gives_the_same_rest(start):
    whole = row_numbers(make_loader(CountedRows(), 8, sharding()))
    rows = CountedRows()
    assert row_numbers(make_loader(rows, 8, sharding(), start_step=start)) == whole[start:]
    assert min(rows.read, default=start * 8) >= start * 8


def test_num_steps_counts_from_the_start_step():
    rest = row_numbers(make_loader(CountedRows(), 8, sharding(), start_step=2, num_steps=2))
    assert [batch[0] for batch in rest] == [16, 24]


def test_any_number_of_threads_gives_the_same_batches():
    one = row_numbers(make_loader(CountedRows(), 8, sharding(), threads=1, prefetch=1))
    assert row_numbers(make_loader(CountedRows(), 8, sharding(), threads=16, prefetch=3)) == one


@pytest.mark.parametrize("processes", [1, 2, 4, 8])
def test_processes_read_disjoint_rows_that_make_up_the_batch(processes):
    indices = list(indices_of_devices(sharding(1, 8, 1), 16, LENGTH).items())
    share = 8 // processes
    mine = [rows_of_devices(dict(indices[p * share : (p + 1) * share]), 16).tolist() for p in range(processes)]
    assert np.concatenate(mine).tolist() == list(range(16))


def test_processes_that_hold_the_same_rows_both_read_them():
    indices = list(indices_of_devices(sharding(1, 4, 2), 8, LENGTH).items())
    assert rows_of_devices(dict(indices[0::2]), 8).tolist() == list(range(8))
    assert rows_of_devices(dict(indices[:2]), 8).tolist() == [0, 1]


def test_a_batch_that_does_not_divide_is_refused_before_reading():
    with pytest.raises(ConfigError, match="a batch of 6 rows"):
        make_loader(CountedRows(), 6, sharding(1, 8, 1))


@pytest.mark.parametrize(("start", "steps"), [(7, None), (-1, None), (4, 3)])
def test_steps_that_the_rows_do_not_have_are_refused(start, steps):
    with pytest.raises(ConfigError, match="50 rows hold 6 batches of 8"):
        make_loader(CountedRows(), 8, sharding(), start_step=start, num_steps=steps)


def test_an_error_of_a_reader_thread_reaches_the_training_loop():
    loader = make_loader(CountedRows(fails_at=20), 8, sharding())
    assert row_numbers([next(loader), next(loader)]) == [list(range(8)), list(range(8, 16))]
    with pytest.raises(DataError, match="shard 3 is torn"):
        next(loader)
    with pytest.raises(StopIteration):
        next(loader)


def test_batches_are_made_while_the_consumer_is_busy():
    rows = CountedRows(count=400)
    with make_loader(rows, 8, sharding(), prefetch=2):
        deadline = time.monotonic() + 10
        while len(rows.read) < 24 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert 24 <= len(rows.read) < 100


def test_a_loader_that_is_closed_or_dropped_ends_its_thread():
    alive = lambda: [t for t in threading.enumerate() if t.name.startswith("grain-thread-prefetch")]
    with make_loader(CountedRows(), 8, sharding()) as loader:
        next(loader)
    assert not alive()
    dropped = make_loader(CountedRows(), 8, sharding())
    next(dropped)
    del dropped
    deadline = time.monotonic() + 10
    while alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not alive()


CHILD = """
import json, sys
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from tests.support.counted_rows import LENGTH, CountedRows, sharding
from huatuo_jax.data.loader import make_loader
rows = CountedRows()
held = {}
for step, batch in enumerate(make_loader(rows, 8, sharding(1, 8, 1), start_step=1)):
    for shard in batch["tokens"].addressable_shards:
        held[f"{step}:{shard.index[0].start}"] = np.asarray(shard.data).tolist()
print("RESULT" + json.dumps([held, sorted(rows.read)]))
"""


def test_two_real_processes_hold_the_batches_of_one(repository):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    env = {**os.environ}
    use_devices(4, env)
    command = [sys.executable, "-c", CHILD, address]
    children = [
        subprocess.Popen([*command, str(i)], stdout=subprocess.PIPE, text=True, env=env, cwd=repository) for i in range(2)
    ]
    outputs = [child.communicate(timeout=120)[0].split("RESULT")[1] for child in children]
    (held_a, read_a), (held_b, read_b) = map(json.loads, outputs)
    alone = [np.asarray(batch["tokens"]) for batch in make_loader(CountedRows(), 8, sharding(1, 8, 1), start_step=1)]
    assert {**held_a, **held_b} == {f"{s}:{r}": [batch[r].tolist()] for s, batch in enumerate(alone) for r in range(8)}
    assert set(read_a) & set(read_b) <= {8}
