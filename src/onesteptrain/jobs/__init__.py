"""The steps of the main job, and what is made of them: `ost run`, comparisons, the demo."""
