"""What comes out of a run: its numbers with their uncertainty, its model's card and signature, and its capsule."""
