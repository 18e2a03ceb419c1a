"""Random numbers by address: a draw depends on where it is used, never on earlier draws.

A counter-based generator (Philox: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") makes the n-th
random number of a stream computable on its own. A training example therefore draws the same crop, timestep and noise
for every micro-batch size, number of workers or processes, and resume point; and the runs of a sweep share their draws.
"""

from collections.abc import Iterable, Iterator

import numpy as np

# One stream for each kind of choice, so that switching one on or off does not change the others.
# The numbers are part of every result: append, never renumber.
STREAMS = {
    "order": 0,  # address: epoch; or (bucket, counted from 1, epoch)
    "posterior": 1,  # address of the training streams: position in the endless order of examples
    "timestep": 2,
    "noise": 3,
    "caption": 4,
    "image": 5,  # which view; and where the windows of an image lie: address: window
    "noise_offset": 6,
    "input_perturbation": 7,
    "battery": 8,  # address: (held-out item, timestep of the battery)
    "sample": 9,  # address: (seed of the image, prompt)
    "step": 10,  # address: optimizer step
    "caption_choice": 11,  # among several captions, as the other training streams
    "rounding": 12,  # of an optimizer's weights, address: (optimizer step, weight)
    "image_battery": 13,  # address: the first 128 bits of the prompt's hash
    "mixture": 14,  # of several sources, address: (bucket, counted from 1; or 0, block)
    "source_order": 15,  # address: (bucket · 2^32 + source, epoch of the source)
    "tags": 16,  # of a caption, address: variant; seed: from the caption's hash
    "class_image": 17,  # address: number of the image; seed: from the prompt's hash
}


def generator(seed: int, stream: str, *address: int) -> np.random.Generator:
    """The random generator that belongs to `address` (one or two non-negative integers) of `stream`."""
    high, low = (0, *address)[-2:]
    bits = np.random.Philox(key=[seed, STREAMS[stream]], counter=[0, 0, low, high])
    return np.random.Generator(bits)


def generators(seed: int, stream: str, addresses: Iterable[int]) -> Iterator[np.random.Generator]:
    """The generators of several addresses; each is valid until the next one is requested.

    A single generator moves from address to address, in a sixth of the time that creating each one would take.
    """
    random = generator(seed, stream, 0)
    state = random.bit_generator.state
    for address in addresses:
        state["state"]["counter"][2] = address
        random.bit_generator.state = state
        yield random


def step_seed(seed: int, step: int, rank: int) -> int:
    """The seed for torch's own generators at one step, so that dropout too is a function of seed, step and rank."""
    return int(generator(seed, "step", rank, step).integers(2**63))
