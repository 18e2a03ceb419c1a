import pytest
from huggingface_hub import constants

from t2i.config import ConfigError
from t2i.hub import check_reachable, is_final


@pytest.mark.parametrize(("key", "kind"), [("model.path", "model"), ("dataset.path", "dataset")])
def test_a_repository_out_of_reach_is_named_with_the_way_to_a_local_copy(key, kind):
    with pytest.raises(ConfigError) as error:
        check_reachable(key, "somebody/something", kind)
    assert str(error.value) == (
        f"{key}=somebody/something is not on this machine, and https://huggingface.co can't be reached (HF_HUB_OFFLINE "
        f"is set); on a machine with network access, `hf download somebody/something --repo-type {kind} "
        f"--local-dir FOLDER` makes a copy for {key}=FOLDER"
    )


def test_what_is_on_this_machine_is_not_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models--somebody--something").mkdir()
    (tmp_path / "images" / "train").mkdir(parents=True)
    check_reachable("model.path", "somebody/something", "model")
    check_reachable("dataset.path", "images/train", "dataset")
    check_reachable("dataset.path", "./nowhere", "dataset")
    with pytest.raises(ConfigError):
        check_reachable("dataset.path", "somebody/something", "dataset")


@pytest.mark.parametrize("error", [PermissionError(13, "denied", "token"), FileNotFoundError(2, "none", "token")])
def test_a_file_that_cannot_be_used_is_not_tried_again(error):
    assert is_final(error)
    assert not is_final(ConnectionError("reset"))
