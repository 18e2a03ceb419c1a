"""Train the tokenizer, text encoder and judge of model=tiny on OpenMoji: `python -m t2i.tiny.clip`.

One small CLIP (Radford et al. 2021): its text half conditions the diffusion model, and all of it judges the samples.
"""

import argparse
import copy
import json
import random
import re
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextModel, CLIPTokenizer

from t2i.data.openmoji import Emoji, catalogue
from t2i.tiny.vae import RESOLUTION, load_images, update_average

HERE = Path(__file__).parent
VOCABULARY, TOKENS, WIDTH = 2000, 24, 128
BATCH_SIZE = 128
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.1
EMA_DECAY = 0.995
SAVE_EVERY = 180  # seconds
PERSON = {"man": "person", "woman": "person", "men": "people", "women": "people"}
DIRECTED = re.compile(
    r"left|right|clockwise|button|arrow|flag|o'clock|thirty|keycap|mark|input|last|next|waxing|waning"
)


def train_tokenizer(captions: list[str]) -> CLIPTokenizer:
    """A tokenizer with CLIP's vocabulary: every byte, every byte that ends a word, the merges, then start and end."""
    blank = CLIPTokenizer().backend_tokenizer
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer, learner.pre_tokenizer = blank.normalizer, blank.pre_tokenizer
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    # The trainer keeps the order of special tokens only; that of other tokens changes from run to run.
    ends = [character + "</w>" for character in characters]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 2, special_tokens=ends, initial_alphabet=characters, end_of_word_suffix="</w>"
    )
    learner.train_from_iterator(captions, trainer)
    merges: list = [tuple(merge) for merge in json.loads(learner.to_str())["model"]["merges"]]
    vocabulary = [*characters, *ends, *map("".join, merges), "<|startoftext|>", "<|endoftext|>"]
    numbered = {token: number for number, token in enumerate(vocabulary)}
    return CLIPTokenizer(vocab=numbered, merges=merges, model_max_length=TOKENS)


def make_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    shared = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": 4, "projection_dim": WIDTH}
    # eos_token_id says which token transformers pools; its default is CLIP's own, which this vocabulary does not have.
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    length = {"vocab_size": len(tokenizer), "max_position_embeddings": TOKENS}
    text = {**shared, **special, **length, "num_hidden_layers": 3}
    vision = {**shared, "num_hidden_layers": 4, "image_size": RESOLUTION, "patch_size": 8}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH))


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Token numbers, [B, 24]."""
    return tokenizer(captions, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt").input_ids


def vary_caption(caption: str) -> str:
    """The same caption, less precise: without skin tone, with another word for the person, with words missing."""
    words = caption.split()
    if words[-2:] == ["skin", "tone"] and random.random() < 0.1:
        words = re.sub(r" (medium-)?(light|medium|dark) skin tone$", "", caption).split()
    if random.random() < 0.05:
        words = [PERSON.get(word, word) for word in words]
    if random.random() < 0.3:
        words = [word for word in words if random.random() < 0.8] or words
    if random.random() < 0.1:
        words = [random.choice(["a", "the", "one"]), *words]
    return " ".join(words)


def vary_images(images: Tensor, may_mirror: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] to [-1, 1]: scaled, shifted, tilted, mirrored where the caption allows it, tinted, noisy."""
    size = len(images)
    ink = 1 - images.float() / 255  # so that what comes in at the border is white
    scale, tilt = 1 + 0.12 * torch.randn(size).clamp(-2, 2), 0.08 * torch.randn(size)
    mirror = torch.where(may_mirror & (torch.rand(size) < 0.5), -1.0, 1.0)
    rows = [scale * mirror, tilt, 0.1 * torch.randn(size), -tilt * mirror, scale, 0.1 * torch.randn(size)]
    grid = F.affine_grid(torch.stack(rows, 1).view(size, 2, 3), list(ink.shape), align_corners=False)
    images = 1 - 2 * F.grid_sample(ink, grid, align_corners=False)
    images = images + 0.06 * torch.randn(size, 3, 1, 1) * (images < 0.95)
    return images + 0.1 * torch.rand(size, 1, 1, 1) * torch.randn_like(images)


def contrastive_loss(similarities: Tensor, tokens: Tensor) -> Tensor:
    """CLIP's loss of similarities [B, B], both ways. Another image with the same caption counts as right, too."""
    same = (tokens[:, None] == tokens[None]).all(-1).float()
    targets = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(similarities, targets) + F.cross_entropy(similarities.T, targets)) / 2


