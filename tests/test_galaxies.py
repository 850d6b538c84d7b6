"""Galaxy images: the stated laws of sources and noise, profiles at known points, and counts that
can be seen.
"""

import dataclasses
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from namm_jax.inverse.operators import blur_matrix
from namm_jax.problems.galaxy_images import Galaxies, Sources, render

MANY = Galaxies(points=64, count=(0, 16))
QUIET = Galaxies(points=16, count=(0, 2), noise=0.0)
MAPPED, QUIET_MAPPED = (dataclasses.replace(problem, maps=True) for problem in (MANY, QUIET))


@jax.jit
def images(problem, keys):
    parts = problem.sources(keys), problem.smoothed_noise(keys), problem.fields_with_counts(keys)
    return (*parts[0], parts[1], *parts[2])


@pytest.fixture(scope='module')
def sample():
    """Returns sources, counts, noise, fields and counts again, of 200 images with 0 to 16
    sources.
    """
    return jax.tree.map(np.asarray, images(MANY, jax.random.split(jax.random.key(0), 200)))


def visible_peaks(images):
    """Returns how many pixels of each image are above 1 and above their 8 neighbours."""
    padded = np.pad(images, [(0, 0), (1, 1), (1, 1)], constant_values=-np.inf)
    n = images.shape[1]
    shifts = [(i, j) for i in range(3) for j in range(3) if (i, j) != (1, 1)]
    neighbours = np.max([padded[:, i : i + n, j : j + n] for i, j in shifts], 0)
    return ((images > neighbours) & (images > 1)).sum((1, 2))


@pytest.mark.slow
def test_the_counts_are_uniform_and_those_of_the_slots_taken(sample):
    sources, counts, _, fields, again = sample
    np.testing.assert_array_equal(counts, again)
    assert set(counts) == set(range(17))
    assert counts.mean() == pytest.approx(8, abs=1.5)
    np.testing.assert_array_equal(sources.peaks > 0, np.arange(16) < counts[:, None])
    assert len(fields) == len(counts) == 200


def test_centres_are_anywhere_and_more_than_five_pixels_apart(sample):
    sources, counts, *_ = sample
    least = []
    for centres, count in zip(sources.centres, counts, strict=True):
        gaps = centres[:count, None] - centres[None, :count]
        least += list(np.sqrt((gaps**2).sum(-1))[np.triu_indices(count, 1)])
    assert 5 < min(least) < 5.5, 'the nearest allowed distance is sqrt(26) = 5.1'
    assert sources.centres.min() == 0 and sources.centres.max() == 63
    taken = sources.centres[sources.peaks > 0]
    np.testing.assert_allclose(taken.mean(0), 31.5, atol=2)


def test_peaks_widths_and_angles_have_the_stated_laws(sample):
    sources = sample[0]
    peaks = sources.peaks[sources.peaks > 0]
    assert MANY.faintest <= peaks.min() and peaks.max() <= 10
    assert peaks.mean() == pytest.approx((MANY.faintest + 10) / 2, abs=0.25)
    s_x, s_y = sources.widths[..., 0], sources.widths[..., 1]
    # At 64 points s_x = max(Gamma(1.6, 1), 1): the regularised incomplete gamma function P(1.6, 1)
    # is 0.391.
    assert s_x.min() == 1
    assert (s_x == 1).mean() == pytest.approx(0.391, abs=0.035)
    ratio = (s_y / s_x) ** 2
    assert ((1 - ratio) / (1 + ratio)).mean() == pytest.approx(1.7 / 6.2, abs=0.012)
    assert 0 <= sources.angles.min() and sources.angles.max() <= math.pi
    assert sources.angles.mean() == pytest.approx(math.pi / 2, abs=0.07)


def test_the_paper_s_faintest_source_and_that_of_a_smaller_image():
    assert Galaxies().faintest == pytest.approx(3.55, abs=0.01)
    assert MANY.faintest == pytest.approx(Galaxies().faintest, rel=1e-3)


def test_noise_has_the_stated_strength(sample):
    noise = sample[2]
    assert noise.std() == pytest.approx(MANY.noise_std, rel=0.03)
    # Far from the border: white noise of 4.25 smoothed by sigma = 2 has the standard deviation 4.25
    # / (2 sqrt(pi) 2).
    assert noise[:, 16:-16, 16:-16].std() == pytest.approx(
        4.25 / (4 * math.sqrt(math.pi)), rel=0.05
    )
    # Reflected noise adds up at the border: in a corner nearly twice.
    assert noise[:, [0, 0, -1, -1], [0, -1, 0, -1]].std() == pytest.approx(1.163, rel=0.12)


