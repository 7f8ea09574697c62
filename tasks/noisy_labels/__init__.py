"""Learning with noisy labels: losses, synthetic noise, detection of wrong labels."""
