"""In and out of the ecosystem's formats: one file a family, each a config map and a weight map."""
