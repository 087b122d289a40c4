"""The layers of token-mixing models, with and without UG-Sep."""
