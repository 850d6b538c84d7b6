#!/usr/bin/env python
"""Times each training step beside the machine's matmul peak, and our mirror step beside the
published one.

    python benchmarks/train_step.py [--presets=quick,paper] [--batch=4] [--parts=2] [--repeats=5]
        [--dtypes=float32,bfloat16] [--json=FILE] [--steps_only] [--published]

One process, one row a step: milliseconds, achieved GFLOP/s (of the operations that
`experiment.flops` counts), their share of the rate of a matmul of that type in the same process,
megabytes of temporaries and seconds of compilation. For each preset the parts of the mirror step
follow: g, f and the constraint, each with its gradient; and the denoiser, with and without its
gradient, each above a step of the sampler that calls it: drawing samples, and drawing posterior
samples by DPS. A step's work is its network's. With `--published`, last the published networks
(ICNN of 3 layers of 32 filters, ResNet of 64) at 64x64 twice: as the method is written down, with
stock convolutions and separate network calls, and as this library runs it. Both have the same
parameters, and their losses are checked to agree.
"""

import argparse
import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measured import Rows, add_json
from configs.burgers import get_config
from namm_jax.denoising.samplers import make_sampler
from namm_jax.experiment import build, flops
from namm_jax.experiment.config import override
from namm_jax.experiment.devices import batch_sharding, make_mesh, put, replicated
from namm_jax.experiment.loop import make_train_step
from namm_jax.experiment.problem import make_problem
from namm_jax.inverse.dps import fixed, guided_step
from namm_jax.inverse.likelihood import likelihood
from namm_jax.mirror import add_noise
from namm_jax.networks.convolution import convolve, wrap
from namm_jax.networks.resnet import Up
from namm_jax.training.optimizers import moments_of
from namm_jax.training.step import init_state

PUBLISHED_NETWORKS = {
    'mirror.inverse': 'resnet',
    'mirror.channels': (64,),
    'mirror.blocks': 6,
    'mirror.dropout': 0.5,
    'mirror.output': 'residual_softplus',
}
STEPS = 10  # of the samplers


class Measured(NamedTuple):
    """Images a call, its median milliseconds, GFLOP, MB of temporaries, seconds of compilation."""

    images: int
    milliseconds: float
    gflop: float
    megabytes: float
    compilation: float


def measured(
    function: Callable, *arguments: Any, images: int, repeats: int, carries: bool = False
) -> Measured:
    """Times a jitted function; `carries` passes its first result on as the next call's first
    argument.
    """
    traced = function.trace(*arguments)
    lowered, begun = traced.lower(), time.perf_counter()
    compiled = lowered.compile()
    compilation, times = time.perf_counter() - begun, []
    for _ in range(repeats + 1):
        begun = time.perf_counter()
        result = jax.block_until_ready(compiled(*arguments))
        times.append(time.perf_counter() - begun)
        arguments = (result[0], *arguments[1:]) if carries else arguments
    gflop, megabytes = (
        flops.count(traced.jaxpr) / 1e9,
        compiled.memory_analysis().temp_size_in_bytes / 1e6,
    )
    return Measured(images, 1e3 * float(np.median(times[1:])), gflop, megabytes, compilation)


def matmul_peak(dtype: str, n: int = 4096, times: int = 20) -> float:
    """Returns the GFLOP/s of products of two n x n matrices, one after the other, as precise as the
    networks' own: a GPU's float32 is TF32.
    """
    a = jax.random.normal(jax.random.key(0), (n, n)).astype(dtype) / n**0.5
    product = jax.jit(jnp.dot).lower(a, a).compile()
    b = jax.block_until_ready(product(a, a))
    begun = time.perf_counter()
    for _ in range(times):
        b = product(a, b)
    jax.block_until_ready(b)
    return 2 * times * n**3 / (time.perf_counter() - begun) / 1e9


