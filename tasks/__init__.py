"""The experiment suite, run from the checkout: one folder a task, shared parts beside them."""

import os

# Read when torch is loaded. Idle threads that spin wait for a core that another process uses: on a shared
# machine, small networks become tens of times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
