"""Privacy (survey, section 4.1.2): finding what identifies or unlocks, and putting something else in its place.

`find.find(text, config)` gives spans; `replace.replace` writes the text anew. The step of a corpus is `steps/redact.py`.
"""
