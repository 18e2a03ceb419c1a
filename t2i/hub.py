"""The Hugging Face Hub: whether a repository can be reached, and which failures are worth another attempt."""

import re
from pathlib import Path

from t2i.config import ConfigError

TIMEOUT = 10  # seconds
PAUSES = (10, 60, 300)  # seconds, before each further attempt
MAY_PASS = (408, 429)  # timeout, too many requests: the refusals (4xx) that are worth another attempt


def is_repository(path: str) -> bool:
    """Whether a path is the id of a repository: OWNER/NAME, and neither a file nor a folder."""
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", path)) and not Path(path).exists()


def check_reachable(key: str, path: str, kind: str) -> None:
    """Refuse a repository that is neither in the Hub's cache nor reachable. kind: model or dataset.

    Without this check the libraries retry six times in half a minute and then report a missing file. A `path` that
    cannot be the id of a repository is not checked.
    """
    from huggingface_hub import constants, get_session
    from huggingface_hub.file_download import repo_folder_name
    from huggingface_hub.utils import httpx

    if not is_repository(path):
        return
    if (Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=path, repo_type=kind)).is_dir():
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=TIMEOUT)
    except (httpx.HTTPError, OSError) as error:
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else str(error)
        raise ConfigError(
            f"{key}={path} is not on this machine, and {constants.ENDPOINT} can't be reached ({why}); "
            f"on a machine with network access, `hf download {path} --repo-type {kind} --local-dir FOLDER` "
            f"makes a copy for {key}=FOLDER"
        ) from error


def is_final(error: Exception) -> bool:
    """Whether another attempt would fail in the same way: the Hub has refused or may not be asked, or it is a file."""
    from huggingface_hub.errors import LocalTokenNotFoundError, OfflineModeIsEnabled

    status = getattr(getattr(error, "response", None), "status_code", 0)
    refused = 400 <= status < 500 and status not in MAY_PASS
    on_this_machine = (PermissionError, FileNotFoundError, IsADirectoryError, NotADirectoryError)
    return refused or isinstance(error, (LocalTokenNotFoundError, OfflineModeIsEnabled, *on_this_machine))


def reason(error: BaseException) -> str:
    """The error in one line, without the query part of URLs: upload URLs are signed."""
    error = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
    text = " ".join(str(error).split()) or type(error).__name__
    return re.sub(r"\?[^\s'\")]+", "", text)[:300]
