import pytest
from hypothesis import given
from hypothesis import strategies as st

from t2i.config import ConfigError
from t2i.data.caption_texts import CaptionTexts

TAGS = st.lists(st.text("abcdefg ", min_size=1).map(str.strip).filter(bool), min_size=1, max_size=6)


@given(TAGS, st.integers(0, 7))
def test_shuffling_moves_tags_and_loses_none(tags, keep):
    caption = ", ".join(tags)
    texts = CaptionTexts(shuffle_tags=True, keep_tags=keep).of([caption])
    assert texts[0] == caption  # the one that is validated and sampled with
    for text in texts:
        assert sorted(text.split(", ")) == sorted(tags)
        assert text.split(", ")[:keep] == tags[:keep]


def test_orders_are_a_function_of_the_caption():
    """So that the cache holds them, and another data set with the same caption shares them."""
    texts = CaptionTexts(shuffle_tags=True, keep_tags=1, tag_variants=8)
    assert texts.of(["sks, a, b, c, d"]) == texts.of(["sks, a, b, c, d"])
    assert len(set(texts.of(["sks, a, b, c, d"]))) > 4


def test_a_template_around_each_caption():
    texts = CaptionTexts(template="sks style, {caption}")
    assert texts.of(["a cat", "a dog"]) == ("sks style, a cat", "sks style, a dog")
    assert CaptionTexts().of(["a cat"]) == ("a cat",)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"template": "sks style"}, r"dataset.caption_template=sks style must hold \{caption\} once"),
        ({"template": "{caption}{caption}"}, r"must hold \{caption\} once"),
        ({"keep_tags": -1}, "dataset.keep_tags=-1 must be a whole number, at least 0"),
        ({"tag_variants": 0}, "dataset.tag_variants=0 must be positive"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        CaptionTexts(**settings)
