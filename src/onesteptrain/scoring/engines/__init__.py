"""Who runs the workers: processes of this machine, Ray, or a launcher of ranks.

An engine starts workers that each go through `score_share`, starts one anew that dies, and ends when all have ended.
It hands out nothing and gathers nothing: shards on disk do both. Only `ray.py` knows Ray.
"""

from onesteptrain.scoring.engines.deaths import Deaths
from onesteptrain.scoring.engines.processes import score_in_processes, use_share
from onesteptrain.scoring.engines.ranks import Rank, rank_here
from onesteptrain.scoring.engines.ray import score_on_ray

__all__ = ["Deaths", "Rank", "rank_here", "score_in_processes", "score_on_ray", "use_share"]
