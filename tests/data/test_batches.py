import dataclasses

import numpy as np
import pytest
import torch

from t2i.data.batches import Draws
from t2i.data.cached_split import Examples
from t2i.data.loader import MicroBatches, loader
from t2i.data.samplers import Order
from t2i.diffusion.timesteps import Stratified, Uniform


class Encoded:
    """Stands for an encoded split: item i has latents of mean i and no spread, and its number as embedded caption."""

    def __len__(self):
        return 50

    def moments(self, items, draws=None):
        mean = np.broadcast_to(np.array(items, dtype=np.float32)[:, None, None, None], (len(items), 4, 2, 2))
        return mean, np.zeros_like(mean)

    def framing(self, items, draws=None):
        return torch.from_numpy(np.stack([items, (draws * 1000).astype(int)], axis=1))

    def weight(self, items, draws=None):
        return None

    def text(self, items, draws=None):
        return {"text": torch.tensor([-1 if item is None else item for item in items])}


def examples(caption_dropout=0.1, noise_offset=0.0, input_perturbation=0.0, timesteps=None, seed=0):
    order, timesteps = Order(np.ones(50), seed), timesteps or Uniform()
    draws = Draws(1000, timesteps, caption_dropout, noise_offset, input_perturbation, seed)
    return Examples(Encoded(), order, draws)


@pytest.mark.parametrize(("micro_batch_size", "num_processes"), [(16, 1), (4, 1), (4, 2), (2, 4)])
def test_a_step_has_the_same_examples_however_it_is_split(micro_batch_size, num_processes):
    dealt = []
    for rank in range(num_processes):
        split = MicroBatches(16, micro_batch_size, 3, 5, rank, num_processes)
        batches = list(split)
        assert len(batches) == 2 * split.accumulation
        dealt += [position for batch in batches for position in batch]
    assert sorted(dealt) == list(range(48, 80))


def test_an_example_is_a_function_of_its_position():
    """It is the same alone and among others, first and last."""
    together = examples().__getitems__(list(range(40, 60)))
    alone = examples().__getitems__([55])
    for name in ("x0", "noise", "t", "items"):
        assert torch.equal(getattr(alone, name)[0], getattr(together, name)[15])
    assert alone.text["text"][0] == together.text["text"][15]


def test_captions_are_dropped_at_the_given_rate_and_nothing_else_changes():
    positions = list(range(2000))
    kept, dropped = (examples(share).__getitems__(positions) for share in (0.0, 0.2))
    assert torch.equal(kept.text["text"], kept.items)
    assert abs((dropped.text["text"] == -1).float().mean() - 0.2) < 0.03
    assert torch.equal(kept.noise, dropped.noise)
    assert torch.equal(kept.t, dropped.t)


def test_views_and_captions_are_drawn_for_each_use():
    """Each as often as the others, and independently."""

    class Choices(Encoded):
        def moments(self, items, draws):
            mean, std = super().moments(items)
            return mean + draws[:, None, None, None].astype(np.float32), std

        def text(self, items, draws):
            return {"text": torch.from_numpy(draws)}

    several = dataclasses.replace(examples(caption_dropout=0.0), encoded=Choices())
    batch = several.__getitems__(list(range(4000)))
    view, caption = (batch.x0[:, 0, 0, 0] - batch.items).numpy(), batch.text["text"].numpy()
    counts, _, _ = np.histogram2d(view, caption, bins=4, range=[(0, 1), (0, 1)])
    assert np.abs(counts / 250 - 1).max() < 0.3
    assert np.abs(batch.text["time_ids"][:, 1].numpy() / 1000 - view).max() < 1.5e-3  # of the same views


def test_noise_offset_shifts_whole_channels():
    """With variance offset² around the same noise, in the input and in the target."""
    positions = list(range(500))
    plain, offset = (examples(noise_offset=share).__getitems__(positions) for share in (0.0, 0.5))
    shift = offset.noise - plain.noise
    assert torch.allclose(shift, shift[:, :, :1, :1].expand_as(shift), atol=1e-6)
    assert abs(shift[:, :, 0, 0].std() - 0.5) < 0.03
    assert offset.input_noise is None  # that of the target


def test_input_perturbation_leaves_the_target_alone():
    """Ning et al. 2023, algorithm 1: the network sees noise + 0.1 · xi, and is asked for the noise."""
    positions = list(range(500))
    plain, perturbed = (examples(input_perturbation=share).__getitems__(positions) for share in (0.0, 0.1))
    assert torch.equal(perturbed.noise, plain.noise)
    extra = perturbed.input_noise - perturbed.noise
    assert abs(extra.std() - 0.1) < 0.005
    assert abs(np.corrcoef(extra.flatten(), perturbed.noise.flatten())[0, 1]) < 0.03


def test_stratified_timesteps_cover_every_stratum_of_a_step():
    """However the step is split into micro-batches."""
    stratified = examples(timesteps=Stratified(distribution=Uniform(), batch_size=20))
    t = torch.cat([stratified.__getitems__(list(range(start, start + 5))).t for start in range(40, 60, 5)])
    assert sorted((t // 50).tolist()) == list(range(20))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loading_resumes_at_any_step(num_workers):
    whole = list(loader(examples(), MicroBatches(8, 4, 0, 6), num_workers))
    rest = list(loader(examples(), MicroBatches(8, 4, 2, 6), num_workers))
    assert len(whole) == 12
    for ours, theirs in zip(rest, whole[4:], strict=True):
        assert torch.equal(ours.noise, theirs.noise)
        assert torch.equal(ours.items, theirs.items)
