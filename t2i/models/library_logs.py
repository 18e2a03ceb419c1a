"""What the libraries say while a model is loaded, where nobody needs to read it."""

import logging
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def quiet(library: str) -> Generator[None, None, None]:
    """Drop what this module of a library warns of."""
    logger = logging.getLogger(library)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def hide_loading_bars() -> None:
    """Loading takes a second; the progress bars of every library would bury what the user should see."""
    import diffusers.utils.logging
    import transformers.utils.logging

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
