"""The ways people serve a ranking model today: the whole model for every candidate, one function each."""
