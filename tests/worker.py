"""One of the processes that `test_processes` starts:
`python worker.py FOLDER COORDINATOR COUNT INDEX`.

Its functions are also called by the test itself, on one process: the two must agree.
"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from namm_jax._arrays import Task
from namm_jax.experiment import dataset, processes
from namm_jax.experiment.checkpoint import Checkpoints
from namm_jax.experiment.devices import first_devices, local_mesh, make_mesh
from namm_jax.experiment.drawing import in_batches
from namm_jax.experiment.loop import Plan, Stopped, fit

DATA = np.random.default_rng(0).normal(size=(32, 8)).astype(np.float32)
STEPS, STOP = 12, 5
RULES = {'replicated': ('.*=whole',), 'fsdp': (r'(^|/)w$=data,-', '.*=whole')}
SIZES = {'train': 7, 'validation': 3, 'test': 2}


def task():
    """Returns a network of one matrix, fitted to the identity, with noise that depends on the
    step.
    """

    def loss(params, frozen, key, batch, *, train):
        x = batch['x'] + train * 0.1 * jax.random.normal(key, batch['x'].shape)
        return jnp.mean((x @ params['w'] + params['b'] - batch['x'] * frozen) ** 2), {}

    init = lambda key: {'w': jax.random.normal(key, (8, 8)), 'b': jnp.zeros(8)}
    return Task(init, loss, optax.adam(0.1), frozen=jnp.float32(2.0))


def train(folder, *, rules, devices=0, until=STEPS):
    """Trains on from what the folder holds; the last process asks to stop from step `until` on."""
    index, count, seen = jax.process_index(), jax.process_count(), [0]

    def batches(start):
        for batch in dataset.batches(
            DATA,
            seed=0,
            batch_size=8,
            start=start,
            steps=STEPS,
            process_index=index,
            process_count=count,
        ):
            seen[0] += 1
            yield {'x': batch}

    plan = Plan('toy', STEPS, log_every=3, validate_every=6, probes=1, ema=0.9, rules=rules)
    held_out = [{'x': DATA[:8][dataset.local_rows(8, process_index=index, process_count=count)]}]
    records = []
    asked = processes.agreed(
        lambda: 15 if index == count - 1 and until < STEPS and seen[0] >= until else 0
    )
    with Checkpoints(folder) as checkpoints:
        fitted = fit(
            task(),
            batches,
            held_out,
            plan,
            key=jax.random.key(3),
            mesh=make_mesh(first_devices(devices)),
            checkpoints=checkpoints,
            log=records.append,
            probe=lambda p: {'b': float(p['b'].sum())},
            asked_to_stop=asked,
        )
    return fitted.state, records


def fields(indices):
    """Returns data: field i is a function of i alone."""
    return np.stack([np.full((2, 2, 1), np.sin(1.0 + i), np.float32) for i in indices])


def write_data(folder):
    """Writes a data set in parts of two."""
    dataset.write_dataset(folder, fields, sizes=SIZES, shard_size=2, provenance={'seed': 0})


def draw():
    """Returns 10 samples, each a function of its key, which depends on its global index alone."""
    mesh = local_mesh(make_mesh())
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(1), i))(jnp.arange(10))
    return in_batches(jax.jit(jax.vmap(lambda key: jax.random.normal(key, (3,)))), keys, 8, mesh)


def _refused():
    """Returns what a process is told that was started with another config than the others."""
    try:
        processes.check_same('configs', {'seed': jax.process_index(), 'steps': 3})
    except ValueError as error:
        return str(error)
    return ''


def _failed():
    """Returns what each process is told of an error that only process 0 can see."""

    def fail():
        raise OSError('no room')

    try:
        processes.from_first(fail)
    except OSError as error:
        return str(error)
    return ''


def main(folder, coordinator, count, index):
    """Does everything with the other processes; process 0 writes what came out."""
    processes.start(processes.Place(coordinator, int(count), int(index)))
    folder, mine = (
        Path(folder),
        dataset.batches(
            np.arange(32),
            seed=0,
            batch_size=8,
            start=0,
            steps=4,
            process_index=int(index),
            process_count=int(count),
        ),
    )
    facts = {
        'devices': jax.device_count(),
        'indices': processes.gather(jax.process_index()),
        'batches': processes.gather([batch.tolist() for batch in mine]),
        'refused': processes.gather(_refused()),
        'failed': processes.gather(_failed()),
        'draw': draw().tolist(),
    }
    write_data(folder / 'data')
    for name, rules in RULES.items():
        try:
            train(folder / name, rules=rules, until=STOP)
        except Stopped as stopped:
            facts[f'stopped/{name}'] = processes.gather(stopped.signal)
    processes.from_first(lambda: (folder / 'facts.json').write_text(json.dumps(facts)) and None)


if __name__ == '__main__':
    main(*sys.argv[1:])
