"""Train text-to-image diffusion models from composable Hydra configs, and compare the runs honestly."""

import logging
import os

__version__ = "0.1.0"

# At import Transformers warns that torchvision is missing, and bitsandbytes that a kernel for 4-bit weights is; t2i
# uses neither.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
