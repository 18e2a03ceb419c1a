"""What a configuration may hold: nothing that a file of the run could not store, and nothing that takes forever."""

import time

import pytest
from omegaconf import OmegaConf

from t2i.config import ConfigError
from t2i.config.values import LARGEST, check_size, check_values


def unresolved(text):
    return OmegaConf.to_container(OmegaConf.create(text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: !!binary aGVsbG8=", "a is bytes, which no setting can be"),
        ("a: {b: [!!python/object/apply:pathlib.PosixPath [x]]}", "a.b.0 is PosixPath, which no setting can be"),
        (f"a: 0x{'f' * 6000}", "a is a number of 24000 bits"),
        (f"a: {':'.join(['59'] * 3000)}", "a is a number of 17721 bits"),
        ("a: [1, .nan]", "a.1 is not a number"),
        ("a: [{1: x, b: y}]", "a.0: the names in a table must be texts"),
        ("a: {!!binary aGVsbG8=: 1}", "a: the names in a table must be texts"),
    ],
)
def test_what_json_does_not_have_is_refused_by_name(text, message):
    with pytest.raises(ConfigError) as error:
        check_values(unresolved(text))
    assert str(error.value).startswith(message)


def test_what_json_has_is_fine():
    check_values(
        unresolved("a: [1, 1.5, x, null, true, .inf]\nb: {c: {1: x, 2: y}}\nseed: 340282366920938463463374607431")
    )


def chain(length, line):
    return "b0: xxxxxxxxxx\n" + "".join(line.format(i=i, before=i - 1) for i in range(1, length))


BOMBS = {
    "texts": chain(20, "b{i}: '${{b{before}}}${{b{before}}}'\n"),
    "lists": chain(20, "b{i}: ['${{b{before}}}', '${{b{before}}}']\n"),
    "of neighbours": "a: {" + chain(20, "b{i}: '${{.b{before}}}${{ .b{before} }}'\n").replace("\n", ", ") + "}",
    "in resolvers": chain(20, "b{i}: '${{either:${{b{before}}},x}}${{either:${{b{before}}},x}}'\n"),
    "through a table": "a: ${c}\nc: {"
    + chain(20, "b{i}: '${{a.b{before}}}${{a[b{before}]}}'\n").replace("\n", ", ")
    + "}",
    "by a name": "c: {"
    + chain(20, "n{i}: b{before}, b{i}: '${{c.${{c.n{i}}}}}${{c.${{c.n{i}}}}}'\n").replace("\n", ", ")
    + "}",
    "by any name": "".join(f"n{i}: b{i - 1}\nb{i}: '${{${{n{i}}}}}${{${{n{i}}}}}'\n" for i in range(1, 20)),
}


@pytest.mark.parametrize("name", BOMBS)
def test_interpolations_that_would_take_forever_are_refused_at_once(name):
    started = time.process_time()
    with pytest.raises(ConfigError, match=r"more than 1000000 characters|must name the key that it means"):
        check_size(unresolved(BOMBS[name]))
    assert time.process_time() - started < 1


@pytest.mark.parametrize(
    "text",
    [
        "lrs: {tiny: 1, large: 2}\nmodel: {name: tiny}\nlr: ${lrs.${model.name}}",
        "a: {b: 1, c: '${.b}', d: {e: '${..b} ${a.c}'}}\nf: ['${a}', '${f[0].b}']",
        "a: ${a}\nb: ${nothing.there}\nc: '${either:${a},${hydra:runtime.cwd}}'",  # which OmegaConf refuses
        f"a: {'x' * (LARGEST // 3)}\nb: ${{a}}",
    ],
)
def test_interpolations_as_people_write_them_are_fine(text):
    check_size(unresolved(text))
