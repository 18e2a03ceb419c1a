import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from t2i.rng import STREAMS, generator, generators, step_seed

addresses = st.integers(0, 2**63)


@given(st.integers(0, 2**63), st.sampled_from(sorted(STREAMS)), addresses, addresses)
def test_a_draw_depends_on_its_address_only(seed, stream, first, second):
    expected = generator(seed, stream, first).random(4)
    generator(seed, stream, second).random(100)
    assert np.array_equal(generator(seed, stream, first).random(4), expected)
    if first != second:
        assert not np.array_equal(generator(seed, stream, second).random(4), expected)


@given(st.integers(0, 2**63), st.sampled_from(sorted(STREAMS)), st.lists(addresses, max_size=8))
def test_a_generator_that_moves_draws_what_one_at_the_address_does(seed, stream, addresses):
    """Also after draws that leave half a number over."""

    def draws(random: np.random.Generator) -> list:
        return [random.standard_normal(3, dtype=np.float32).tolist(), random.random(), random.integers(10)]

    moving = [draws(random) for random in generators(seed, stream, addresses)]
    assert moving == [draws(generator(seed, stream, address)) for address in addresses]


def test_streams_and_seeds_are_independent():
    """Correlations between 20,000 draws at the same addresses of different streams are those of chance."""
    draws = np.stack(
        [
            np.concatenate([generator(seed, stream, position).standard_normal(20) for position in range(1000)])
            for seed, stream in [(0, "noise"), (0, "posterior"), (1, "noise"), (0, "timestep")]
        ]
    )
    correlation = np.corrcoef(draws) - np.eye(4)
    assert np.abs(correlation).max() < 5 / np.sqrt(20_000)


def test_normal_draws_are_normal():
    draws = np.concatenate([generator(0, "noise", position).standard_normal(100) for position in range(1000)])
    assert abs(draws.mean()) < 0.02
    assert abs(draws.std() - 1) < 0.02


def test_step_seed_differs_by_step_and_rank():
    seeds = {step_seed(0, step, rank) for step in range(100) for rank in range(4)}
    assert len(seeds) == 400
