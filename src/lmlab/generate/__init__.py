"""The one engine: whatever generates or scores (evaluation, prompting, PPO's rollouts, the server) calls it.

engine.py          generate, stream, score            handle.py    `lmlab.load`: a model with its tokenizer
decoder.py         the common model, few operations   weights.py   its weights laid out for inference
module_decoder.py  every other model, by its blocks   packed.py    their matrices packed
compiled.py        a step of fixed shapes             decoders.py  which decoder serves a model
remote.py          a model behind an address          client.py    the requests to it
cache.py           keys and values under way          kernels.py, attend.py   cached attention for each decoder
prefixes.py        what prompts begin with in common  batching.py  requests that join and leave a batch
sampling.py        one token from logits              text.py      text from tokens as they come
score.py           log-probabilities of given tokens  mapped.py    weights used where their file is mapped
infill.py          blanks of GLM's two positions
"""
