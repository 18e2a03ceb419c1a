"""Train text-to-image diffusion models from composable Hydra configs, and compare the runs honestly."""

import os

# Transformers warns at import that torchvision is missing, which nothing here uses.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
