"""The power that is computed is the power of the test that is made, and the recommended sizes reach what was asked."""

import numpy as np
import pytest

from t2i.comparison.planning import Goal, Planner
from t2i.comparison.power import Pilot, Size, Variances, detectable, pilot_of, power
from t2i.comparison.significance import LEVEL, Table, infer, seed_weight, two_sided

WANTED = 0.8


def tables(variances, size, difference, count, rng):
    """Normally distributed pseudo-values with these variance components, [count, S, N]."""
    seed, image, rest = np.sqrt(variances)
    shape = (count, size.seeds, size.images)
    return (
        difference
        + seed * rng.standard_normal((*shape[:2], 1))
        + image * rng.standard_normal((count, 1, size.images))
        + rest * rng.standard_normal(shape)
    )


def p_values(pseudo):
    """The p-values of `infer` for many tables at once, [count] of [count, S, N]."""
    _, seeds, images = pseudo.shape
    by_seed, by_image = pseudo.mean(2), pseudo.mean(1)
    of_seeds, of_images = by_seed.var(1, ddof=1) / seeds, by_image.var(1, ddof=1) / images
    rest = pseudo - by_seed[:, :, None] - by_image[:, None] + pseudo.mean((1, 2), keepdims=True)
    of_rest = np.square(rest).sum((1, 2)) / ((seeds - 1) * (images - 1)) / (seeds * images)
    of_images = np.maximum(of_images - of_rest, 0)
    error = np.sqrt(of_seeds + of_images)
    weight = seed_weight(of_seeds / error**2, max(seeds - 1, 1))
    return two_sided(np.abs(pseudo.mean((1, 2))) / error, weight, max(seeds - 1, 1), images - 1)


def exact(variances, size):
    """A pilot that knows the variances."""
    seed, image, rest = variances
    return Pilot(rest + size.images * seed, rest + size.seeds * image, rest, size, counted=1.0)


def test_many_tables_at_once_are_tested_as_one_by_one():
    pseudo = tables((1, 9, 9), Size(4, 20, 1), 0.5, 20, np.random.default_rng(0))
    one_by_one = [infer([Table(table.mean(1), table, 20)]).p for table in pseudo]
    np.testing.assert_allclose(p_values(pseudo), one_by_one, rtol=1e-9)


@pytest.mark.parametrize(
    ("variances", "size", "difference", "comparisons"),
    [
        ((1, 9, 9), Size(5, 30, 1), 1.8, 1),
        ((0.2, 30, 9), Size(3, 40, 1), 3, 1),
        ((1, 1, 1), Size(8, 16, 1), 1.5, 4),
        ((0, 4, 30), Size(2, 64, 1), 3, 1),
        ((1, 1, 1), Size(3, 16, 1), 0, 1),  # no difference: the rate of false alarms
    ],
)
def test_the_power_is_how_often_the_test_finds_the_difference(variances, size, difference, comparisons):
    pseudo = tables(variances, size, difference, 6000, np.random.default_rng(1))
    found = np.mean(p_values(pseudo) < LEVEL / comparisons)
    pilot = exact(variances, size)
    assert power(pilot, size, difference, comparisons, pilot.exact()) == pytest.approx(found, abs=0.02)


@pytest.mark.parametrize("size", [Size(2, 64, 1), Size(5, 24, 1), Size(1, 64, 1)])
def test_what_is_detectable_is_found_with_the_power(size):
    pilot = exact((0 if size.seeds == 1 else 1, 16, 4), size)
    assert power(pilot, size, detectable(pilot, size)) == pytest.approx(WANTED, abs=0.01)


def test_what_falls_with_more_levels_is_the_noise_not_what_is_smooth_along_them():
    rng, (seeds, images, levels) = np.random.default_rng(0), (4, 400, 16)
    smooth = 3 * rng.standard_normal((1, images, 1)) * np.linspace(0, 1, levels)
    noise = 2 * rng.standard_normal((1, images, levels)) + rng.standard_normal((seeds, images, levels))
    cells = smooth + noise
    pseudo = cells.mean(2)
    pilot = pilot_of(Table(pseudo.mean(1), pseudo, images), cells)
    by_noise, all_of_images = 4 / levels, 9 / 4 + 4 / levels
    assert pilot.image_noise == pytest.approx(by_noise / all_of_images, rel=0.2)
    assert pilot.rest_noise == pytest.approx(1, abs=0.1)


def reached(variances, size, difference, count, rng):
    """Over pilots of this size, the power that the cheapest recommendation reaches, [count]."""
    true, powers = Variances(*np.array(variances, dtype=float)), []
    for pseudo in tables(variances, size, difference, count, rng):
        pilot = pilot_of(Table(pseudo.mean(1), pseudo, size.images))
        planner = Planner(pilot, Goal(difference, WANTED), most_images=4 * size.images)
        found = planner.cheapest(lambda size: size.seeds * (1000 + 2 * size.images))
        powers.append(power(pilot, found, difference, 1, true) if found else np.nan)
    return np.array(powers)


@pytest.mark.slow
@pytest.mark.parametrize("per_image", [0.01, 10])
def test_the_cheapest_is_no_dearer_than_what_is_raised_alone(per_image):
    pilot = exact((1, 16, 64), Size(4, 32, 1))
    planner = Planner(pilot, Goal(2.0, WANTED), most_images=400)

    def hours(size):
        return size.seeds * (10 + per_image * size.images)

    cheapest = planner.cheapest(hours)
    assert planner.power(cheapest) >= WANTED
    others = [planner.seeds(Size(4, images, 1)) for images in (32, 64, 128, 400)]
    assert hours(cheapest) <= 1.1 * min(hours(other) for other in others if other)


MIXTURES = {  # variances of seeds, of images and of the rest, and a difference that takes 6 to 20 seeds or 100 images
    "seeds": ((1, 4, 16), 1.0),
    "seeds and images": ((1, 32, 32), 1.5),
    "images": ((0.3, 64, 16), 2.2),
    "all alike": ((1, 16, 64), 1.3),
}


@pytest.mark.slow
@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("seeds", [4, 6])
def test_recommended_sizes_reach_the_power_on_average_over_pilots(mixture, seeds):
    variances, difference = MIXTURES[mixture]
    powers = reached(variances, Size(seeds, 64, 1), difference, 150, np.random.default_rng(seeds))
    print(f"{mixture}, {seeds} seeds: mean {np.nanmean(powers):.3f}, {np.isnan(powers).sum()} impossible")
    assert np.isnan(powers).mean() < 0.05
    assert 0.75 <= np.nanmean(powers) <= 0.85
