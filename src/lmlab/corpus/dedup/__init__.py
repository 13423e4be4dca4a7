"""Deduplication (survey, 4.1.2) inside documents, of spans across documents, and of documents; over the whole corpus.

Whatever looks at the whole corpus is a shuffle (`shuffle.py`): a task a shard writes records sorted by key and cut at
the bounds of ranges; a task a range brings together what is alike; and what it found goes back to the shards as one more
step of each. Memory is one range, or one shard's batch; what grows with the corpus is said where it stands.
"""