def fields(config: Any) -> jax.Array:
    """Returns as many fields of the config's problem as its largest batch needs."""
    n = max(config[name].batch_size for name in ('mirror', 'finetune', 'score'))
    problem = make_problem(config)
    return problem.sample(jax.random.key(0), n)


def step_of(
    task: Any, batch: dict[str, Any], repeats: int, parts: int = 1, devices: int = 1
) -> Measured:
    """Times the training step of a task on the first so many devices."""
    mesh = make_mesh(jax.devices()[:devices])
    step = make_train_step(task, ema=0.999, mesh=mesh, parts=parts)
    state, frozen = (
        put(tree, replicated(mesh)) for tree in (init_state(task, jax.random.key(0)), task.frozen)
    )
    arguments = state, frozen, jax.random.key(1), put(batch, batch_sharding(mesh))
    return measured(step, *arguments, images=len(batch['x']), repeats=repeats, carries=True)


def training_steps(config: Any, x: jax.Array, repeats: int, parts: int) -> dict[str, Measured]:
    """Times the three training steps: the denoising one is that of mdm and dm alike."""
    constraint = build.make_constraint(config)
    mirror = build.mirror_task(config, 100, constraint)
    denoising = build.denoising_task(config, 100, x.mean(), x.std())
    state = init_state(mirror, jax.random.key(0))
    finetune = build.finetune_task(
        config, 100, constraint, 1.0, state.params, moments_of(state.opt_state['inverse'])
    )
    batch = lambda section: x[: config[section].batch_size]
    return {
        'mirror step': step_of(mirror, {'x': batch('mirror')}, repeats, parts),
        'finetune step': step_of(
            finetune, {'x': batch('finetune'), 'z': batch('finetune')}, repeats, parts
        ),
        'denoising step': step_of(denoising, {'x': batch('score')}, repeats, parts),
    }


def parts(config: Any, x: jax.Array, repeats: int) -> dict[str, Measured]:
    """Times g, f and the constraint, each with its gradient, on a mirror batch."""
    mirror, constraint = build.make_mirror(config), build.make_constraint(config)
    params, x = mirror.init(jax.random.key(0), x[:1]), x[: config.mirror.batch_size]
    scalars = {
        'g and its gradient': lambda p, x: jnp.abs(mirror.forward(p, x)).mean(),
        'f and its gradient': lambda p, x: jnp.abs(mirror.inverse(p, x)).mean(),
        'constraint and its gradient': lambda p, x: constraint.distance(x).mean(),
    }
    return {
        name: measured(
            jax.jit(jax.value_and_grad(scalar, (0, 1))),
            params,
            x + 0.01,
            images=len(x),
            repeats=repeats,
        )
        for name, scalar in scalars.items()
    }


