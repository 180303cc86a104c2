"""All that a worker imports, for the process that workers are forked from.

Nothing of it is garbage: looking for some meanwhile would take a fifth of the time.
"""

from __future__ import annotations

import gc
import importlib

gc.disable()
try:
    importlib.import_module("fednnunet.node.shared_worker")
finally:
    gc.enable()
