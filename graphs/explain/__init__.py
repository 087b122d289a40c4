"""What a split saves and what keeps user and item together, in words and as a picture."""
