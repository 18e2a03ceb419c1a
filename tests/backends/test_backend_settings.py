"""backend=jax says what it needs and what it does not have, before anything is loaded; nothing else needs JAX."""

import ast
import importlib.util
from pathlib import Path

import pytest
import torch
from helpers.runs import compose

import t2i
from t2i.backends.jax.backend import Jax
from t2i.config import ConfigError
from t2i.diffusion.losses import MSE, MinSNR
from t2i.diffusion.residuals import Squared
from t2i.experiment.plan import make_plan
from t2i.models.lora import LoRA, NoAdapter
from t2i.models.lycoris import LoKr

installed = pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="needs jax")


class OwnLoss(MSE):
    def __call__(self, prediction, noised, weight=None):
        return super().__call__(prediction, noised, weight) * 2


def test_without_jax_the_remedy_is_said(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"backend=jax needs the package jax; pip install 't2i\[jax\]'"):
        make_plan(compose("backend=jax"))


@installed
def test_fsdp_is_refused_with_the_remedy(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match=r"FSDP is PyTorch's; backend=jax shards with backend\.weights=sliced"):
        Jax("replicated")


@pytest.mark.slow
def test_jax_is_imported_by_its_own_package_alone():
    """Whoever imports the package knows that JAX is there: backend.py, which says so, imports it in functions."""
    package = Path(t2i.__file__).parent
    for file in package.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            if any(name.partition(".")[0] in ("jax", "jaxlib", "ml_dtypes") for name in names):
                assert file.parent == package / "backends" / "jax", file
    top = ast.parse((package / "backends" / "jax" / "backend.py").read_text()).body
    assert not any(isinstance(node, ast.Import) and node.names[0].name == "jax" for node in top)


ADAPTER = {"rank": 4, "alpha": 4.0, "init": "kaiming", "dropout": 0.0, "target_modules": ["to_q"]}
ADAPTER |= {"text_encoder": False, "text_modules": ["q_proj"]}
FITTING = {
    "model": "t2i.models.stable_diffusion.load",
    "optimizer": torch.optim.AdamW,
    "adapter": NoAdapter(),
    "loss": MinSNR(snr_gamma=5.0, normalize=True, error=Squared()),
    "attention": "auto",
    "micro_batch_size": 8,
    "num_workers": 0,
}
REFUSED = {
    "model": ("t2i.models.flux1.load", "trains Stable Diffusion 1.x, 2.x, XL and 3, .*backend=torch"),
    "optimizer": (torch.optim.SGD, "has no SGD; use optimizer=adamw or adafactor"),
    "loss": (OwnLoss(normalize=False, error=Squared()), "can't compute the error of OwnLoss; use backend=torch"),
    "attention": ("xformers", "attention=xformers is one of PyTorch's.* use attention=auto"),
    "num_workers": (2, "num_workers=2 forks this process, which JAX does not survive; use num_workers=0"),
    "compile": (True, "compile=true is not supported by backend=jax; use compile=false"),
    "adapter.dora": (True, "adapter.dora=true is not supported by backend=jax; use adapter.dora=false"),
    "adapter.dropout": (0.1, "adapter.dropout=0.1 is not supported by backend=jax; use adapter.dropout=0"),
    "adapter.text_encoder": (True, "use adapter.text_encoder=false"),
    "adapter.new_tokens": ("<sks>", "use adapter.new_tokens=null"),
}


@installed
@pytest.mark.parametrize("name", REFUSED)
def test_what_jax_does_not_have_is_refused_by_name(name):
    value, message = REFUSED[name]
    with pytest.raises(ConfigError, match=message):
        Jax("replicated").check(FITTING | {name: value})


@installed
def test_what_fits_is_not_refused():
    for weights in ("replicated", "sliced"):
        Jax(weights).check(FITTING)
    Jax("replicated").check(FITTING | {"optimizer": torch.optim.Adafactor, "adapter": LoRA(**ADAPTER)})
    with pytest.raises(ConfigError, match=r"backend.weights=halved is not known; choose from replicated, sliced"):
        Jax("halved")


@installed
def test_other_adapters_are_refused():
    with pytest.raises(ConfigError, match="knows no LoKr; use adapter=lora or none"):
        Jax("replicated").check(FITTING | {"adapter": object.__new__(LoKr)})


@installed
def test_the_devices_share_a_micro_batch():
    with pytest.raises(ConfigError, match="micro_batch_size=9 is not a multiple of the 8 devices that share it"):
        Jax("replicated").check(FITTING | {"micro_batch_size": 9})


@installed
@pytest.mark.parametrize(
    ("dtype", "weights", "message"),
    [
        ("fp16", "auto", "precision=fp16 is not supported by backend=jax; use precision=bf16"),
        ("bf16", "stochastic", "precision.weights=stochastic is not supported by backend=jax; use precision=bf16"),
    ],
)
def test_precisions_that_jax_does_not_train_in(dtype, weights, message):
    with pytest.raises(ConfigError, match=message):
        Jax("replicated").precision(dtype, weights)


@installed
def test_trained_weights_are_float32_in_every_precision():
    for weights in ("auto", "master", "fp32"):
        chosen = Jax("replicated").precision("bf16", weights)
        assert (chosen.dtype, chosen.weights, chosen.name) == ("bf16", "fp32", "bf16")


@installed
def test_a_unet_with_settings_that_are_not_known_is_refused():
    from diffusers import UNet2DConditionModel
    from helpers.layouts import BLOCKS

    from t2i.backends.jax.unet import unet_of

    config = dict(UNet2DConditionModel(**BLOCKS, cross_attention_dim=8, attention_head_dim=2).config)
    unet_of(config, {})
    for name, value in {"act_fn": "gelu", "class_embed_type": "timestep", "unheard_of": 3}.items():
        with pytest.raises(ConfigError, match=f"in the config of this one is {name}={value}; use backend=torch"):
            unet_of(config | {name: value}, {})
