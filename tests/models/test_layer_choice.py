"""Layers are chosen by words, names and regular expressions; what fits none is refused with similar names."""

import pytest
from helpers import families
from helpers.runs import compose
from torch import nn

from t2i.config import ConfigError
from t2i.config.instantiate import build
from t2i.models.layer_choice import choose_layers
from t2i.models.low_rank import adapters, low_rank
from t2i.models.stable_diffusion import load

NETWORK = nn.ModuleDict(
    {
        "attn": nn.ModuleDict({"to_q": nn.Linear(2, 2), "to_k": nn.Linear(2, 2), "norm": nn.LayerNorm(2)}),
        "ff": nn.ModuleDict({"linear_in": nn.Linear(2, 2), "conv_out": nn.Conv2d(2, 2, 1)}),
        "to_q": nn.Linear(2, 2),
    }
)
WORDS = {"attention": ["to_q", "to_k"], "ff": [r"ff\..*"]}


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        ("attention", ["attn.to_q", "attn.to_k", "to_q"]),
        ("attention+ff", ["attn.to_q", "attn.to_k", "ff.linear_in", "ff.conv_out", "to_q"]),
        ("all-linear", ["attn.to_q", "attn.to_k", "ff.linear_in", "to_q"]),
        ("to_k", ["attn.to_k"]),
        (["attn.to_q", "linear_in"], ["attn.to_q", "ff.linear_in"]),
        ([r"attn\.to_[qk]"], ["attn.to_q", "attn.to_k"]),
        (["to_q"], ["attn.to_q", "to_q"]),
        ([r"to_q$"], ["to_q"]),
    ],
)
def test_layers_are_those_that_are_called_so(wanted, chosen):
    assert choose_layers(NETWORK, wanted, WORDS, "adapter.target_modules") == chosen


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (["to_q", "to_x"], r"adapter.target_modules: no layer is called to_x; did you mean .*to_q"),
        ("attention+mlp", r"adapter.target_modules=attention\+mlp: mlp is none of attention, ff; or use all-linear"),
        (["norm"], "no layer is called norm"),
        ([r"attn\.(to"], r"attn\\.\(to is no regular expression"),
        (["zzzzzz"], "no layer is called zzzzzz; there are attn.to_k"),
    ],
)
def test_what_fits_nothing_is_refused_with_similar_names(wanted, message):
    with pytest.raises(ConfigError, match=message):
        choose_layers(NETWORK, wanted, WORDS, "adapter.target_modules")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "lokr", "loha"])
def test_ranks_and_alphas_of_single_layers(layout, kind):
    """Alpha / rank stays the same where a rank is given alone."""
    settings = ["adapter.rank=1", "adapter.alpha=2", "adapter.target_modules=attention+ff"]
    patterns = ["adapter.rank_pattern={attn2.to_k: 2, ff.net.2: 2}", "adapter.alpha_pattern={ff.net.2: 8, to_v: 3}"]
    factor = ["adapter.factor=2"] if kind == "lokr" else []
    adapter = build(compose(f"adapter={kind}", *settings, *patterns, *factor), "adapter")
    found = adapters(adapter.attach(load(str(layout("sd15")))).denoiser)
    expected = {
        "attn2.to_k": (2, 2.0),
        "ff.net.2": (2, 4.0),
        "to_v": (1, 3.0),
        "to_q": (1, 2.0),
        "attn1.to_k": (1, 2.0),
    }
    assert any("ff.net.0.proj" in name for name in found)
    for name, each in found.items():
        for end, wanted in expected.items():
            if name.endswith(end):
                assert (each.rank, each.scale) == wanted, name


@pytest.mark.parametrize("setting", ["rank_pattern", "alpha_pattern"])
def test_a_pattern_that_fits_no_adapted_layer_is_refused(layout, setting):
    adapter = build(compose("adapter=lora", f"adapter.{setting}={{ff.net.2: 8}}"), "adapter")
    with pytest.raises(ConfigError, match=rf"adapter.{setting}: no adapted layer is called ff.net.2"):
        adapter.attach(load(str(layout("sd15"))))


@pytest.mark.slow
@pytest.mark.parametrize("family", [name for name in families.PIPELINES if name != "pixart"])
def test_every_family_says_what_its_words_stand_for(tmp_path, family):
    """Each name that it says is that of a layer; the feed-forward ones are further layers."""
    families.save(family, tmp_path)
    settings = [f"model={family}", f"model.path={tmp_path}", "adapter=lora", "adapter.rank=2"]
    found = {}
    for words in ("attention", "attention+ff", "all-linear"):
        cfg = compose(*settings, f"adapter.target_modules={words}")
        found[words] = low_rank(build(cfg, "adapter").attach(build(cfg, "model")).denoiser).keys()
    assert found["attention"] < found["attention+ff"]
    assert family == "sana" or found["attention+ff"] < found["all-linear"]  # whose feed-forward layers are convolutions
