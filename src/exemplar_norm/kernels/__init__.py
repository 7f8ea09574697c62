"""Fast forms of what the layers compute: Triton kernels, and EN's small map with its backward by hand."""
