"""Let people judge: `t2i judge multirun/gamma` serves a page that shows two images of the same prompt side by side.

Which settings made them is hidden. The votes are kept in judgements.jsonl in PATH, and `t2i compare PATH` says what
they prove. The page is served on 127.0.0.1 only. Ctrl-C ends it, and the same command goes on. Several judges may vote
at once: each opens the address in a tab and gives a name.
"""

import errno
from typing import TYPE_CHECKING

from t2i.cli.arguments import Parser, positive, run_folder
from t2i.cli.failing import run
from t2i.config import ConfigError

if TYPE_CHECKING:
    from t2i.judging.session import Session


def parser() -> Parser:
    parser = Parser("judge", __doc__)
    parser.add_argument(
        "paths",
        nargs="+",
        type=run_folder,
        metavar="PATH",
        help="folder of a sweep, of a run, or of images with index.json",
    )
    parser.add_argument(
        "--by", help="keys that tell variants apart: loss.snr_gamma,optimizer.lr (default: all that differ)"
    )
    parser.add_argument("--baseline", help="variant to compare with: loss=mse, or loss.snr_gamma=5,optimizer.lr=3e-4")
    parser.add_argument("--step", type=int, help="judge all runs' images at this step (default: at their end)")
    parser.add_argument("--name", default="", help="name of the judge (default: the page asks)")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1 (default: any that is free)")
    parser.add_argument(
        "--pairs", type=positive, default=100, help="how many pairs to ask each judge for (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="another choice and order of pairs (default: %(default)s)")
    parser.add_argument("--results", action="store_true", help="print what the votes say so far, and serve nothing")
    return parser


def main(arguments: list[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    from rich.console import Console

    from t2i.comparison.people_report import print_people
    from t2i.judging.contestants import read_contest
    from t2i.judging.results import people_in
    from t2i.judging.session import Session, judge_name
    from t2i.runs.judgements import Judgements
    from t2i.runs.text import printable

    name = judge_name(options.name) if options.name else ""
    by = options.by.split(",") if options.by else None
    contest = read_contest(options.paths, by, options.baseline, options.step)
    judgements = Judgements(options.paths[0].resolve())
    console = Console(markup=False, highlight=False)
    if not options.results:
        for note in contest.notes:
            console.print(printable(note))
        serve(Session(contest, judgements, options.seed, options.pairs), options.port, name)
    print_people(people_in(contest, judgements), console)


def serve(session: "Session", port: int, name: str) -> None:
    """Serve the page until Ctrl-C."""
    from t2i.judging.server import Server

    try:
        server = Server(session, port, name)
    except (OSError, OverflowError) as error:
        busy = "is in use" if getattr(error, "errno", None) == errno.EADDRINUSE else f"can't be used ({error})"
        raise ConfigError(f"--port {port} {busy}; choose another one, or leave the option out") from error
    try:
        print(f"Votes go to {session.judgements.file}. Ctrl-C ends the server, and nothing is lost.")
        print(f"Open {server.url}", flush=True)
        server.serve_forever()
    except KeyboardInterrupt:
        print()
    finally:
        server.server_close()


if __name__ == "__main__":
    run(main)
