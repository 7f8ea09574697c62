"""The experiment suite, run from the checkout: one folder a task, shared parts beside them."""
