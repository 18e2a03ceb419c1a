"""Values that came with the model, and are not meant for this run, are named."""

import pytest
from helpers.runs import compose

from t2i.config.hints import say_what_adapters_learn_with, say_what_samples_show

OWN = ("dataset=folder", "dataset.path=pics")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (OWN, "prompts of the model's option (cat face, dog face, lion, ...), not for your images"),
        ((*OWN, "model=flux1"), 'samples.prompts=["photo of sks dog"]\''),
        ((*OWN, "model=sdxl", "dataset.caption=a red robot"), "'samples.prompts=[\"a red robot\"]'"),
        (("dataset=sources", "dataset.sources=[{path: a}]"), "not for your images"),
        ((*OWN, "samples.prompts=[a red robot]"), ""),
        ((*OWN, "sample_every=0"), ""),
        (("dataset=naruto",), ""),
        ((), ""),
    ],
)
def test_prompts_that_came_with_the_model_are_named_for_own_images(overrides, said, caplog):
    say_what_samples_show(compose(*overrides))
    assert said in caplog.text
    assert bool(said) == bool(caplog.text)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("model=sd15", "adapter=lora"), "optimizer.lr=1e-05 is that of model=sd15, for training all weights"),
        (("model=sdxl", "adapter=dora"), "such as optimizer.lr=0.0001,"),
        (("model=sd15", "adapter=lora", "optimizer.lr=1e-5"), ""),
        (("model=sd15", "adapter=lora", "optimizer=prodigy"), ""),
        (("model=sd15",), ""),
        (("experiment=naruto_lora",), ""),
    ],
)
def test_adapters_with_the_learning_rate_of_all_weights_are_named(overrides, said, caplog):
    chosen = overrides[0].partition("=")[2]
    say_what_adapters_learn_with(compose(*overrides), chosen, list(overrides))
    assert said in caplog.text
    assert bool(said) == bool(caplog.text)
