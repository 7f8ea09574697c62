"""What every test shares: a fixed seed, one thread, one hypothesis profile."""

import pytest
import torch
from hypothesis import settings

# No deadline: the first call of a kernel, or a busy machine, says nothing about correctness.
settings.register_profile("suite", deadline=None, derandomize=True, max_examples=40, print_blob=True)
settings.load_profile("suite")

# On tensors this small a second thread only waits for a time slice, for long where the machine is busy.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
