import pytest
import torch
from transformers import CLIPTextModel

from t2i.data.openmoji import catalogue, draw
from t2i.evaluate import main
from t2i.tiny.judge import TINY, Judge, nearest_is_own


@pytest.fixture(scope="module")
def judge():
    return Judge()


@pytest.fixture(scope="module")
def held_out():
    entries = [entry for entry in catalogue() if entry.split == "validation"][::2]
    return [draw(entry.emoji, 64) for entry in entries], [entry.caption for entry in entries]


def test_the_judge_prefers_the_right_caption_of_images_it_has_never_seen(judge, held_out):
    match = judge.match(*held_out)
    assert match.score > match.shuffled + 0.3
    assert match.recall > 10 / len(held_out[1])


@pytest.mark.slow
def test_more_captions_to_choose_from_are_harder(judge, held_out):
    others = [entry.caption for entry in catalogue()][::9]
    assert judge.match(*held_out, candidates=others).recall <= judge.match(*held_out).recall


def test_samples_of_one_caption_are_not_their_own_control(judge, held_out):
    images, captions = held_out[0][:2], held_out[1][:2]
    once, twice = judge.match(images, captions), judge.match(images * 2, captions * 2)
    assert twice.shuffled == pytest.approx(once.shuffled, abs=1e-5)


def test_the_judge_sees_the_same_in_every_size(judge):
    image, large = draw("🍎", 64), draw("🍎", 256)
    assert torch.allclose(judge.score([large], ["red apple"]), judge.score([image], ["red apple"]), atol=0.1)


def test_the_text_encoder_is_the_judge_s(judge):
    """And the empty caption, which stands for no caption, is one like any other."""
    text_encoder = CLIPTextModel.from_pretrained(TINY / "pipeline" / "text_encoder", dtype=torch.float32)
    tokens = judge.network.tokenizer(["", "red apple"], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        hidden = text_encoder(tokens).last_hidden_state
        assert torch.allclose(hidden, judge.network.model.text_model(tokens).last_hidden_state, atol=1e-5)
    assert hidden.shape == (2, 24, 128)
    assert hidden.isfinite().all()


def test_command_line_says_what_a_model_is_worth(small_pipeline, tmp_path, capsys):
    """An untrained denoiser draws nothing that the judge knows; real images are recognised."""
    out = tmp_path / "grid.png"
    command = [str(small_pipeline), "--captions", "12", "--seeds", "1", "--steps", "2", "--grid", str(out)]
    main(command)
    rows = [line.split("│")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    untrained, real = (float(row[1]) for row in rows)
    assert untrained < 0.3 < real
    assert out.is_file()


def test_the_nearest_image_is_found_by_pixels(held_out):
    real = held_out[0][:20]
    assert nearest_is_own(real + real, real) == 1.0
    assert nearest_is_own(real[1:] + real[:1], real) == 0.0
