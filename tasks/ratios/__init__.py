"""Seeing what the layers choose: `python -m tasks.ratios`, and the parts that follow λ during training."""
