"""Score a pool shard by shard, audit the score, forecast the cost."""