def test_smoothing_is_that_of_scipy_with_reflection():
    white = np.random.default_rng(0).normal(size=(12, 12))
    blur = blur_matrix(12, 1, 2.0)
    np.testing.assert_allclose(
        blur @ white @ blur.T, ndimage.gaussian_filter(white, 2.0, mode='reflect'), atol=1e-12
    )


def test_images_are_their_sources_and_noise_scaled_to_the_unit_interval(sample):
    sources, _, noise, fields, _ = sample
    assert fields.shape == (200, 64, 64, 1) and fields.dtype == np.float32
    assert (fields.min((1, 2, 3)) == 0).all()
    np.testing.assert_allclose(fields.max((1, 2, 3)), 1, atol=1e-6)
    few = jax.tree.map(lambda array: jnp.asarray(array[:5]), sources)
    sky = np.asarray(render(few, points=64)) + noise[:5]
    for image, field in zip(sky, fields, strict=False):
        assert np.corrcoef(image.ravel(), field.ravel())[0, 1] > 0.99999


def test_as_many_peaks_are_seen_as_there_are_sources(sample):
    sources, counts, *_ = sample
    narrow = sources._replace(widths=np.ones_like(sources.widths))
    images = np.asarray(render(jax.tree.map(jnp.asarray, narrow), points=64))
    np.testing.assert_array_equal(visible_peaks(images), counts)


def test_profile_of_a_source():
    # Half of the peak lies at 2 ln 2 widths from the centre: here 3 pixels along the axis of s_x
    # and 2 across it.
    width = np.array([3, 2]) / (2 * math.log(2))
    sources = Sources(
        centres=jnp.full((3, 1, 2), jnp.array([20, 30])),
        peaks=jnp.full((3, 1), 8.0),
        widths=jnp.full((3, 1, 2), jnp.asarray(width, jnp.float32)),
        angles=jnp.array([[0.0], [math.pi / 2], [math.pi / 4]]),
    )
    level, upright, oblique = np.asarray(render(sources, points=48))
    assert level[20, 30] == upright[20, 30] == 8
    across = [level[18, 30], level[22, 30], upright[20, 28], upright[20, 32]]
    along = [level[20, 27], level[20, 33], upright[17, 30], upright[23, 30]]
    np.testing.assert_allclose(across + along, 4, rtol=1e-5)
    np.testing.assert_allclose([level[20, 36], level[22, 33]], [8 / 16, 2], rtol=1e-5)
    assert oblique[23, 33] > oblique[17, 33] + 0.5, (
        'the angle turns from columns towards larger rows'
    )


def test_sources_add_up_and_empty_slots_add_nothing():
    sources = Sources(
        centres=jnp.array([[[3, 3], [3, 5], [6, 6]]]),
        peaks=jnp.array([[8.0, 2.0, 0.0]]),
        widths=jnp.full((1, 3, 2), 1 / math.log(2)),  # half at 2 pixels
        angles=jnp.zeros((1, 3)),
    )
    image = render(sources, points=10)[0]
    np.testing.assert_allclose([image[3, 3], image[3, 5]], [8 + 1, 4 + 2], rtol=1e-5)
    one = sources._replace(peaks=jnp.array([[8.0, 0.0, 0.0]]))
    np.testing.assert_allclose(render(one, points=10)[0, 3, 5], 4, rtol=1e-5)


@pytest.mark.slow
def test_image_depends_on_its_key_alone_and_without_noise_and_sources_is_zero():
    sample = jax.jit(QUIET.fields_with_counts)
    keys = jax.random.split(jax.random.key(1), 32)
    together, counts = sample(keys)
    chex.assert_trees_all_close(sample(keys[::-1]), (together[::-1], counts[::-1]), atol=1e-5)
    others, _ = sample(jax.random.split(jax.random.key(2), 32).at[2].set(keys[2]))
    chex.assert_trees_all_close(others[2], together[2], atol=1e-5)
    assert set(counts.tolist()) == {0, 1, 2}
    highest = together.max((1, 2, 3))
    np.testing.assert_allclose(highest, counts > 0, atol=1e-6)
    assert np.unique(np.asarray(together), axis=0).shape[0] == int((counts > 0).sum()) + 1


