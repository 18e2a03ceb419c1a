"""`t2i average`: what it measures is what training measured, and soups of adapters are means of products."""

import csv
import json
import re

import pytest
import torch
from safetensors.torch import load_file

from t2i import average
from t2i.config import ConfigError
from t2i.experiment.averages import averages_of, refuse_other_runs, trained_weights
from t2i.experiment.soups import greedy, mean, mean_product, rank_of, refuse_other_shapes
from t2i.models.lora_settings import AVERAGED
from t2i.runs.records import records
from t2i.runs.snapshots import snapshots_of

POST_HOC = ("ema=post_hoc", "ema.snapshots=10", "sample_every=0")


def spoken(capsys, *arguments):
    average.main([str(argument) for argument in arguments])
    return capsys.readouterr().out


def adapters(rank, seed):
    draw = torch.Generator().manual_seed(seed)
    return {
        "to_q.lora_A.default.weight": torch.randn(rank, 6, generator=draw),
        "to_q.lora_B.default.weight": torch.randn(5, rank, generator=draw),
    }


def product(weights):
    return weights["to_q.lora_B.default.weight"] @ weights["to_q.lora_A.default.weight"]


def test_a_soup_of_adapters_is_the_mean_of_their_products():
    several = [adapters(2, 0), adapters(3, 1), adapters(2, 2)]
    soup = mean_product(several, rank=sum(map(rank_of, several)))
    expected = torch.stack([product(each) for each in several]).mean(0)
    torch.testing.assert_close(product(soup), expected)
    alone = mean_product(several[:1], rank=7)
    torch.testing.assert_close(product(alone), product(several[0]))
    of_factors = mean([adapters(2, 0), adapters(2, 2)])
    assert not torch.allclose(product(of_factors), (product(several[0]) + product(several[2])) / 2)


def test_dora_is_refused():
    with pytest.raises(ConfigError, match="adapter=dora"):
        rank_of(adapters(2, 0) | {"to_q.lora_magnitude_vector.default.weight": torch.ones(5)})


def test_other_architectures_are_refused_in_one_line():
    with pytest.raises(ConfigError, match=r"two has trained other weights than one, such as to_q\.lora_A"):
        refuse_other_shapes({"one": adapters(2, 0), "two": adapters(3, 0)}, any_rank=False)
    with pytest.raises(ConfigError, match="such as other"):
        refuse_other_shapes({"one": adapters(2, 0), "two": {"other": torch.ones(1)}}, any_rank=True)


def test_the_greedy_soup_takes_what_does_not_make_it_worse():
    import numpy as np

    optimum = torch.tensor([1.0, 1.0])
    runs = [torch.tensor(place) for place in ([3.0, 1.0], [-1.0, 1.0], [1.0, 9.0])]

    def errors(members):
        distance = (torch.stack([runs[i] for i in members]).mean(0) - optimum).norm()
        return np.full((4, 2), 0.1 + float(distance))

    assert greedy([errors([i]) for i in range(3)], errors, np.mean) == [0, 1]


@pytest.fixture(scope="module")
def run(train, tmp_path_factory):
    return train(tmp_path_factory.mktemp("post_hoc") / "run", *POST_HOC).folder


@pytest.mark.slow
def test_lengths_are_measured_as_in_training(run, capsys):
    said = spoken(capsys, run, "--length", "0.05,0.1,0.15", "--export", run.parent / "best")
    last = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-1]
    rows = list(csv.DictReader((run / "averages" / "lengths.csv").open()))
    tracked = next(float(row["val/loss"]) for row in rows if row["length"] == "0.1")
    assert tracked == pytest.approx(last["val/ema/loss"], rel=1e-6)
    assert f"raw weights {last['val/loss']:.5f}"[:18] in " ".join(said.split())
    assert (run / "averages" / "lengths.png").stat().st_size > 5000
    best = min(rows, key=lambda row: float(row["val/loss"]))
    (expected,) = averages_of(run, [float(best["length"])])
    exported = load_file(next((run.parent / "best" / "unet").glob("*.safetensors")))
    assert all(torch.equal(exported[name], weight) for name, weight in expected.weights.items())


@pytest.mark.slow
def test_snapshots_survive_a_stop_bit_for_bit_and_checkpoints_vouch_for_them(run, train, tmp_path):
    train(tmp_path / "run", *POST_HOC, "stop_at=5")
    stopped = train(tmp_path / "run", *POST_HOC).folder
    expected, found = snapshots_of(run), snapshots_of(stopped)
    assert found.keys() == expected.keys() == set(range(1, 11))
    assert all(found[step].read_bytes() == expected[step].read_bytes() for step in expected)
    manifest = json.loads((stopped / "checkpoints" / "step-000010" / "manifest.json").read_text())
    assert "averages/step-000010.safetensors" in manifest["records"]
    assert manifest["records"].keys() == records(stopped, 10).keys()


@pytest.mark.slow
def test_a_soup_of_one_run_twice_is_the_run(run, capsys):
    newest = run / "checkpoints" / "step-000010"
    said = spoken(capsys, run, newest, "--weights", "raw", "--export", run.parent / "soup")
    losses = set(re.findall(r"0\.\d{4,}", said))
    assert len(losses) == 1
    exported = load_file(next((run.parent / "soup" / "unet").glob("*.safetensors")))
    raw = trained_weights(run, "raw")
    assert all(torch.equal(exported[name], weight) for name, weight in raw.items())


@pytest.mark.slow
def test_soups_of_lora_runs_and_what_is_said_of_their_lengths(train, tmp_path, capsys):
    runs = [
        train(tmp_path / f"rank-{rank}", *POST_HOC, "adapter=lora", f"adapter.rank={rank}", f"adapter.alpha={rank}")
        for rank in (2, 3)
    ]
    folders = [each.folder for each in runs]
    assert "its factors are averaged apart" in spoken(capsys, folders[0], "--length", "0.1")
    assert "uniform soup of 2" in spoken(
        capsys, *folders, "--soup", "uniform", "--weights", "raw", "--export", tmp_path / "soup"
    )
    file = tmp_path / "soup" / AVERAGED
    exported = load_file(file)
    down = next(name for name in exported if "lora_A" in name or "lora.down" in name)
    assert exported[down].shape[0] == 5


@pytest.mark.slow
def test_mistakes_end_in_one_line(run, train, tmp_path):
    plain = train(tmp_path / "plain", "sample_every=0").folder
    with pytest.raises(ConfigError, match=r"holds no snapshots.*ema=post_hoc"):
        average.main([str(plain)])
    with pytest.raises(ConfigError, match=r"--length 0\.01 is not to be had: these 10 snapshots"):
        average.main([str(run), "--length", "0.01"])
    with pytest.raises(ConfigError, match="is not the relative width"):
        average.main([str(run), "--length", "0.5"])
    with pytest.raises(ConfigError, match="--length is for the averages of one run"):
        average.main([str(run), str(plain), "--length", "0.1"])
    with pytest.raises(ConfigError, match="is not a folder"):
        average.main([str(tmp_path / "missing")])
    other = train(tmp_path / "other", "sample_every=0", "validation.items=6").folder
    with pytest.raises(ConfigError, match="in its battery"):
        refuse_other_runs([plain, other])
