"""``ugsep bench``: a bundle against the ways people serve such a model today, in one interleaved run."""