def samplers(config: Any, x: jax.Array, repeats: int) -> dict[str, Measured]:
    """Times the denoiser, with and without its gradient, and a step of a sampler, without and with
    guidance by half of a field; the whole loop is timed, its start shared among its steps.
    """
    x, shape = x[: config.score.batch_size], x.shape[1:]
    moments = float(x.mean()), float(x.std())
    params = build.denoising_task(config, 100, *moments).init(jax.random.key(0))
    sampler = make_sampler(
        'ancestral', steps=STEPS, mean=moments[0], std=moments[1], denoise_last=False
    )
    half = lambda u: u[:, : shape[0] // 2]
    misfit = likelihood(half, half(x), 0.2).misfit
    guided = sampler._replace(step=guided_step(sampler.step, sampler.schedule, misfit, fixed(1e-3)))
    keys = jax.random.split(jax.random.key(1), len(x))
    denoiser = lambda params: build.make_denoiser(config, params, *moments)
    call = lambda params, x: denoiser(params)(x, jnp.float32(moments[1]))
    pulled = lambda params, x: jax.vjp(lambda x: call(params, x), x)[1](x)
    timed = lambda function, argument: measured(
        jax.jit(function), params, argument, images=len(x), repeats=repeats
    )
    rows = {}
    for name, alone, draw in (('sampler', call, sampler), ('DPS', pulled, guided)):
        one = timed(alone, x)
        loop = timed(lambda params, keys, draw=draw: draw(keys, denoiser(params), shape), keys)
        rows[f'{name}: its network'] = one
        rows[f'{name}: a step'] = loop._replace(
            milliseconds=loop.milliseconds / draw.calls, gflop=one.gflop
        )
    return rows


def direct_icnn(params: dict, x: jax.Array, periodic: tuple[bool, bool]) -> jax.Array:
    """Returns the ICNN of `networks.icnn` as it is written down: stock convolutions, one for each
    of its symbols.
    """
    bias = params['bias']
    layers = sum(name.startswith('nonnegative') for name in params) - 1
    q, linear = (jnp.split(kernel, layers + 1, -1) for kernel in jnp.split(params['input'], 2, -1))
    biases = jnp.split(bias, layers + 1)
    pair = lambda k: convolve(x, q[k], periodic) ** 2 + convolve(x, linear[k], periodic) + biases[k]
    z = jax.nn.leaky_relu(pair(0), 0.2)
    for k in range(layers):
        z = jax.nn.leaky_relu(convolve(z, params[f'nonnegative_{k}'], periodic) + pair(k + 1), 0.2)
    return convolve(z, params['nonnegative_last'], (True, True)).mean((2, 3)).sum(1)


def stock_up(
    call: Callable, arguments: tuple, options: dict, context: nn.module.InterceptorContext
) -> Any:
    """Computes the transposed convolutions of `networks.resnet` by `lax.conv_transpose`; an
    interceptor of Flax.
    """
    if not isinstance(context.module, Up) or context.method_name != '__call__':
        return call(*arguments, **options)
    (h,), params, periodic = arguments, context.module.variables['params'], context.module.periodic
    y = (
        jax.lax.conv_transpose(wrap(h, 1, periodic), params['kernel'], (2, 2), 'VALID')
        + params['bias']
    )
    rows, columns = (
        slice(2 * wraps, 2 * wraps + 2 * n) for wraps, n in zip(periodic, h.shape[1:3], strict=True)
    )
    return y[:, rows, columns]


def direct_loss(config: Any) -> Callable:
    """Returns the mirror loss `(params, frozen, key, batch, *, train)` as published: four separate
    network calls.
    """
    mirror, section = build.make_mirror(config), config.mirror
    a, periodic = (
        section.strong_convexity,
        build.PADDINGS[section.forward_padding](make_problem(config).periodic),
    )

    def g(params: Any, x: jax.Array) -> jax.Array:
        gradient = jax.grad(lambda x: direct_icnn(params['forward'], x, periodic).sum())(x)
        return (1 - a) * gradient + a * x

    def f(params: Any, z: jax.Array, dropout_key: Any) -> jax.Array:
        with nn.intercept_methods(stock_up):
            return mirror.inverse(params, z, dropout_key)

    def loss(
        params: Any, frozen: Any, key: jax.Array, batch: Any, *, train: bool
    ) -> tuple[jax.Array, dict]:
        key_noise, *keys = (
            jax.random.split(key, 3) if train else (jax.random.split(key)[0], None, None)
        )
        x = batch['x']
        z, _ = add_noise(
            key_noise, g(params, x), sigma_max=section.sigma_max, power=section.sigma_power
        )
        x_inverse = f(params, z, keys[0])
        cycle_data = jnp.abs(f(params, g(params, x), keys[1]) - x).mean()
        cycle_mirror = jnp.abs(g(params, x_inverse) - z).mean()
        regularisation = jnp.abs((g(params, x) - a * x) / (1 - a)).mean()
        total = (
            section.lambda_cycle * (cycle_data + cycle_mirror) / 2
            + section.lambda_reg * regularisation
        )
        return total + section.lambda_constr * frozen['constraint'].distance(x_inverse).mean(), {}

    return loss


def published(x: jax.Array, repeats: int, parts: int) -> dict[str, Measured]:
    """Times the mirror step of the published networks, ours and as written down, and checks that
    both agree.

    Raises:
        RuntimeError: if the two losses differ by more than 1e-4 of their value.
    """
    config = override(get_config('paper').unlock(), PUBLISHED_NETWORKS)
    ours = build.mirror_task(config, 100, build.make_constraint(config))
    direct = ours._replace(loss=direct_loss(config))
    params = ours.init(jax.random.key(0))
    values = [
        float(
            jax.jit(
                lambda p, t=t: t.loss(p, t.frozen, jax.random.key(2), {'x': x}, train=False)[0]
            )(params)
        )
        for t in (direct, ours)
    ]
    if abs(values[0] - values[1]) > 1e-4 * abs(values[0]):
        raise RuntimeError(
            f'got losses {values}, expected equal ones: the two steps are not the same method'
        )
    return {
        'published networks, as written down': step_of(direct, {'x': x}, repeats),
        'published networks, ours': step_of(ours, {'x': x}, repeats, parts),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--presets', default='quick,paper', help='of configs/burgers.py, separated by commas'
    )
    parser.add_argument(
        '--batch', type=int, default=4, help="the batch above 32x32 pixels; 0 for the preset's own"
    )
    parser.add_argument(
        '--repeats', type=int, default=5, help='timed calls of each step, after one to warm up'
    )
    parser.add_argument(
        '--parts', type=int, default=2, help='of a batch, side by side; train.parts'
    )
    parser.add_argument('--dtypes', default='float32', help='of the networks, separated by commas')
    parser.add_argument(
        '--published', action='store_true', help='the published networks, both ways, as well'
    )
    parser.add_argument(
        '--steps_only', action='store_true', help='leave out the parts and the samplers'
    )
    add_json(parser)
    arguments = parser.parse_args()
    dtypes = arguments.dtypes.split(',')
    peaks = {dtype: matmul_peak(dtype) for dtype in dict.fromkeys([*dtypes, 'float32'])}
    rows = Rows(
        *('preset', 'type', 'step', 'batch', 'ms', 'ms an image', 'GFLOP/s', 'of the matmul'),
        *('temporaries, MB', 'compilation, s'),
    )

    def report(preset: str, dtype: str, measurements: dict[str, Measured]) -> None:
        for name, of in measurements.items():
            rate = of.gflop / of.milliseconds * 1e3
            rows.add(
                *(preset, dtype, name, of.images, f'{of.milliseconds:.1f}'),
                *(
                    f'{of.milliseconds / of.images:.2f}',
                    f'{rate:.0f}',
                    f'{rate / peaks[dtype]:.0%}',
                ),
                *(f'{of.megabytes:.0f}', f'{of.compilation:.1f}'),
            )

    for preset, dtype in itertools.product(arguments.presets.split(','), dtypes):
        config = override(get_config(preset).unlock(), {'train.compute_dtype': dtype})
        if arguments.batch and config.data.points > 32:
            override(
                config,
                {f'{name}.batch_size': arguments.batch for name in ('mirror', 'finetune', 'score')},
            )
        x = fields(config)
        report(preset, dtype, training_steps(config, x, arguments.repeats, arguments.parts))
        if not arguments.steps_only:
            report(preset, dtype, parts(config, x, arguments.repeats))
            report(preset, dtype, samplers(config, x, arguments.repeats))
    facts = [f'A matmul in {dtype}: {peak:.0f} GFLOP/s.' for dtype, peak in peaks.items()]
    if arguments.published:
        x = fields(get_config('paper'))[: arguments.batch or 16]
        both = published(x, arguments.repeats, arguments.parts)
        report('64x64', 'float32', both)
        direct, ours = (of.milliseconds for of in both.values())
        facts.append(f'The published step, ours: {direct / ours:.2f} times as fast.')
    rows.keep(arguments.json, *facts)


if __name__ == '__main__':
    main()
