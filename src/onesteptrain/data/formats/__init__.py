"""Reading and writing pools.

Two ideas that know nothing of each other: a *container* (JSON array, JSONL, Parquet, Hugging Face dataset folder, rows
in memory) gives raw rows and copies chosen ones to a new file; a *format* (llava, sharegpt, messages, openai, trl)
turns one raw row into the turns of a conversation. Any format may come in any container.
"""
