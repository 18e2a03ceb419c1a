"""Learning-rate schedules that PyTorch and Diffusers do not have."""

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_wsd_schedule

from t2i.config import ConfigError


def warmup_stable_decay(
    optimizer: Optimizer, num_training_steps: int, num_warmup_steps: int, decay_share: float
) -> LambdaLR:
    """Linear warm-up, constant, linear decay to 0 over the last `decay_share` of the steps (Hu et al. 2024, MiniCPM).

    Until the decay begins, the learning rate does not depend on the number of steps.
    """
    if not 0 <= decay_share <= 1:
        raise ConfigError(
            f"lr_scheduler.decay_share={decay_share} must be a fraction of the steps, between 0 and 1; 0.3 is usual"
        )
    num_decay_steps = round(decay_share * num_training_steps)
    return get_wsd_schedule(
        optimizer,
        num_warmup_steps=min(num_warmup_steps, num_training_steps - num_decay_steps),
        num_decay_steps=num_decay_steps,
        num_training_steps=num_training_steps,
        decay_type="linear",
    )
