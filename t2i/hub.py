"""The Hugging Face Hub: whether what is asked of it can be had."""

import re
from pathlib import Path

from t2i.config import ConfigError

TIMEOUT = 10  # seconds


def is_repository(path: str) -> bool:
    """Whether a path can only be the id of a repository: OWNER/NAME, and no file or folder."""
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", path)) and not Path(path).exists()


def check_reachable(key: str, path: str, kind: str) -> None:
    """Refuse a repository that is neither in the Hub's cache nor within reach; kind is model or dataset.

    Left to themselves, the libraries would ask six times in half a minute, and then say that a file is missing. What
    is no repository is none of the Hub's business.
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
        reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else str(error)
        raise ConfigError(
            f"{key}={path} is not on this machine, and {constants.ENDPOINT} can't be reached ({reason}); where there "
            f"is a network, `hf download {path} --repo-type {kind} --local-dir FOLDER` makes a copy for {key}=FOLDER"
        ) from error
