"""The rehearsal of a run."""

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
    assert not list(tmp_path.iterdir())


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
