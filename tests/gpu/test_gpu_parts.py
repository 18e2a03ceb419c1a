"""Parts on a GPU against the same on the CPU: predictions of every family, the optimizer, memory, exactness."""

import pytest
import torch
from helpers import families
from helpers.runs import compose
from hydra.utils import instantiate

from t2i.models.stable_diffusion import load
from t2i.optim.numerics import numerics
from t2i.optim.optimizers import StochasticAdamW
from t2i.runs.host_copies import HostCopies

ADAMW = {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01, "seed": 0}


@pytest.mark.parametrize("name", ["sd15", "sd21", "sdxl", *families.PIPELINES])
def test_a_family_predicts_and_learns_as_on_the_cpu(device, layout, tmp_path, name):
    """Predictions to 1e-3 of their norm, gradients to 1 %: the CPU adds up in another order."""
    folder = families.save(name, tmp_path / name) if name in families.PIPELINES else layout(name)
    model = instantiate(compose(f"model={name}", f"model.path={folder}").model)
    model.hold(torch.float32)
    x = model.encode(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1)[0]
    text = model.embed(["a cat", "a red cat"]) | {"time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2)}
    t, found = torch.tensor([10, 900]), []
    model.denoiser.eval()
    with numerics(tf32=False, cudnn_benchmark=False, deterministic=False):
        for place in ("cpu", device):
            model.denoiser.to(place).zero_grad()
            there = {key: value.to(place) for key, value in text.items()}
            prediction = model.denoise(x.to(place), t.to(place), there)
            prediction.square().mean().backward()
            gradients = [
                weight.grad.cpu().flatten() for weight in model.denoiser.parameters() if weight.grad is not None
            ]
            found.append((prediction.detach().cpu(), torch.cat(gradients)))
    for (ours, theirs), tolerance in zip(zip(*found, strict=True), (1e-3, 1e-2), strict=True):
        assert (ours - theirs).norm() < tolerance * ours.norm()


def test_captions_and_images_are_encoded_as_on_the_cpu(device, small_pipeline):
    model, found = load(str(small_pipeline)), []
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with numerics(tf32=False, cudnn_benchmark=False, deterministic=False):
        for place in ("cpu", device):
            model.to(torch.device(place))
            found.append([*model.encode(pixels), *model.embed(["a cat"]).values()])
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours.cpu(), theirs.cpu(), rtol=1e-3, atol=1e-3)


def test_encoders_rest_off_the_gpu_and_come_back(device, small_pipeline):
    model = load(str(small_pipeline))
    model.to(torch.device(device))
    pixels = torch.zeros(1, 3, 64, 64)
    before = model.encode(pixels)[0].cpu()
    model.embed(["a cat"])
    sizes = sum(weight.nbytes for name in ("vae", "text_encoder") for weight in model.parts[name].parameters())
    held = torch.cuda.memory_allocated() if device == "cuda" else 0
    model.rest()
    assert all(weight.device.type == "cpu" for weight in model.parts.read["vae"].parameters())
    if device == "cuda":
        assert held - torch.cuda.memory_allocated() >= sizes
    assert torch.equal(model.encode(pixels)[0].cpu(), before)
    assert next(model.parts["vae"].parameters()).device.type == device


def weights(device, dtype, sizes):
    random = torch.Generator().manual_seed(0)
    made = [torch.nn.Parameter(torch.randn(size, generator=random).to(device, dtype)) for size in sizes]
    for weight in made:
        weight.grad = torch.randn(weight.shape, generator=random).to(device, dtype)
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_a_gpu_updates_together_are_those_of_the_cpu(device, dtype):
    """In float32 to rounding; in bfloat16 to a neighbour, as the GPU draws other noise."""
    found = []
    for place in ("cpu", device):
        made = weights(place, dtype, [(40, 30), (7,), (8, 4, 3, 3)])
        optimizer = StochasticAdamW(made, **ADAMW)
        optimizer.step()
        found.append(torch.cat([weight.detach().cpu().float().flatten() for weight in made]))
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 2**-6, "atol": 1e-4}
    assert torch.allclose(*found, **tolerance)


@pytest.mark.gpu
def test_hundreds_of_weights_take_a_few_launches(cuda):
    made = weights("cuda", torch.bfloat16, [(16, 16)] * 500)
    optimizer = StochasticAdamW(made, **ADAMW)
    optimizer.step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        optimizer.step()
        torch.cuda.synchronize()
    kernels = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    assert 0 < len(kernels) < 150


@pytest.mark.gpu
def test_tf32_rounds_and_float32_does_not(cuda):
    """PyTorch alone would let convolutions use TF32."""
    random = torch.Generator().manual_seed(0)
    x, kernel = torch.randn(1, 256, 16, 16, generator=random), torch.randn(256, 256, 3, 3, generator=random)
    a = torch.randn(512, 512, generator=random)
    exact = torch.nn.functional.conv2d(x.double(), kernel.double(), padding=1), a.double() @ a.double()
    errors = {}
    for tf32 in (False, True):
        with numerics(tf32, cudnn_benchmark=False, deterministic=False):
            found = torch.nn.functional.conv2d(x.cuda(), kernel.cuda(), padding=1), a.cuda() @ a.cuda()
        errors[tf32] = [
            ((ours.cpu().double() - true).norm() / true.norm()).item() for ours, true in zip(found, exact, strict=True)
        ]
    assert max(errors[False]) < 1e-5
    if torch.cuda.get_device_capability() >= (8, 0):
        assert min(errors[True]) > 5e-5


@pytest.mark.gpu
def test_copies_to_the_host_do_not_wait_and_are_complete_when_they_are_waited_for(cuda):
    tensors = {str(i): torch.randn(1000, 1000, device="cuda") for i in range(20)}
    expected = {name: tensor.cpu() for name, tensor in tensors.items()}
    copies = HostCopies()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = copies.of(tensors, clone=True)
        for tensor in tensors.values():
            tensor.zero_()  # the run goes on
    finally:
        torch.cuda.set_sync_debug_mode("default")
    copies.wait()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert all(block.is_pinned() for block in copies.blocks)
