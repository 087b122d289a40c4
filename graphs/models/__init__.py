"""One module per architecture; each registers itself with ``graphs.registry``."""