@torch.no_grad()
def recall(clip: CLIPModel, tokens: Tensor, images: Tensor) -> list[float]:
    """How often an image's own caption is the first, or among the first five, of all held-out captions."""
    similarities = clip(input_ids=tokens, pixel_values=images.float() / 127.5 - 1).logits_per_image
    rank = (similarities > similarities.diag()[:, None]).sum(1)
    return [(rank < k).float().mean().item() for k in (1, 5)]


def save(clip: CLIPModel) -> None:
    """Save the judge, and its text half as the text encoder of the pipeline, in half precision."""
    clip = copy.deepcopy(clip).half()
    clip.save_pretrained(HERE / "judge")
    half = {"do_resize": True, "size": {"shortest_edge": RESOLUTION}, "crop_size": RESOLUTION}
    CLIPImageProcessor(**half, image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(HERE / "judge")
    text = CLIPTextModel(clip.text_model.config).half()
    weights = {name: value for name, value in clip.state_dict().items() if name.startswith("text_model.")}
    if not hasattr(text, "text_model"):  # as in transformers 5
        weights = {name.removeprefix("text_model."): value for name, value in weights.items()}
    text.load_state_dict(weights)
    text.save_pretrained(HERE / "pipeline" / "text_encoder")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=15.0, help="training time (default: %(default)s)")
    budget = parser.parse_args().minutes * 60
    torch.manual_seed(0)
    random.seed(0)
    entries: dict[str, list[Emoji]] = {"train": [], "validation": []}
    for entry in catalogue():
        entries[entry.split].append(entry)
    tokenizer = train_tokenizer([entry.caption for entry in catalogue()])
    tokenizer.save_pretrained(HERE / "pipeline" / "tokenizer")
    tokenizer.backend_tokenizer.model.save(str(HERE / "pipeline" / "tokenizer"))  # for transformers 4
    (images, weights), (held_out, _) = load_images("train"), load_images("validation")
    captions = [entry.caption for entry in entries["train"]]
    may_mirror = torch.tensor([not DIRECTED.search(caption) for caption in captions])
    held_out_tokens = tokenize(tokenizer, [entry.caption for entry in entries["validation"]])

    clip = make_clip(tokenizer)
    print(f"{sum(p.numel() for p in clip.parameters()) / 1e6:.2f} M parameters, {len(captions)} images", flush=True)
    ema = copy.deepcopy(clip).requires_grad_(False).eval()
    optimizer = torch.optim.AdamW(clip.parameters(), betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY)
    step, start = 0, time.time()
    saved = start
    while (elapsed := time.time() - start) < budget:
        lr = LEARNING_RATE * min(1, (step + 1) / 100) * min(1, (1 - elapsed / budget) / 0.7)
        optimizer.param_groups[0]["lr"] = lr
        chosen = torch.multinomial(weights, BATCH_SIZE)
        tokens = tokenize(tokenizer, [vary_caption(captions[i]) for i in chosen])
        batch = vary_images(images[chosen], may_mirror[chosen])
        loss = contrastive_loss(clip(input_ids=tokens, pixel_values=batch).logits_per_image, tokens)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
        optimizer.step()
        clip.logit_scale.data.clamp_(max=4.6)  # 100, as in the paper
        decay = min(EMA_DECAY, (step + 1) / (step + 10))
        update_average(ema, clip, decay)
        step += 1
        if step % 50 == 0:
            first, five = recall(ema, held_out_tokens, held_out)
            report = f"step {step}: loss {loss.item():.3f}, held out R@1 {first:.3f} R@5 {five:.3f}"
            print(f"{report}, {step / elapsed:.2f} steps/s, {(budget - elapsed) / 60:.1f} min left", flush=True)
        if time.time() - saved > SAVE_EVERY:
            save(ema)
            saved = time.time()
    save(ema)
    toned = torch.tensor([entry.group == "people_tones" for entry in entries["validation"]])
    for name, which in (("all", toned | True), ("skin tones", toned), ("new concepts", ~toned)):
        first, five = recall(ema, held_out_tokens[which], held_out[which])
        print(f"{name}: {int(which.sum())} held-out images, R@1 {first:.3f}, R@5 {five:.3f} among their captions")


if __name__ == "__main__":
    main()
