"""Section 2.1 of the survey: laws of scale, fitting them with intervals, planning by them.

Everywhere N are parameters, D training tokens, C = 6 N D training FLOPs, L the loss in nats a token.
"""
