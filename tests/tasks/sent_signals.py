"""Signals that a fit gets from itself, at a step that a test chooses."""

import os


def signal_in(monkeypatch, module, number, epoch, batch):
    """Send this process a signal in the given batch of a module's training, once."""
    step = module.training_step

    def training_step(self, data, batch_idx):
        if (self.current_epoch, batch_idx) == (epoch, batch):
            monkeypatch.setattr(module, "training_step", step)
            os.kill(os.getpid(), number)
        return step(self, data, batch_idx)

    monkeypatch.setattr(module, "training_step", training_step)
