"""Pushes a finished model to the Hugging Face Hub. A failed push never costs the run its result."""

import logging
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import Timeout
from omegaconf import OmegaConf

from t2i.config import ConfigError
from t2i.hub import PAUSES, is_final, reason
from t2i.publishing.model_card import write_card
from t2i.runs.config_file import read_config
from t2i.runs.files import LOCK, lock, remove_leftovers
from t2i.runs.folder import Run
from t2i.runs.links import refuse_links

log = logging.getLogger(__name__)
PATIENCE = 20  # seconds to wait for another process that writes the card
HIDDEN = [".*", "*/.*"]  # no export of a run: what another process is writing


@dataclass(frozen=True)
class Publisher:
    """The settings under `hub` of a configuration; push=false does nothing.

    repo: NAME or OWNER/NAME. license: the Hub's name of it, such as creativeml-openrail-m; None leaves it out.
    """

    push: bool
    repo: str | None
    private: bool
    license: str | None

    def check(self) -> None:
        """Refuse, before anything is trained, a repository that could not be pushed to."""
        if self.push:
            check_rights(self.repo)

    def publish(self, run: Path) -> None:
        """Push a finished run's model. If that fails, log the reason and the command that pushes it later."""
        if not self.push:
            return
        try:
            push(run, _given(self.repo), self.private, self.license, PAUSES)
        except Exception as error:  # the network and the Hub have a dozen types of them; the run has finished anyway
            log.error("%s: %s; to push later: %s", type(error).__name__, error, self.command(run))

    def command(self, run: Path) -> str:
        """The command that pushes a run later."""
        arguments = ["python", "-m", "t2i.push", str(run), "--repo", self.repo or "NAME"]
        arguments += [] if self.private else ["--public"]
        return shlex.join(arguments + (["--license", self.license] if self.license else []))


class PushFailed(ConfigError):
    """The network or the Hub has refused the model; the message says why."""


def check_rights(repo: str | None) -> None:
    """Refuse a repository that the token can't write to, as far as the Hub tells before a push."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError
    from huggingface_hub.utils import httpx

    later = "use hub.push=false and push the finished run: python -m t2i.push RUN --repo NAME"
    try:
        _full_name(_given(repo))
    except LocalTokenNotFoundError as error:
        raise ConfigError(f"hub.push=true needs a token with write access; run `hf auth login`, or {later}") from error
    except HfHubHTTPError as error:
        raise ConfigError(f"hub.push=true: {reason(error)}; run `hf auth login`, or {later}") from error
    except (httpx.HTTPError, OSError) as error:
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else reason(error)
        raise ConfigError(f"hub.push=true: {constants.ENDPOINT} can't be reached ({why}); {later}") from error


def push(run: Path, repo: str, private: bool, license: str | None, pauses: Sequence[float]) -> str:
    """Push model/ of a finished run, with a model card, to a repository of the Hub; returns its address.

    Temporary failures are retried after each of the `pauses`, in seconds; then, or if the Hub refuses: PushFailed.
    """
    from huggingface_hub.utils import httpx

    if not (run / "run.json").is_file() or not (finished := Run(run, OmegaConf.create(read_config(run)))).finished:
        raise ConfigError(f"{run} holds no finished run; only the model/ of one can be pushed")
    remaining = iter(pauses)
    while True:
        try:
            name = _full_name(repo)
            _write_card(run, name, license)
            address = _upload(run / "model", name, private)
            break
        except (httpx.HTTPError, OSError, RuntimeError) as error:
            pause = next(remaining, None)
            if pause is None or is_final(error):
                raise PushFailed(f"pushing to {repo} failed ({reason(error)})") from error
            log.warning("pushing to %s failed (%s); next attempt in %g s", repo, reason(error), pause)
            time.sleep(pause)
    finished.update(pushed=address)
    log.info("pushed: %s", address)
    return address


def _write_card(run: Path, repo: str, license: str | None) -> None:
    """Write the card, while no other process writes one. What a killed one left is removed."""
    refuse_links(run / LOCK, run / "model")
    try:
        with lock(run, patience=PATIENCE):
            remove_leftovers(run / "model", (".md", ".png"))
            write_card(run, repo, license)
    except Timeout as error:
        raise ConfigError(f"{run} is in use by another process; wait for it, and push again") from error


def _given(repo: str | None) -> str:
    if not repo:
        raise ConfigError("hub.push=true needs hub.repo=NAME, or OWNER/NAME")
    return repo


def _full_name(repo: str) -> str:
    """OWNER/NAME, by default with the token's owner; ConfigError if the token can't write there."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ConfigError(f"hub.repo={repo} is not a valid name of a repository: {error}") from error
    identity = HfApi().whoami()
    owners = [identity["name"], *(organisation["name"] for organisation in identity.get("orgs", []))]
    owner, _, name = repo.rpartition("/")
    if owner and owner not in owners:
        raise ConfigError(f"hub.repo={repo}: the token belongs to {' and '.join(owners)}, not to {owner}")
    if identity.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise ConfigError("the token can only read; create one with write access at huggingface.co/settings/tokens")
    return f"{owner or identity['name']}/{name}"


def _upload(folder: Path, repo: str, private: bool) -> str:
    from huggingface_hub import HfApi

    api = HfApi()
    address = api.create_repo(repo, private=private, exist_ok=True)
    api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Push from t2i", ignore_patterns=HIDDEN)
    return str(address)
