"""Generate images with a trained model: `t2i sample RUN "red apple" "grinning face"`."""

from pathlib import Path

from t2i.cli.arguments import Parser, add_sampling_options, as_run, check_image_file, positive
from t2i.cli.failing import run
from t2i.config.checks import check_seeds
from t2i.runs.names import refuse_missing

SOURCE = "run folder, checkpoint, folder of a pipeline, Hub id, or tiny"


def parser() -> Parser:
    parser = Parser("sample", __doc__)
    parser.add_argument("source", metavar="RUN", help=SOURCE)
    parser.add_argument("prompts", nargs="+", metavar="PROMPT")
    add_sampling_options(parser)
    parser.add_argument("--seed", type=int, default=0, help="seed of the starting noise (default: %(default)s)")
    parser.add_argument(
        "--images", type=positive, default=1, help="images per prompt, from successive seeds (default: 1)"
    )
    parser.add_argument("--out", type=Path, default=Path("samples.png"), help="image to write (default: %(default)s)")
    return parser


def main(arguments: list[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    options.source = as_run(options.source)
    refuse_missing(options.source)
    check_seeds({"--seed": options.seed, "--seed and --images": options.seed + options.images - 1})
    check_image_file(options.out)
    from t2i.image_grid import grid
    from t2i.models.loading_errors import naming_model
    from t2i.runs.files import replacing
    from t2i.runs.full_disk import naming
    from t2i.sampling.images import sample
    from t2i.sampling.pipelines import load_pipeline

    pipeline = load_pipeline(options.source, options.weights)
    seeds = range(options.seed, options.seed + options.images)
    with naming_model(options.source, "sampled from"):  # the model may be anybody's
        rows = [sample(pipeline, options.prompts, seed, options.steps, options.guidance_scale) for seed in seeds]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with naming(options.out), replacing(options.out) as temporary:
        grid(rows, options.prompts, [f"seed {seed}" for seed in seeds] if len(rows) > 1 else ()).save(temporary)
    print(options.out)


if __name__ == "__main__":
    run(main)
