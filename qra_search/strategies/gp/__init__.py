"""Parts of the strategies with a Gaussian process."""
