"""Errors, names, strict configs, progress and feature declarations: what every package stands on."""
