"""The transformer of the tiny world: its frozen parts are those of model=tiny, and it draws as it was trained."""

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from helpers.runs import compose
from hydra.utils import instantiate
from safetensors.torch import load_file

from t2i.config.model_size import BUNDLED
from t2i.data.fingerprints import hash_of
from t2i.publishing.model_card import write_card
from t2i.sampling.images import sample
from t2i.sampling.pipelines import load_pipeline
from t2i.tiny import flow

PROMPTS = ["red apple", "grinning face"]


def weights(folder):
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


def same(some, others):
    assert some.keys() == others.keys()
    return all(torch.equal(some[name], others[name]) for name in some)


def test_the_frozen_parts_are_those_of_tiny():
    assert same(weights(BUNDLED["tiny_flow"] / "vae"), weights(BUNDLED["tiny"] / "vae"))
    encoder = weights(BUNDLED["tiny_flow"] / "text_encoder")
    assert same(encoder, flow.text_encoder().state_dict())
    assert same(encoder, weights(BUNDLED["tiny_flow"] / "text_encoder_2"))
    shared = {name.removeprefix("text_model."): value for name, value in encoder.items()}
    projection = shared.pop("text_projection.weight")
    assert same(shared, weights(BUNDLED["tiny"] / "text_encoder"))
    assert projection.shape == (128, 128)


def test_its_latents_are_those_of_tiny(tmp_path):
    """So that the battery, and what is cached, serve both."""
    models = [instantiate(compose(f"model={name}").model) for name in ("tiny", "tiny_flow")]
    first, second = (hash_of(*model.image_content, memory=tmp_path) for model in models)
    assert first == second
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for ours, theirs in zip(*(model.encode(pixels) for model in models), strict=True):
        assert torch.equal(ours, theirs)


def test_the_transformer_is_that_of_the_folder():
    saved = flow.transformer().load_config(BUNDLED["tiny_flow"] / "transformer")
    made = flow.transformer().config
    differing = [key for key in saved.keys() & made.keys() if saved[key] != made[key] and key[0] != "_"]
    assert differing == ["dual_attention_layers"]  # a list in JSON


@pytest.mark.slow
def test_it_draws_with_captions_as_long_as_in_training(train, tmp_path):
    """Without T5, whose 256 tokens of zeros are part of a prompt unless max_sequence_length says otherwise."""
    fresh = ["model=tiny_flow", "model.path=tiny_flow", "model.pretrained=false"]
    run = train(tmp_path / "run", *fresh, "steps=2", "save_every=0", "sample_every=0")
    seen = []

    def note(_, inputs, keywords):
        seen.append(keywords["encoder_hidden_states"].shape[1])

    pipeline = load_pipeline(run.folder)
    pipeline.transformer.register_forward_pre_hook(note, with_kwargs=True)
    sample(pipeline, PROMPTS, seed=0, steps=2, guidance_scale=2.0)
    assert seen == [24, 24]
    write_card(run.folder, "me/mine", "mit")
    card = (run.folder / "model" / "README.md").read_text()
    assert 'from_pretrained("me/mine", text_encoder_3=None, tokenizer_3=None)' in card
    assert 'pipeline("a prompt", max_sequence_length=0)' in card
    stock = StableDiffusion3Pipeline.from_pretrained(run.folder / "model", text_encoder_3=None, tokenizer_3=None)
    stock.transformer.register_forward_pre_hook(note, with_kwargs=True)
    for tokens in ({}, {"max_sequence_length": 0}):
        stock(PROMPTS, num_inference_steps=1, output_type="latent", **tokens)
    assert seen[2:] == [24 + 256, 24]
