"""One file per model architecture, and the table that names them."""
