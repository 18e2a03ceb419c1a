"""Pushing the finished model to the Hugging Face Hub, in a way that can't cost the run its result."""

import logging
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf

from t2i.config import ConfigError
from t2i.hub import PAUSES, is_final, reason
from t2i.publishing.model_card import write_card
from t2i.runs.config_file import read_config
from t2i.runs.folder import Run

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Publisher:
    """What `hub` says in a configuration; with push=false it does nothing.

    repo: NAME, or OWNER/NAME. license: as the Hub names them, such as creativeml-openrail-m; None says nothing.
    """

    push: bool
    repo: str | None
    private: bool
    license: str | None

    def check(self) -> None:
        """Refuse, before anything is trained, what could not be pushed in the end."""
        if self.push:
            check_rights(self.repo)

    def publish(self, run: Path) -> None:
        """Push a finished run's model; if that fails, the log says why, and the command for later."""
        if not self.push:
            return
        try:
            push(run, self.repo, self.private, self.license, PAUSES)
        except Exception as error:  # of the network or the Hub, in a dozen types: the run is finished all the same
            log.error("%s: %s; to push later: %s", type(error).__name__, error, self.command(run))

    def command(self, run: Path) -> str:
        """What pushes a run later."""
        arguments = ["python", "-m", "t2i.push", str(run), "--repo", self.repo]
        arguments += [] if self.private else ["--public"]
        return shlex.join(arguments + (["--license", self.license] if self.license else []))


class PushFailed(RuntimeError):
    """The model is not on the Hub."""


def check_rights(repo: str | None) -> None:
    """Refuse a repository that the token can't write to, as far as the Hub says so beforehand."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError
    from huggingface_hub.utils import httpx

    if not repo:
        raise ConfigError("hub.push=true needs hub.repo=NAME, or OWNER/NAME")
    later = "hub.push=false, and when the run is finished: python -m t2i.push RUN --repo NAME"
    try:
        _owned(repo)
    except LocalTokenNotFoundError as error:
        raise ConfigError(f"hub.push=true needs a token that may write: `hf auth login`; or {later}") from error
    except HfHubHTTPError as error:
        raise ConfigError(f"hub.push=true: {reason(error)}; try `hf auth login`; or {later}") from error
    except (httpx.HTTPError, OSError) as error:
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else reason(error)
        raise ConfigError(f"hub.push=true: {constants.ENDPOINT} can't be reached ({why}); use {later}") from error


def push(run: Path, repo: str, private: bool, license: str | None, pauses: Sequence[float]) -> str:
    """Put model/ of a finished run, with a model card, into a repository of the Hub; returns its address.

    What the network or the Hub may get over is tried again after each of the `pauses`, in seconds; then PushFailed.
    """
    from huggingface_hub.utils import httpx

    if not (run / "run.json").is_file() or not (finished := Run(run, OmegaConf.create(read_config(run)))).finished:
        raise ConfigError(f"{run} holds no finished run; only its model/ can be pushed")
    for pause in (*pauses, None):
        try:
            name = _owned(repo)
            write_card(run, name, license)
            address = _upload(run / "model", name, private)
            break
        except (httpx.HTTPError, OSError, RuntimeError) as error:
            if pause is None or is_final(error):
                raise PushFailed(f"pushing to {repo} failed ({reason(error)})") from error
            log.warning("pushing to %s failed (%s); once more in %g s", repo, reason(error), pause)
            time.sleep(pause)
    finished.update(pushed=address)
    log.info("pushed: %s", address)
    return address


def _owned(repo: str) -> str:
    """OWNER/NAME, with the owner of the token if none is given; ConfigError if it can't write there."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ConfigError(f"hub.repo={repo} is no name for a repository: {error}") from error
    identity = HfApi().whoami()
    owners = [identity["name"], *(organisation["name"] for organisation in identity.get("orgs", []))]
    owner, _, name = repo.rpartition("/")
    if owner and owner not in owners:
        raise ConfigError(f"hub.repo={repo}: the token is of {' and '.join(owners)}, not of {owner}")
    if identity.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise ConfigError("the token may only read; make one that may write at huggingface.co/settings/tokens")
    return f"{owner or identity['name']}/{name}"


def _upload(folder: Path, repo: str, private: bool) -> str:
    from huggingface_hub import HfApi

    api = HfApi()
    address = api.create_repo(repo, private=private, exist_ok=True)
    api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Push from t2i")
    return str(address)
