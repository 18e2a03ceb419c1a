"""Pictures of fixed prompts from fixed seeds, and the labelled grid that shows them."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from t2i.draws import generator

LABEL_HEIGHT = 14
MARGIN = 4
FORWARD_BATCH = 16


@torch.no_grad()
def sample(pipeline, prompts: Sequence[str], seed: int, steps: int, guidance_scale: float) -> list[Image.Image]:
    """One picture for each prompt with a stock Diffusers pipeline.

    The starting noise of a picture depends on `seed` and its place in the list only, never on what else is drawn.
    """
    config = pipeline.unet.config
    shape = (config.in_channels, config.sample_size, config.sample_size)
    noise = [generator(seed, "sample", place).standard_normal(shape, dtype=np.float32) for place in range(len(prompts))]
    device, images = pipeline.unet.device, []
    for start in range(0, len(prompts), FORWARD_BATCH):
        part = slice(start, start + FORWARD_BATCH)
        latents = torch.from_numpy(np.stack(noise[part])).to(device, pipeline.unet.dtype)
        output = pipeline(
            list(prompts[part]), latents=latents, num_inference_steps=steps, guidance_scale=guidance_scale
        )
        images += output.images
    return images


def grid(rows: Sequence[Sequence[Image.Image]], labels: Sequence[str], row_labels: Sequence[str] = ()) -> Image.Image:
    """Rows of pictures of one size; `labels` stand under the columns, `row_labels` before the rows."""
    width, height = rows[0][0].size
    scale = max(1, round(96 / width))  # small pictures are shown larger, or nobody can read the labels
    width, height = width * scale, height * scale
    font = ImageFont.load_default(size=11)
    left = max((int(font.getlength(label)) for label in row_labels), default=0) + MARGIN
    lines = [_wrap(label, font, width) for label in labels]
    bottom = LABEL_HEIGHT * max(len(text.splitlines()) for text in lines) + MARGIN
    sheet = Image.new("RGB", (left + len(labels) * (width + MARGIN), len(rows) * (height + MARGIN) + bottom), "white")
    draw = ImageDraw.Draw(sheet)
    for r, row in enumerate(rows):
        top = r * (height + MARGIN)
        if row_labels:
            draw.text((MARGIN // 2, top + height // 2), row_labels[r], fill="black", font=font, anchor="lm")
        for c, image in enumerate(row):
            sheet.paste(image.resize((width, height), Image.Resampling.NEAREST), (left + c * (width + MARGIN), top))
    for c, text in enumerate(lines):
        middle = left + c * (width + MARGIN) + width // 2
        draw.multiline_text(
            (middle, len(rows) * (height + MARGIN)), text, fill="black", font=font, anchor="ma", align="center"
        )
    return sheet


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(lines)
