"""TensorBoard's writer, loaded without PyTorch.

tensorboardX also takes PyTorch's tensors, and for these imports PyTorch wherever it is installed:
seconds of every start, for what nothing here hands it.
"""

import sys

_HIDDEN = "torch" not in sys.modules
if _HIDDEN:
    # An import of what stands there as None fails, as if it were not installed.
    sys.modules["torch"] = None
try:
    from tensorboardX import SummaryWriter
finally:
    if _HIDDEN:
        del sys.modules["torch"]

__all__ = ["SummaryWriter"]
