"""Push a finished run's model to the Hugging Face Hub: `t2i push RUN --repo NAME`."""

import logging

from t2i.cli.arguments import Parser, run_folder
from t2i.cli.failing import run


def parser() -> Parser:
    parser = Parser("push", __doc__)
    parser.add_argument("run", type=run_folder, metavar="RUN", help="folder of a finished run")
    parser.add_argument("--repo", required=True, help="repository: NAME, or OWNER/NAME")
    parser.add_argument("--public", action="store_true", help="make a new repository public (default: private)")
    parser.add_argument("--license", help="license of the model, for its card, such as creativeml-openrail-m")
    return parser


def main(arguments: list[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    from t2i.publishing.push import PAUSES, push

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    print(push(options.run, options.repo, not options.public, options.license, PAUSES))


if __name__ == "__main__":
    run(main)
