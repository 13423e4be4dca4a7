"""Section 4.2 of the survey: architectures. One `Transformer` assembled from the parts that a `ModelConfig` names.

The shape letters of every tensor name in this house:

    B batch   T time (queries)   S time (keys, or an encoder's tokens)   D d_model   H heads   G key-value heads
    K head dimension   F d_ff   V vocabulary   L layers   E experts   C choices of experts a token   R distances
    N rows of any kind
"""