def test_a_map_is_its_sources_smoothed_and_sums_to_their_number(sample):
    sources, counts, _, fields, _ = sample
    both = jax.jit(MAPPED.fields)(jax.random.split(jax.random.key(0), 200))
    assert both.shape == (200, *MAPPED.shape) == (200, 64, 64, 2)
    np.testing.assert_allclose(both[..., :1], fields, atol=1e-5)
    maps = np.asarray(both[..., 1])
    np.testing.assert_allclose(maps.sum((1, 2)), counts, atol=1e-4)
    for centres, count, found in zip(sources.centres[:20], counts, maps, strict=False):
        points = np.zeros((64, 64))
        np.add.at(points, tuple(centres[:count].T), 1)
        np.testing.assert_allclose(
            found, ndimage.gaussian_filter(points, 2, mode='reflect'), atol=1e-6
        )


@pytest.mark.parametrize('points', [64, 128])
def test_networks_see_maps_that_vary_as_images_do(points):
    problem = Galaxies(points=points, maps=True)
    x = np.asarray(problem.sample(jax.random.key(5), 32))
    x = (x - np.array(problem.mean)) / np.array(problem.scale)
    np.testing.assert_allclose(x.mean((0, 1, 2)), 0, atol=0.02)
    np.testing.assert_allclose(x.std((0, 1, 2)), 0.11, rtol=0.1)


def test_the_rule_of_a_map_is_its_sum_within_a_quarter_and_never_looks_at_the_image():
    problem = dataclasses.replace(MAPPED, count=8)
    x = problem.fields(jax.random.split(jax.random.key(3), 3))
    x = x * jnp.array([1, 7.5, 8, 9]).reshape(4, 1, 1, 1, 1) / 8
    distances = [problem.distance(part.at[..., 0].set(0)) for part in x]
    np.testing.assert_allclose(jnp.mean(jnp.stack(distances), 1), [6.75, 0.25, 0, 0.75], atol=1e-5)
    residuals = problem.constraint().residual(x[:, 0])[:, 0]
    np.testing.assert_allclose(residuals, [-6.75, -0.25, 0, 0.75], atol=1e-5)
    with pytest.raises(ValueError, match='counter: got one, expected none'):
        problem.constraint(counter=lambda x: x.sum((1, 2, 3)))
    with pytest.raises(ValueError, match='Got 0 to 16 sources, expected one number'):
        MAPPED.constraint()


def test_maps_are_not_measured():
    x = QUIET_MAPPED.fields(jax.random.split(jax.random.key(4), 2))
    for name in ('', 'random_sensors', 'own'):
        options = {'function': lambda x: x.mean(2)} if name == 'own' else {}
        operator = QUIET_MAPPED.measurement(name, **options)
        y = QUIET.measurement(name, **options)(x[..., :1])
        np.testing.assert_array_equal(operator(x), y)
    back = QUIET_MAPPED.measurement().adjoint(QUIET_MAPPED.measurement()(x))
    assert back.shape == x.shape and not back[..., 1].any() and back[..., 0].any()


def test_galaxies_need_a_vector_of_typed_keys():
    for keys in (jax.random.key(0), jax.random.PRNGKey(0)):
        with pytest.raises(ValueError, match='expected one typed key a sample'):
            MANY.fields(keys)


@pytest.mark.parametrize(
    ('setting', 'message'),
    [
        ({'count': -1}, 'count: got -1, expected at least 0'),
        ({'count': (3, 2)}, r'count = \(3, 2\)'),
        ({'points': 2, 'count': 1}, 'points: got 2, expected at least 4'),
        ({'noise': -1.0}, 'noise: got -1.0'),
        ({'smoothing': 0.0}, 'smoothing: got 0.0'),
        ({'noise': 30.0}, 'least peak is 12.5; expected at most 10'),
        ({'points': 32, 'count': 16}, 'up to 16 sources more than 5.0 pixels apart on 32x32'),
    ],
)
def test_galaxy_problem_errors(setting, message):
    with pytest.raises(ValueError, match=message):
        Galaxies(**setting)


def test_the_largest_numbers_of_sources_fit():
    for points in (64, 128):
        assert dataclasses.replace(Galaxies(points=points), count=(0, 16)).counts == (0, 16)
