"""New words: nothing of the base changes, and stock Diffusers draws the same with the exported vectors."""

import pytest
import torch
from helpers import layouts
from helpers.runs import compose
from PIL import Image
from safetensors.torch import load_file

from t2i.config import ConfigError
from t2i.experiment.plan import make_plan
from t2i.experiment.run import run as start_run
from t2i.models.new_tokens import NewTokens, WithNewRows, file_name, load_words, words_in
from t2i.models.stable_diffusion import load
from t2i.models.textual_inversion import TextualInversion
from t2i.publishing.card_code import use_words
from t2i.runs.folder import Run
from t2i.sampling.pipelines import load_pipeline

SETTINGS = ["steps=3", "save_every=3", "validate_every=0", "sample_every=0", "optimizer.lr=0.05", "caption_dropout=0"]
WORDS = "adapter.new_tokens=['<sks>:heart','<two>:food']"
TEMPLATE = "a <sks> and <two>"


def pixels(pipeline, prompt=TEMPLATE):
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    return torch.from_numpy(pipeline(prompt, latents=noise, num_inference_steps=2, output_type="np").images)


def test_an_embedding_with_new_rows():
    """Old ids give the old rows, new ids the new ones, and only these have a gradient."""
    old = torch.nn.Embedding(10, 4)
    embedding = WithNewRows(old, torch.randn(2, 4))
    ids = torch.tensor([[3, 10, 11, 9]])
    found = embedding(ids)
    assert torch.equal(found[0, [0, 3]], old.weight[[3, 9]])
    assert torch.equal(found[0, [1, 2]], embedding.new)
    found.sum().backward()
    assert old.weight.grad is None
    assert torch.equal(embedding.new.grad, torch.ones(2, 4))


def test_words_of_several_vectors_are_written_out_as_diffusers_does(small_pipeline):
    model = load(str(small_pipeline))
    words = NewTokens({"<sks>": "heart"}, vectors=3)
    words.add(model)
    (tokenizer,) = model.tokenizers.values()
    pipeline = model.pipeline(None)
    assert words.expanded("a <sks> here") == pipeline.maybe_convert_prompt("a <sks> here", tokenizer)
    ids = tokenizer(words.expanded("<sks>"), add_special_tokens=False).input_ids
    assert len(ids) == 3
    assert min(ids) == model.text_encoders["text_encoder"].get_input_embeddings().old.num_embeddings


def test_a_word_begins_at_the_mean_of_the_words_that_it_is_given(small_pipeline):
    """So a run that has not trained draws it as it draws that word."""
    adapter = TextualInversion(new_tokens=["<sks>:heart"], vectors=1)
    model = adapter.attach(load(str(small_pipeline)))
    tokens = [model.tokenize([text]) for text in ("a red <sks>", "a red heart")]
    embedded = [model.condition(each)["encoder_hidden_states"] for each in tokens]
    assert len(model.tokenizers["tokenizer"]("heart", add_special_tokens=False).input_ids) == 1
    assert torch.equal(*embedded)
    trained = {name for name, weight in model.denoiser.named_parameters() if weight.requires_grad}
    assert len(trained) == 1
    assert trained.pop().endswith("token_embedding.new")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd15", "sdxl"])
@pytest.mark.parametrize("adapter", ["textual_inversion", "lora"])
def test_stock_diffusers_draws_the_same(layout, tmp_path, name, adapter):
    overrides = [f"model={name}", f"model.path={layout(name)}", f"adapter={adapter}", WORDS, "adapter.vectors=2"]
    data = ["dataset=folder", f"dataset.path={_images(tmp_path)}", "dataset.resolution=64"]
    cfg = compose("experiment=smoke", "precision=fp32", f"cache_dir={tmp_path}/cache", *overrides, *SETTINGS, *data)
    start_run(cfg, make_plan(cfg), tmp_path / "run", [])
    run = Run(tmp_path / "run", cfg)
    ours = pixels(load_pipeline(run.folder))
    stock = layouts.STOCK[name].from_pretrained(layout(name))
    stock.scheduler = load_pipeline(run.folder).scheduler
    before = pixels(stock)
    if adapter == "lora":
        stock.load_lora_weights(run.folder / "model")
    load_words(stock, run.folder / "model" / "embeddings")
    torch.testing.assert_close(pixels(stock), ours, rtol=0, atol=1e-5)
    assert not torch.allclose(before, ours, atol=1e-3)
    files = sorted(file.name for file in (run.folder / "model" / "embeddings").iterdir())
    assert files == ["sks.safetensors", "two.safetensors"]
    keys = {"sd15": {"<sks>"}, "sdxl": {"clip_l", "clip_g"}}[name]
    assert load_file(run.folder / "model" / "embeddings" / "sks.safetensors").keys() == keys
    raw = pixels(load_pipeline(run.folder, "raw"))
    assert not torch.equal(raw, ours)


def test_the_card_says_how_to_load_them(layout, tmp_path):
    stock = layouts.STOCK["sd15"].from_pretrained(layout("sd15"))
    model = load(str(layout("sd15")))
    words = NewTokens({"<sks>": "heart", "<two>": "food"})
    words.add(model)
    words.save(model.pipeline(None), tmp_path / "embeddings")
    for line in use_words(str(tmp_path), words_in(tmp_path / "embeddings")):
        exec(line, {"pipeline": stock})
    assert {"<sks>", "<two>"} <= stock.tokenizer.get_vocab().keys()
    rows = stock.text_encoder.get_input_embeddings().weight[-2:]
    assert torch.equal(rows, model.text_encoders["text_encoder"].get_input_embeddings().new)


def _images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(4):
        Image.new("RGB", (64, 64), (60 * i, 0, 0)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(TEMPLATE)
    return folder


@pytest.mark.parametrize(
    ("words", "vectors", "message"),
    [
        ([], 1, "adapter.new_tokens is empty; name a word and one to begin at"),
        (["two words:dog"], 1, "'two words' must be a word without blanks"),
        (["<sks>:"], 1, "<sks> begins at ''; name a word that the model knows"),
        (["<sks>"], 1, "'<sks>' does not say what the word begins at; write '<sks>:dog'"),
        (["<sks>:dog"], 0, "adapter.vectors=0 must be a whole number, at least 1"),
        (["<a>:dog", "a:dog"], 1, "two of <a>, a would have the same file's name"),
    ],
)
def test_wrong_settings_are_named(words, vectors, message):
    with pytest.raises(ConfigError, match=message):
        TextualInversion(new_tokens=words, vectors=vectors)


def test_the_frozen_denoiser_is_not_read_for_a_second_time(small_pipeline):
    model = TextualInversion(new_tokens=["<sks>:heart"], vectors=1).attach(load(str(small_pipeline)))
    unet = model.model.denoiser
    model.release()
    assert model.model.denoiser is unet is model.denoiser.unet


def test_words_that_no_caption_holds_and_words_that_are_known(small_pipeline):
    words = NewTokens({"<sks>": "heart"})
    words.refuse_unused([("a <sks>",)])
    with pytest.raises(ConfigError, match="no caption holds <sks>, so nothing is learned of it"):
        words.refuse_unused([("a heart",)])
    model = load(str(small_pipeline))
    known = next(iter(model.tokenizers["tokenizer"].get_vocab()))
    with pytest.raises(ConfigError, match=r"text_encoder knows .* already; choose another word"):
        NewTokens({known: "heart"}).add(model)


def test_file_names():
    assert [file_name(word) for word in ("<sks>", "my-cat", "<>")] == [
        "sks.safetensors",
        "my_cat.safetensors",
        "word.safetensors",
    ]
