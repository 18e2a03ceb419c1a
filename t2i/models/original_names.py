"""Names of layers in Stable Diffusion's original checkpoints, for those that Diffusers gives them.

The rules are those by which Diffusers converts: scripts/convert_diffusers_to_original_stable_diffusion.py, ..._sdxl.py,
and loaders/single_file_utils.py for the way back. L: resnets in a block on the way down.
"""

import re
from collections.abc import Collection, Iterable

OUTSIDE = {  # what stands outside of the UNet's blocks
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}  # of the autoencoder


def unet_names(names: Iterable[str]) -> dict[str, str]:
    """Each name of a UNet's layer or weight -> the original one. Raises ValueError for a layer that had none."""
    names = list(names)
    places = [int(found[1]) for name in names if (found := re.match(r"down_blocks\.0\.resnets\.(\d+)", name))]
    per_block = 1 + max(places)
    attention = {found[0] for name in names if (found := re.match(r"up_blocks\.\d+\.attentions", name))}
    return {name: _unet_name(name, per_block, attention) for name in names}


def _unet_name(name: str, per_block: int, attention: Collection[str]) -> str:
    for layer, original in OUTSIDE.items():
        if name == layer or name.startswith(f"{layer}."):
            return original + name.removeprefix(layer)
    found = re.fullmatch(
        r"(down|mid|up)_block(?:s\.(\d+))?\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.?(.*)", name
    )
    if found is None:
        raise ValueError(f"the original layout has no {name}")
    side, block, kind, place, rest = found[1], int(found[2] or 0), found[3], int(found[4]), found[5]
    if kind == "resnets":
        rest = _replaced(rest, RESNET)
    if side == "mid":
        return f"middle_block.{2 * place if kind == 'resnets' else 1}.{rest}"
    if side == "down":
        if kind == "downsamplers":
            return f"input_blocks.{(per_block + 1) * (block + 1)}.0.{_replaced(rest, {'conv': 'op'})}"
        return f"input_blocks.{(per_block + 1) * block + place + 1}.{int(kind == 'attentions')}.{rest}"
    if kind == "upsamplers":
        after = 2 if f"up_blocks.{block}.attentions" in attention else 1
        return f"output_blocks.{(per_block + 1) * block + per_block}.{after}.{rest}"
    return f"output_blocks.{(per_block + 1) * block + place}.{int(kind == 'attentions')}.{rest}"


def vae_name(name: str, blocks: int) -> str:
    """The original name of a weight of an autoencoder with so many blocks on each side."""
    found = re.fullmatch(
        r"(encoder|decoder)\.(down|up)_blocks\.(\d+)\.(resnets|downsamplers|upsamplers)\.(\d+)\.(.*)", name
    )
    if found:
        side, way, block, kind, place, rest = found.groups()
        level = int(block) if way == "down" else blocks - 1 - int(block)
        if kind == "resnets":
            return f"{side}.{way}.{level}.block.{place}.{_replaced(rest, {'conv_shortcut': 'nin_shortcut'})}"
        return f"{side}.{way}.{level}.{kind.removesuffix('rs')}.{rest}"
    name = re.sub(r"mid_block\.resnets\.(\d+)", lambda place: f"mid.block_{int(place[1]) + 1}", name)
    middle, attention, rest = name.partition("mid_block.attentions.0.")
    if attention:
        return f"{middle}mid.attn_1.{_replaced(rest, ATTENTION)}"
    return name.replace("conv_norm_out", "norm_out")


def _replaced(rest: str, layers: dict[str, str]) -> str:
    """The rest of a name, of which the layer at its beginning is renamed."""
    for layer, original in layers.items():
        if rest == layer or rest.startswith(f"{layer}."):
            return original + rest.removeprefix(layer)
    return rest
