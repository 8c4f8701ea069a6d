"""Mutated rows and files through reading, guarding and writing: `make fuzz`, or `python -m tests.fuzzing --help`.

A case is a few small files, good ones with some edits that hypothesis draws from a seed. What uses them may refuse
them, in one line; it may raise nothing foreign, end no process, and take neither 5 seconds nor 1 GB.
"""
