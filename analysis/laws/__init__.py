"""Laws of loss against learning rate, one file each; ``analysis.laws.registry`` finds them."""
