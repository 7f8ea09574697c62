"""Learning with noisy labels: losses, synthetic noise, detection of wrong labels, WebVision."""

SECOND_SET = "imagenet"
"""Name of a second validation and test set, and what stands before its metrics: `val/imagenet_top1`."""
STATE = "noisy_labels"
"""Entry of a checkpoint that holds what a method remembers and what training saw of the samples."""
