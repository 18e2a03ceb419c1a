"""What the benchmarks work on: Stable Diffusion 1.5's architecture with random weights, and captioned images.

    python benchmarks/pipelines.py --sd15 FOLDER --images FOLDER 512 16

What is there already stays. The speed of a step does not depend on what the weights are.
"""

import argparse
import shutil
import sys
from pathlib import Path

SD15_GB = 4.3  # on disk, 10⁹ bytes: 860 M weights of the denoiser, 123 M of the text encoder, 84 M of the autoencoder
HELD_OUT = 2  # images


def sd15(folder: Path) -> Path:
    """The pipeline, in float32, written once; about a minute, and 6 GB of memory."""
    if (folder / "model_index.json").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(folder).free / 1e9) < SD15_GB + 1:
        raise OSError(f"{folder}: {free:.1f} GB are free, the pipeline takes {SD15_GB}; give another --folder")
    print(f"writing a pipeline of {SD15_GB} GB to {folder}, where {free:.0f} GB are free", file=sys.stderr)

    import torch
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from t2i.config.model_size import BUNDLED

    torch.manual_seed(0)
    # The real vocabulary is not at hand; 77 tokens of another one take as long.
    tokenizer = CLIPTokenizer.from_pretrained(BUNDLED["tiny"], subfolder="tokenizer", model_max_length=77)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=12,
            num_attention_heads=12,
            max_position_embeddings=77,
            hidden_act="quick_gelu",
            projection_dim=768,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
        sample_size=512,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)  # else its defaults
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=PNDMScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1, skip_prk_steps=True
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    pipeline.save_pretrained(unfinished)
    folder.rmdir()
    unfinished.rename(folder)
    return folder


def images(folder: Path, resolution: int, number: int) -> Path:
    """Emoji of `resolution` pixels, each with a caption: `number` in train/, and some in validation/."""
    from t2i.data.openmoji import catalogue, draw

    chosen = [emoji for emoji in catalogue() if emoji.group == "food"][: number + HELD_OUT]
    for place, emoji in enumerate(chosen):
        side = folder / ("train" if place < number else "validation")
        side.mkdir(parents=True, exist_ok=True)
        if not (side / f"{place:03}.txt").is_file():
            draw(emoji.emoji, resolution).save(side / f"{place:03}.png")
            (side / f"{place:03}.txt").write_text(emoji.caption)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sd15", type=Path, metavar="FOLDER", help=f"{SD15_GB} GB")
    parser.add_argument("--images", nargs=3, metavar=("FOLDER", "PIXELS", "NUMBER"))
    options = parser.parse_args()
    if options.sd15:
        sd15(options.sd15)
    if options.images:
        images(Path(options.images[0]), *map(int, options.images[1:]))


if __name__ == "__main__":
    main()
