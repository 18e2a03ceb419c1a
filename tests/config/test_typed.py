"""What people type reaches the settings as it was meant, without quotes."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from t2i.config import ConfigError
from t2i.config.compose import compose, expand
from t2i.config.typed import as_typed, quoted


@pytest.mark.parametrize(
    "override",
    [
        *("run=20240601", "run=2024_06_01", "run=0.0001", "run=1e-4", "run=true", "run=inf", "run=1:30", "sweep=7"),
        *("dataset.path=/data/my pics", "dataset.path=[artist] shards", "dataset.path=~/pics", "dataset.path=ä/ö"),
        *(
            "dataset.path=a=b",
            "dataset.path=a#b",
            "dataset.path=it's (1)",
            r"dataset.path=C:\x y\z",
            "dataset.path=日本",
        ),
        *(
            "dataset.path={a}&b",
            "dataset.caption=photo of sks dog",
            "dataset.caption=1984",
            "dataset.split=train[:50%]",
        ),
        *("model.path=./[base] ü", "cache_dir=~/my cache", "tracker.project=2024", "dataset.caption=a cat, on a mat"),
        *("dataset.caption_template=sks style, {caption}", "dataset.caption_template={caption}", "dataset.masks=a [b]"),
    ],
)
def test_a_text_is_the_text_that_was_typed(override):
    (typed,) = as_typed([override])
    parsed = OverridesParser.create().parse_override(typed)
    assert parsed.value() == override.partition("=")[2]


@pytest.mark.parametrize(
    "override",
    [
        *("run=null", "run=mine", "dataset.path='a b'", 'dataset.path="a b"', "dataset.path=${cache_dir}", "seed=3"),
        *("loss=minsnr", "steps=1e3", "samples.prompts=[a, b]", "dataset.path=a,b", "~run", "+loss.x=ü", "hydra.x=[ü]"),
    ],
)
def test_what_hydra_reads_as_it_was_meant_stays(override):
    assert as_typed([override]) == [override]


def test_prompts_may_have_accents_and_be_numbers():
    assert compose(["samples.prompts=[crème brûlée, 1984]"]).samples.prompts == ["crème brûlée", "1984"]
    assert compose(["samples.prompts=[it's, a dog's ball]"]).samples.prompts == ["it's", "a dog's ball"]
    assert compose(["samples.prompts=['a, b', \"it's\"]"]).samples.prompts == ["a, b", "it's"]


def test_a_name_with_a_comma_that_exists_is_a_name_and_others_are_values(tmp_path):
    (tmp_path / "a,b").mkdir()
    assert as_typed([f"dataset.path={tmp_path}/a,b"]) == [f"dataset.path='{tmp_path}/a,b'"]
    jobs = expand([f"dataset.path={tmp_path}/ä,{tmp_path}/ö"])
    assert [text for ((_, text),) in jobs] == [f"dataset.path='{tmp_path}/{name}'" for name in "äö"]


@pytest.mark.parametrize("text", ["it's", "a\\", "a\\'b", 'say "hi"', "\\\\'", "C:\\x"])
@pytest.mark.parametrize("mark", ["'", '"'])
def test_quoted_texts_are_read_back(text, mark):
    assert OverridesParser.create().parse_override(f"a={quoted(text, mark)}").value() == text


def test_options_by_a_pattern_are_those_of_the_group_and_an_interval_is_refused():
    jobs = expand(["lr_scheduler=glob(c*)", "seed=0"])
    assert [job[0][1] for job in jobs] == ["lr_scheduler=constant", "lr_scheduler=cosine"]
    with pytest.raises(ConfigError, match=r"loss=glob\(nothing\*\): no option is called so; choose from cosmap"):
        expand(["loss=glob(nothing*)"])
    with pytest.raises(ConfigError, match="an interval has no values of its own; write them out, as in seed=1,2"):
        expand(["seed=interval(0,3)"])


def test_a_template_with_a_comma_is_one_in_a_sweep_and_several_are_several():
    def templates(typed):
        return [OverridesParser.create().parse_override(text).value() for ((_, text),) in expand([typed])]

    assert templates("dataset.caption_template=sks style, {caption}") == ["sks style, {caption}"]
    assert templates("dataset.caption_template=sks {caption},{caption} by sks") == ["sks {caption}", "{caption} by sks"]


def test_new_words_need_no_quotes():
    (typed,) = as_typed(["adapter.new_tokens=[<sks>:dog]"])
    assert OverridesParser.create().parse_override(typed).value() == ["<sks>:dog"]


def test_a_list_may_have_several_lines():
    (typed,) = as_typed(["dataset.sources=[\n    {path: a, caption: \"one,\ntwo\"},\n    {class_prompt: 'a dog'}]\n"])
    wanted = [{"path": "a", "caption": "one,\ntwo"}, {"class_prompt": "a dog"}]
    assert OverridesParser.create().parse_override(typed).value() == wanted
