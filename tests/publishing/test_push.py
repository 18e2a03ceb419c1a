"""Pushes with the Hub's real client to a small stand-in server on this machine."""

import shlex

import huggingface_hub.constants
import pytest
from helpers import hub_server
from helpers.hub_server import TOKEN

from t2i.cli import failing
from t2i.config import ConfigError
from t2i.publishing.push import Publisher, PushFailed, check_rights, push
from t2i.push import main

SHORT = ("steps=1", "validate_every=0", "sample_every=0", "save_every=0")


@pytest.fixture(scope="module")
def run(train, tmp_path_factory):
    return train(tmp_path_factory.mktemp("runs") / "run", *SHORT)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with hub_server.asked_instead(monkeypatch) as hub:
        yield hub


def commits(hub):
    return sum("/commit/" in line for line in hub.asked)


def assert_secret(hub, folder, text=""):
    """The token is in no file, in no log, and only in the header of what was sent."""
    assert TOKEN.encode() not in hub.seen
    assert TOKEN not in text
    assert not [file for file in folder.rglob("*") if file.is_file() and TOKEN.encode() in file.read_bytes()]


@pytest.mark.slow
def test_a_run_pushes_its_complete_model_with_a_card(train, hub, tmp_path, caplog):
    run = train(tmp_path / "run", *SHORT, "hub.push=true", "hub.repo=lab/mine", "hub.license=mit")
    model, there = run.folder / "model", hub.repositories["lab/mine"]
    assert there == {str(file.relative_to(model)): file.read_bytes() for file in model.rglob("*") if file.is_file()}
    assert {"README.md", "curves.png", "model_index.json"} <= there.keys()
    assert b"license: mit" in there["README.md"]
    assert hub.private["lab/mine"]
    assert (run.info["state"], run.info["pushed"]) == ("finished", f"{hub.address}/lab/mine")
    assert_secret(hub, run.folder, caplog.text)


@pytest.mark.slow
def test_a_refused_push_costs_the_run_nothing(train, hub, tmp_path, caplog):
    hub.faults = [("/commit/", 403)]
    run = train(tmp_path / "run", *SHORT, "hub.push=true", "hub.repo=mine")
    assert run.finished
    assert "pushed" not in run.info
    assert f"to push later: python -m t2i.push {run.folder} --repo mine" in caplog.text
    assert_secret(hub, run.folder, caplog.text)


@pytest.mark.slow
def test_a_finished_run_that_was_not_pushed_is_pushed(train, hub, tmp_path):
    """The same command again pushes it, once."""
    folder, push = tmp_path / "run", ("hub.push=true", "hub.repo=mine")
    train(folder, *SHORT)
    assert not hub.repositories
    run = train(folder, *SHORT, *push)
    (name,) = hub.repositories
    assert run.info["pushed"] == f"{hub.address}/{name}"
    hub.repositories.clear()
    train(folder, *SHORT, *push)
    assert not hub.repositories


@pytest.mark.slow
def test_the_owner_of_the_token_is_the_owner_of_a_bare_name(run, hub):
    for attempt in (1, 2):  # at the second, the repository exists
        assert push(run.folder, "mine", False, None, pauses=()) == f"{hub.address}/tester/mine"
        assert commits(hub) == attempt
    assert not hub.private["tester/mine"]


@pytest.mark.slow
@pytest.mark.parametrize("request_path", ["repos/create", "commit"])
def test_without_the_right_to_write_there_is_no_second_attempt(run, hub, request_path):
    hub.faults = [(request_path, 403)]
    with pytest.raises(PushFailed, match=r"pushing to lab/mine failed \(.*403.*\)"):
        push(run.folder, "lab/mine", True, None, pauses=(0, 0))
    assert sum(request_path in line for line in hub.asked) == 1


@pytest.mark.slow
def test_a_lost_connection_and_a_server_error_are_retried(run, hub, caplog):
    hub.faults = [("/commit/", "drop"), ("/commit/", 500)]
    push(run.folder, "mine", True, None, pauses=(0, 0))
    assert commits(hub) == 3
    assert caplog.text.count("next attempt in 0 s") == 2
    assert "model_index.json" in hub.repositories["tester/mine"]


@pytest.mark.slow
def test_a_failed_push_keeps_the_result_and_names_the_command(run, hub, caplog, capsys, monkeypatch):
    monkeypatch.setattr("t2i.publishing.push.PAUSES", (0,))
    before, hub.faults = (run.folder / "run.json").read_bytes(), [("/commit/", "drop")] * 2
    Publisher(True, "mine", False, "mit").publish(run.folder)
    assert (run.folder / "run.json").read_bytes() == before
    command = f"python -m t2i.push {run.folder} --repo mine --public --license mit"
    assert f"to push later: {command}" in caplog.text
    assert_secret(hub, run.folder, caplog.text)

    main(shlex.split(command)[3:])
    assert capsys.readouterr().out.strip() == f"{hub.address}/tester/mine"
    assert b"license: mit" in hub.repositories["tester/mine"]["README.md"]


@pytest.mark.slow
def test_a_signed_address_is_not_repeated(run, hub):
    hub.faults = [("/lfs/", 403)]
    with pytest.raises(PushFailed) as error:
        push(run.folder, "mine", True, None, pauses=())
    assert "X-Signature" not in str(error.value)


def test_a_useless_token_is_refused_before_training(hub, monkeypatch, tmp_path):
    def refusal(repo="mine"):
        with pytest.raises(ConfigError) as error:
            check_rights(repo)
        return str(error.value)

    check_rights("mine")
    check_rights("lab/mine")
    assert refusal(None) == "hub.push=true needs hub.repo=NAME, or OWNER/NAME"
    assert refusal("others/mine") == "hub.repo=others/mine: the token belongs to tester and lab, not to others"
    assert "hub.repo=my model is not a valid name of a repository" in refusal("my model")
    hub.role = "read"
    assert "the token can only read" in refusal()
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "Invalid user token" in refusal()
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    assert "hub.push=true needs a token with write access; run `hf auth login`, or use hub.push=false" in refusal()


@pytest.mark.parametrize("offline", [True, False])
def test_without_a_network_the_message_says_how_to_push_later(hub, monkeypatch, offline, train, tmp_path):
    closed = "http://127.0.0.1:9"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", closed)
    with pytest.raises(ConfigError) as error:
        train(tmp_path / "run", "hub.push=true", "hub.repo=mine")
    reason = "HF_HUB_OFFLINE is set" if offline else "[Errno 111] Connection refused"
    assert str(error.value) == (
        f"hub.push=true: {closed} can't be reached ({reason}); use hub.push=false and push the finished run: "
        "python -m t2i.push RUN --repo NAME"
    )
    assert not (tmp_path / "run").exists()


def test_an_unfinished_run_is_not_pushed(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        failing.run(main, [str(tmp_path), "--repo", "mine"])
    assert end.value.code == 2
    assert capsys.readouterr().err == f"t2i: {tmp_path} holds no finished run; only the model/ of one can be pushed\n"
