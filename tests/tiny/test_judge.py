"""The small CLIP that conditions the tiny model, and judges what it draws."""

import numpy as np
import pytest
import torch
from transformers import CLIPTextModel

from t2i.data.openmoji import catalogue, draw
from t2i.evaluation.image_metrics.clip_score import ClipScore
from t2i.evaluation.image_metrics.metric import Judged
from t2i.evaluation.image_metrics.r_precision import RPrecision
from t2i.models.bases import TINY

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def held_out():
    entries = [entry for entry in catalogue() if entry.split == "validation"][::2]
    return [draw(entry.emoji, 64) for entry in entries], [entry.caption for entry in entries]


def scores(metric, images, prompts):
    return metric("tiny", None, 32)(Judged(prompts=prompts, images=images), CPU, None).values[:, 0]


@pytest.mark.slow
def test_the_judge_prefers_the_right_caption_of_images_it_has_never_seen(held_out):
    images, captions = held_out
    own, others = scores(ClipScore, images, captions), scores(ClipScore, images, np.roll(captions, 1).tolist())
    assert own.mean() > others.mean() + 0.3
    assert scores(RPrecision, images, captions).mean() > 10 / len(captions)


@pytest.mark.slow
def test_r_precision_is_the_rank_among_the_prompts(held_out):
    images, captions = held_out[0][:8], held_out[1][:8]
    table = np.stack([scores(ClipScore, [image] * 8, captions) for image in images])
    assert scores(RPrecision, images, captions).tolist() == (table.argmax(1) == np.arange(8)).tolist()


def test_the_judge_sees_the_same_in_every_size():
    image, large = draw("🍎", 64), draw("🍎", 256)
    assert np.allclose(scores(ClipScore, [large], ["red apple"]), scores(ClipScore, [image], ["red apple"]), atol=0.1)


def test_the_text_encoder_is_the_judge_s():
    """And the empty caption, which stands for no caption, is one like any other."""
    network = ClipScore("tiny", None, 32).network.load(CPU)
    text_encoder = CLIPTextModel.from_pretrained(TINY / "pipeline" / "text_encoder", dtype=torch.float32)
    tokens = network.tokenizer(["", "red apple"], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        hidden = text_encoder(tokens).last_hidden_state
        assert torch.allclose(hidden, network.model.text_model(tokens).last_hidden_state, atol=1e-5)
    assert hidden.shape == (2, 24, 128)
    assert hidden.isfinite().all()
