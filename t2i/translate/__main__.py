"""`python -m t2i.translate` is `t2i translate`."""

from t2i.cli.failing import run
from t2i.translate.command import main

if __name__ == "__main__":
    run(main)
