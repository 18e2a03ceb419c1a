"""Push a finished run's model to the Hugging Face Hub: `python -m t2i.push RUN --repo NAME`."""

import argparse
import logging
import sys
from pathlib import Path


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m t2i.push", description=__doc__)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--repo", required=True, help="NAME, or OWNER/NAME")
    parser.add_argument("--public", action="store_true", help="if the repository is new; default: private")
    parser.add_argument("--license", help="of the model, for its card, such as creativeml-openrail-m")
    return parser


def main(arguments: list[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    from t2i.config import ConfigError
    from t2i.publishing.push import PAUSES, PushFailed, push

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        print(push(options.run, options.repo, not options.public, options.license, PAUSES))
    except (ConfigError, PushFailed) as error:
        print(f"t2i: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
