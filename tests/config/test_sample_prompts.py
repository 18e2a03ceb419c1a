"""A run on own images says that its samples would show something else."""

import pytest
from helpers.runs import compose

from t2i.config.sample_prompts import say_what_samples_show

OWN = ("dataset=folder", "dataset.path=pics")


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
