"""The one engine: whatever generates or scores (evaluation, prompting, PPO's rollouts, the server) calls it.

weights.py   a Transformer's weights laid out for inference      sampling.py  one token from logits
decoder.py   the same mathematics with fewer operations          text.py      text from tokens as they come
cache.py     keys and values of the requests under way           batching.py  requests that join and leave a batch
engine.py    generate, stream                                    score.py     log-probabilities of given tokens
handle.py    `lmlab.load`: a model with its tokenizer
"""
