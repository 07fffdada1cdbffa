"""The demo: the product's main job, run for real on one machine. `make demo` calls `python -m examples.demo`."""
