"""The process of `t2i.train(...)`: `t2i COMMAND ...`, which ends in good order if the process that started it dies."""

import os
import signal
import sys
import threading
from contextlib import suppress


def end_with_parent() -> None:
    """Interrupt this process, so that it writes a checkpoint, once standard input is closed: its other end is gone."""
    with suppress(OSError):
        while os.read(0, 1):  # not sys.stdin, whose lock would be held when Python ends
            pass
    os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    threading.Thread(target=end_with_parent, daemon=True).start()
    from t2i.cli.main import main

    main(sys.argv[1:])
