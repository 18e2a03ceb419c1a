"""Latents as sequences of patches of 2 × 2, in the order of the families of Flux and Qwen-Image."""

from torch import Tensor

from t2i.config import ConfigError


def pack(latents: Tensor) -> Tensor:
    """[B, C, h, w] -> [B, h/2 · w/2, 4 · C]; the channels of a patch stand before its places."""
    return patchify(latents).flatten(2).transpose(1, 2)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `pack`, for latents of this height and width."""
    batch, _, channels = tokens.shape
    return unpatchify(tokens.transpose(1, 2).reshape(batch, channels, height // 2, width // 2))


def patchify(latents: Tensor) -> Tensor:
    """[B, C, h, w] -> [B, 4 · C, h/2, w/2]; ConfigError if a side is odd."""
    batch, channels, height, width = latents.shape
    if height % 2 or width % 2:
        raise ConfigError(
            f"dataset.resolution gives latents of {height} × {width}, which this model joins in patches of 2 × 2; "
            "use a multiple of twice the autoencoder's factor, such as 512 or 1024"
        )
    patches = latents.reshape(batch, channels, height // 2, 2, width // 2, 2)
    return patches.permute(0, 1, 3, 5, 2, 4).reshape(batch, 4 * channels, height // 2, width // 2)


def unpatchify(patches: Tensor) -> Tensor:
    """The inverse of `patchify`."""
    batch, channels, height, width = patches.shape
    latents = patches.reshape(batch, channels // 4, 2, 2, height, width).permute(0, 1, 4, 2, 5, 3)
    return latents.reshape(batch, channels // 4, 2 * height, 2 * width)
