"""The manifest of a data set: what was asked for, and the size and the checksum of each shard on
disk.

Names and sizes of all shards follow from the plan, so a manifest that was changed cannot ask for
other files.
"""

import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from namm_jax.experiment.files import read_json

SPLITS = ('train', 'validation', 'test')
PARTIAL = 'manifest.partial.json'  # the manifest while shards are being written
REMEDY = 'restore the file from a copy, or generate the data again with --redo=data'


def plan_of(
    sizes: Mapping[str, int], shard_size: int, provenance: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns what a data set is to hold, the part of its manifest that is known before any shard
    is.

    Args:
        sizes: number of samples of each of `SPLITS`.
        shard_size: samples a shard.
        provenance: as JSON types.

    Raises:
        ValueError: if there is nothing of a split.
    """
    if set(sizes) != set(SPLITS) or min(sizes.values()) < 1 or shard_size < 1:
        raise ValueError(
            f'got sizes {dict(sizes)} and shard_size {shard_size}, expected at least one sample of '
            f'each of {SPLITS} and at least one a shard; change the sizes in the config'
        )
    sizes = {split: int(sizes[split]) for split in SPLITS}
    return json.loads(
        json.dumps({'sizes': sizes, 'shard_size': shard_size, 'provenance': provenance})
    )


def read_manifest(path: Path) -> dict[str, Any]:
    """Returns a manifest, whole or partial; raises a ValueError unless it is such as
    `write_dataset` writes.
    """
    manifest = read_json(path)
    try:
        json.dumps(
            manifest, allow_nan=False
        )  # Python reads infinities, which cannot be written again
        fault = _fault(manifest, whole=path.name != PARTIAL)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        fault = repr(error)
    if fault:
        raise ValueError(f'{path}: got {fault}, expected a manifest; {REMEDY}')
    return manifest


def _fault(manifest: Any, *, whole: bool) -> str:
    """Returns what is wrong with a manifest: numbers, or shards that are not the first, or all, in
    their order.
    """
    plan = {
        'sizes': {split: manifest['sizes'][split] for split in SPLITS},
        'shard_size': manifest['shard_size'],
    }
    shards = [(*item, split) for split in SPLITS for item in manifest['shards'][split].items()]
    shape = manifest['shape']
    numbers = [
        *plan['sizes'].values(),
        plan['shard_size'],
        *(shape or []),
        *(entry['n'] for _, entry, _ in shards),
    ]
    if any(type(number) is not int or number < 1 for number in numbers):
        return f'the sizes {plan}, shape {shape}'
    if type(shape) is not (list if shards else type(None)):
        return f'the shape {shape} with {len(shards)} shards'
    if any(type(entry['crc32']) is not int for _, entry, _ in shards):
        return 'a shard without its checksum'
    expected = ((name, len(indices), split) for name, split, indices in shards_of(plan))
    found = [(name, entry['n'], split) for name, entry, split in shards]
    if found != list(itertools.islice(expected, len(found))) or (whole and next(expected, None)):
        return f'the shards {[name for name, _, _ in found]}, which are not those of {plan}'
    return ''


def shards_of(plan: Mapping[str, Any]) -> Iterator[tuple[str, str, range]]:
    """Yields each shard's file name, its split, and its global sample indices."""
    start = 0
    for split, size in plan['sizes'].items():
        for k, first in enumerate(range(0, size, plan['shard_size'])):
            yield (
                f'{split}-{k:05d}.npy',
                split,
                range(start + first, start + min(first + plan['shard_size'], size)),
            )
        start += size
