"""One module per backend; each fulfils the contract of ``engines.backend``."""
