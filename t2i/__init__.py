"""Train text-to-image diffusion models from composable Hydra configs, and compare the runs honestly."""

import logging
import os

# At import Transformers warns that torchvision is missing, and bitsandbytes that a kernel for 4-bit weights is; nothing
# here uses either.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
