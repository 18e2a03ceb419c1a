"""Small denoisers in the layouts of Stable Diffusion 1.5, 2.1, XL, 3 and 3.5, and inputs for them."""

from typing import Any

import torch
from diffusers import SD3Transformer2DModel, UNet2DConditionModel
from torch import Tensor

from helpers.layouts import BLOCKS

CONFIGS: dict[str, dict[str, Any]] = {
    "sd15": {"cross_attention_dim": 32, "attention_head_dim": 2},
    "sd21": {"cross_attention_dim": 32, "attention_head_dim": [1, 2], "use_linear_projection": True},
    "sdxl": {
        **{"cross_attention_dim": 80, "attention_head_dim": [1, 2], "use_linear_projection": True},
        **{"transformer_layers_per_block": [1, 2], "addition_embed_type": "text_time"},
        **{"addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 24 + 6 * 8},
    },
}


SD3 = {
    **{"sample_size": 16, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 2},
    **{"attention_head_dim": 8, "num_attention_heads": 2, "joint_attention_dim": 32, "caption_projection_dim": 16},
    **{"pooled_projection_dim": 24, "pos_embed_max_size": 12},
}
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "sd3": SD3,
    "sd35": {**SD3, "qk_norm": "rms_norm", "dual_attention_layers": (0,)},
}


def small_denoiser(name: str) -> Any:
    """A denoiser with fresh weights, and biases and norms that are not zero and one."""
    torch.manual_seed(0)
    if name in TRANSFORMERS:
        network: Any = SD3Transformer2DModel(**TRANSFORMERS[name])
    else:
        network = UNet2DConditionModel(**BLOCKS, **CONFIGS[name])
    with torch.no_grad():
        for weight in network.parameters():
            if weight.ndim == 1:
                weight += 0.1 * torch.randn_like(weight)
    return network


def inputs_of(name: str, batch: int, height: int, width: int, seed: int = 0) -> dict[str, Tensor]:
    """x, time, target, scale and the text of a batch, as `t2i.backends.jax.step.Compiled.losses` takes them."""
    random = torch.Generator().manual_seed(seed)
    channels = SD3["joint_attention_dim"] if name in TRANSFORMERS else CONFIGS[name]["cross_attention_dim"]
    inputs = {
        "x": torch.randn(batch, 4, height, width, generator=random),
        "time": torch.randint(0, 1000, (batch,), generator=random),
        "target": torch.randn(batch, 4, height, width, generator=random),
        "scale": 2 * torch.rand(batch, generator=random),
        "encoder_hidden_states": torch.randn(batch, 5, channels, generator=random),
    }
    if name in TRANSFORMERS:
        inputs["pooled"] = torch.randn(batch, 24, generator=random)
    if name == "sdxl":
        inputs["text_embeds"] = torch.randn(batch, 24, generator=random)
        inputs["time_ids"] = torch.randint(0, 128, (batch, 6), generator=random)
    return inputs


def losses_of(unet: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """PyTorch's prediction, and the weighted losses of the examples."""
    x, time, context = inputs["x"], inputs["time"], inputs["encoder_hidden_states"]
    if "pooled" in inputs:
        prediction = unet(x, context, inputs["pooled"], time).sample
    else:
        added = {name: inputs[name] for name in ("text_embeds", "time_ids") if name in inputs} or None
        prediction = unet(x, time, context, added_cond_kwargs=added).sample
    return prediction, inputs["scale"] * (prediction - inputs["target"]).square().flatten(1).mean(1)
