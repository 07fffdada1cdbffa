"""An app without a strategy."""
