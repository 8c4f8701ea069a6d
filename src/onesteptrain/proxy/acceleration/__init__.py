"""What makes passes of a proxy cheaper, and changes no result.

`prepare` makes a batch whose `plan` says how passes over it are to run. What the plan rests on is found out by running
the model on the first samples of a kind, and kept in the proxy's `ModelProbes`; a proxy without any runs in full.

Leaving out the mask and working out positions beforehand pay on a GPU, not on a CPU: flash attention refuses a mask,
fused kernels skip half of their products without one, and a model that looks for the tokens of its pictures makes the
host wait for the device in every pass. The prefix cache pays everywhere (docs/speed.md has its figures).
"""
