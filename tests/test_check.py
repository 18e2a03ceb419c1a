"""The rehearsal of a run."""

import re

import pytest

from t2i import check


def rehearse(capsys, *arguments):
    return check.main(list(arguments)), capsys.readouterr().out


@pytest.mark.slow
def test_it_says_what_works_and_what_does_not_for_each_job(small, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, output = rehearse(
        capsys, "-m", *small, "loss=minsnr", "loss.snr_gamma=5,-1", "lr_scheduler.num_warmup_steps=5"
    )
    assert code == 2
    works, fails = output.splitlines()[3:5]
    assert "loss.snr_gamma=5 " in works
    assert "works" in works
    assert "loss.snr_gamma=-1" in fails
    assert "must be positive" in fails
    words = " ".join(output.split())
    assert "The job works: about " in words
    assert words.endswith("1 of 2 jobs would fail; the reasons are above.")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("costs", "failures", "said"),
    [
        ([(0.2, 3.0, 0.5)], 0, r"^The job works: about 12 minutes .* 3\.0 GB of memory .* 0\.50 GB on the disk\. To"),
        ([(2.0, 3.0, 0.5), (1.5, 4.0, 0.5)], 1, r"^2 jobs work, .* 3\.5 hours .* 4\.0 GB .* 1\.00 GB .* 1 of 3 jobs"),
        ([], 2, r"^2 of 2 jobs would fail; the reasons are above\.$"),
    ],
)  # fmt: skip
def test_the_figures_are_said_in_words(costs, failures, said):
    assert re.search(said, check.in_words([check.Estimate(*cost) for cost in costs], failures))


@pytest.mark.slow
def test_what_only_shows_late_in_a_run_is_found(small, capsys, monkeypatch):
    """An export that fails would otherwise cost a whole run."""
    from t2i.models.lora import NoAdapter

    def fail(*_):
        raise OSError("the pipeline can't be saved")

    monkeypatch.setattr(NoAdapter, "export", fail)
    code, output = rehearse(capsys, *small)
    assert code == 2
    assert "the pipeline can't be saved" in output


@pytest.mark.slow
def test_nothing_is_published(small, capsys, monkeypatch):
    """What a run would ask of the Hub is asked; two steps of training are not pushed."""
    from t2i.publishing import push as publishing

    asked, pushed = [], []
    monkeypatch.setattr(publishing, "check_rights", asked.append)
    monkeypatch.setattr(publishing, "push", lambda *arguments: pushed.append(arguments))
    code, output = rehearse(capsys, *small, "hub.push=true", "hub.repo=mine")
    assert code == 0, output
    assert (asked, pushed) == (["mine"], [])
