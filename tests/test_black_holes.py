"""Black-hole images: exact orbits and rays, the symmetries of the scene, and what must be there to
see.
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from namm_jax.problems.black_hole_images import (
    BlackHole,
    BlackHoles,
    direct_radius,
    isco_radius,
    lensed_radius,
    orbital_speed,
)

PROBLEM = BlackHoles()
SAMPLE = jax.jit(PROBLEM.fields)
KEYS = jax.random.split(jax.random.key(0), 16)
DISTANCE_TO_CENTRE = np.hypot(*np.meshgrid(np.arange(64) - 31.5, np.arange(64) - 31.5))
FACE_ON = dict(
    spin=0, inclination=0, diameter=0.26, exponent=5, boost=0.6, orientation=0, right=0, up=0
)
TILTED = FACE_ON | dict(inclination=50)
SCENES = {
    'face_on': FACE_ON,
    'face_on_turned': FACE_ON | dict(orientation=30),
    'shifted': FACE_ON | dict(right=4 / 64, up=2 / 64),
    'retrograde': FACE_ON | dict(spin=-0.9, diameter=0.4, exponent=6),
    'tilted': TILTED,
    'quarter_turn': TILTED | dict(orientation=90),
    'half_turn': TILTED | dict(orientation=180),
    'slow': TILTED | dict(boost=0),
}


@pytest.fixture(scope='module')
def fields():
    return SAMPLE(KEYS)


@pytest.fixture(scope='module')
def scenes():
    holes = BlackHole(
        **{name: jnp.float32([scene[name] for scene in SCENES.values()]) for name in FACE_ON}
    )
    images = np.asarray(jax.jit(jax.vmap(PROBLEM.render))(holes))
    return dict(zip(SCENES, 120 * images / images.sum((1, 2), keepdims=True), strict=True))


def profile(image):
    """The mean over azimuth at the radii 0.5, 1.5, ..., 31.5 pixels."""
    ring = DISTANCE_TO_CENTRE.astype(int)
    return np.array([image[ring == radius].mean() for radius in range(32)])


def angle_to_infinity(b, r):
    """The exact angle between a radius r that a ray leaves outwards and the direction that it takes
    in the end.
    """
    u = (np.arange(4000) + 0.5) / (4000 * r)
    return np.mean(1 / np.sqrt(1 / b**2 - u**2 * (1 - 2 * u))) / r


def angle_around(b, r):
    """The exact angle of a ray from r inwards, around the hole and out again, for b above the
    critical sqrt(27).
    """
    left, turn, right = np.sort(np.roots([2, -1, 0, 1 / b**2]).real)  # of (du / dphi)^2, u = 1 / r

    def leg(u_0):
        s = (
            (np.arange(4000) + 0.5) / 4000 * np.sqrt(turn - u_0)
        )  # u = turn - s^2 takes the root out of the integrand
        u = turn - s**2
        return np.sqrt(turn - u_0) * np.mean(2 / np.sqrt(2 * (right - u) * (u - left)))

    return leg(0) + leg(1 / r)


def test_innermost_stable_orbit():
    # The last one is the limit that accretion reaches (Thorne 1974).
    expected = {0.0: 6, 1.0: 1, -1.0: 9, 0.5: 4.2330, 0.9: 2.3209, 0.998: 1.2370}
    for spin, radius in expected.items():
        assert float(isco_radius(spin)) == pytest.approx(radius, rel=2e-4), spin


def test_orbital_speed():
    assert float(orbital_speed(6.0, 0.0)) == pytest.approx(0.5)
    assert float(orbital_speed(3.0, 0.0)) == pytest.approx(1)  # the orbit of light
    assert float(orbital_speed(1e6, 0.7)) == pytest.approx(1e-3, rel=1e-3)  # Kepler


@pytest.mark.parametrize(('r', 'degrees'), [(4, 60), (6, 30), (6, 85), (20, 60)])
def test_direct_rays_against_exact_geodesics(r, degrees):
    b = r * np.sin(np.deg2rad(degrees)) / np.sqrt(1 - 2 / r)
    cos_psi = np.cos(angle_to_infinity(b, r))
    assert float(
        direct_radius(jnp.float32([[b]]), jnp.float32([[cos_psi]]))[0, 0]
    ) == pytest.approx(r, rel=0.005)


@pytest.mark.parametrize('delta', [0.02, 0.05, 0.1])
def test_lensed_rays_against_exact_geodesics(delta):
    b = np.sqrt(27) * (1 + delta)
    cos_psi = np.cos(angle_around(b, 6) - np.pi)
    assert float(
        lensed_radius(jnp.float32([[b]]), jnp.float32([[cos_psi]]))[0, 0]
    ) == pytest.approx(6, rel=0.05)


def test_lensed_rays_end_in_the_hole_or_miss_the_disk():
    # Face-on, the second image of the disk spans b = 5.02 to 6.17 (Gralla, Holz & Wald 2019).
    b = jnp.float32([[0.1, 3.0, 4.9, 5.02, 5.3, 6.3, 10.0, 100.0]])
    r = np.asarray(lensed_radius(b, jnp.zeros_like(b)))[0]
    assert (
        (r[:3] < 2).all()
        and r[3] == pytest.approx(2, rel=0.05)
        and 3 < r[4] < 6
        and (r[5:] > 1e5).all()
    )


def test_every_image_has_the_total_and_no_negative_pixel(fields):
    chex.assert_shape(fields, (16, 64, 64, 1))
    assert fields.dtype == jnp.float32 and float(fields.min()) >= 0
    np.testing.assert_allclose(np.asarray(fields, np.float64).sum((1, 2, 3)), 120, rtol=1e-5)


def test_ring_and_shadow_in_every_image(fields):
    for image in np.asarray(fields)[..., 0]:
        mean = profile(image)
        assert 5 <= mean.argmax() <= 15, 'a ring of about 20 pixels'
        assert mean[0] < mean.max() / 2, 'the shadow'
        assert mean[-1] < mean.max() / 4
    assert 0.4 < np.median(fields.max((1, 2, 3))) < 0.9


def test_field_depends_on_its_key_alone(fields):
    others = SAMPLE(jax.random.split(jax.random.key(1), 16).at[2].set(KEYS[2]))
    np.testing.assert_allclose(others[2], fields[2], atol=1e-6)
    np.testing.assert_allclose(SAMPLE(KEYS[::-1]), fields[::-1], atol=1e-6)
    assert float(jnp.abs(others[3] - fields[3]).max()) > 0.05
    assert float(jnp.abs(fields[0] - fields[1]).max()) > 0.05


def test_smaller_images_show_the_same_scene(fields):
    problem = dataclasses.replace(PROBLEM, points=32, total=30)
    small = jax.jit(problem.fields)(KEYS[:2])
    blocks = fields[:2].reshape(2, 32, 2, 32, 2).mean((2, 4))
    np.testing.assert_allclose(small[..., 0], blocks, atol=1e-4)


def test_face_on_is_axisymmetric(scenes):
    image = scenes['face_on']
    np.testing.assert_allclose(np.rot90(image), image, atol=1e-5)
    np.testing.assert_allclose(image.T, image, atol=1e-5)
    np.testing.assert_allclose(scenes['face_on_turned'], image, atol=1e-5)


def test_face_on_ring_has_the_radius_of_the_innermost_stable_orbit(scenes):
    # Gas at r is seen at about r + 1 (Gralla & Lupsasca 2020): the edge, 6 M, at 7 M, and the peak
    # soon outside it.
    pixels_per_m = 0.26 * 64 / (2 * np.sqrt(27))
    assert 6.8 < (profile(scenes['face_on']).argmax() + 0.5) / pixels_per_m < 8


def test_photon_ring_inside_a_hollow_disk(scenes):
    # The disk ends at 8.7 M, seen at 9.7 M; what is bright at 5.0 to 6.2 M went around the hole.
    pixels_per_m = 0.4 * 64 / (2 * np.sqrt(27))
    mean = profile(scenes['retrograde'])
    inner, outer = mean[:17].argmax(), 17 + mean[17:].argmax()
    assert 5.0 < (inner + 0.5) / pixels_per_m < 6.2
    assert 8.7 < (outer + 0.5) / pixels_per_m < 11
    assert mean[inner:outer].min() < 0.95 * mean[inner] < mean[outer]


def test_the_approaching_side_is_brighter_and_turns_with_the_image(scenes):
    image = scenes['tilted']
    assert image[:, :32].sum() > 2 * image[:, 32:].sum()
    assert scenes['half_turn'][:, 32:].sum() > 2 * scenes['half_turn'][:, :32].sum()
    np.testing.assert_allclose(scenes['half_turn'], image[::-1, ::-1], atol=1e-4)
    np.testing.assert_allclose(scenes['quarter_turn'], np.rot90(image), atol=1e-4)


def test_without_motion_left_and_right_are_alike_and_top_and_bottom_are_not(scenes):
    image = scenes['slow']
    np.testing.assert_allclose(image[:, ::-1], image, atol=1e-5)
    assert image[:32].sum() > 1.1 * image[32:].sum(), 'light from behind the hole is bent over it'


def test_shift_moves_the_hole_right_and_up(scenes):
    moved = np.roll(scenes['face_on'], (-2, 4), (0, 1))
    np.testing.assert_allclose(
        scenes['shifted'][8:-8, 8:-8], moved[8:-8, 8:-8], rtol=5e-3, atol=1e-5
    )


def test_errors():
    for keys in (jax.random.key(0), jax.random.PRNGKey(0)):
        with pytest.raises(ValueError, match='expected one typed key a sample'):
            PROBLEM.fields(keys)
    for setting in (
        dict(points=4),
        dict(total=0.0),
        dict(beam=-1.0),
        dict(spin=(0.0, 0.99)),
        dict(exponent=(5.0, 4.0)),
        dict(inclination=(10.0, 90.0)),
        dict(total=float('nan')),
        dict(total=float('inf')),
    ):
        with pytest.raises(ValueError, match=f'{next(iter(setting))}( = |: got )'):
            BlackHoles(**setting)


def test_uneven_and_blurred_images_keep_their_total_and_differ_as_told():
    even = BlackHoles(points=32, total=30.0)
    key, sharpness = jax.random.key(3), lambda x: float(np.abs(np.diff(x, axis=1)).mean())
    images = {
        name: np.asarray(dataclasses.replace(even, **ranges).sample(key, 8))
        for name, ranges in {
            'even': {},
            'blurred': {'blur': (0.05, 0.05)},
            'uneven': {'turbulence': (1.0, 1.0)},
            'surrounded': {'faint': (0.2, 0.2)},
        }.items()
    }
    for x in images.values():
        np.testing.assert_allclose(x.sum((1, 2, 3)), 30, rtol=1e-5)
        assert (x >= 0).all()
    assert sharpness(images['blurred']) < 0.7 * sharpness(images['even'])
    # The same holes, their brightness times a random factor of that size.
    bright = images['even'] > 0.05
    logs = np.log(images['uneven'][bright] / images['even'][bright])
    assert 0.6 < logs.std() < 1.4
    # A fifth of the light has gone into patches, which are positive and reach every side.
    patches = images['surrounded'] - 0.8 * images['even']
    np.testing.assert_allclose(patches.sum((1, 2, 3)), 6, rtol=1e-4)
    assert patches.min() > 0 and all((patches.mean(i) > 1e-4).all() for i in (1, 2))
    with pytest.raises(ValueError, match='blur'):
        BlackHoles(blur=(0.1, 0.0))
