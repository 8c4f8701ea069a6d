"""Fine-tune models: the warm-up of the proxy, and the target."""
