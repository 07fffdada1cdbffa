"""An app with a strategy of its own."""
