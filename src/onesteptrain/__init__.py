"""Choose the share of a vision-language training pool that makes the model better."""
