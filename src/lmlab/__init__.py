"""lmlab: the whole life of a large language model on one stack.

Importing this package imports neither torch nor pydantic: `lmlab.load` fetches what it needs when it is called.
"""

__version__ = "0.1.0"

__all__ = ["__version__", "load"]


def __getattr__(name: str):
    if name == "load":
        from lmlab.generate.handle import load

        return load
    raise AttributeError(f"module 'lmlab' has no attribute {name!r}")
