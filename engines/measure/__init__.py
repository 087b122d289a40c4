"""Timers and machine limits."""
